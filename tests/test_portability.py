"""The package without what Windows lacks."""

import subprocess
import sys

from helpers import ROOT

USE_EVERYTHING = """
import importlib, pkgutil, sys, warnings

sys.path.insert(0, sys.argv.pop(1))
from helpers.windows import hide_posix

hide_posix()
warnings.filterwarnings("error", category=EncodingWarning, module="diffguard_pl")

import diffguard_pl
for found in pkgutil.walk_packages(diffguard_pl.__path__, "diffguard_pl."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)

from diffguard_pl.__main__ import main
quick = ["--data.limit", "1", "--model.steps", "2", "--page.enabled", "false"]
main(["test", *quick, "--trainer.default_root_dir", "run"])
main(["score", "--detector", "digits_ldm", "--out", "out.csv", "run/pictures/digits/0.png"])
"""


def test_everything_is_imported_and_used_without_what_windows_lacks(tmp_path):
    command = [sys.executable, "-X", "warn_default_encoding", "-c", USE_EVERYTHING]
    done = subprocess.run(
        [*command, str(ROOT / "tests")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "metrics.csv").is_file()
    assert (tmp_path / "out.csv").is_file()
