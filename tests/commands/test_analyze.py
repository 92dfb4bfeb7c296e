"""The command ``diffguard-pl analyze``, apart from what it measures."""

import inspect
import re

import pytest

from diffguard_pl.commands import analyze
from diffguard_pl.evaluation.noise_accuracy import Analysis


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_the_settings_of_the_analysis_with_their_defaults(option, capsys):
    analyze.main(["--config", "digits_ldm", option])
    printed = capsys.readouterr().out

    settings = inspect.signature(Analysis).parameters
    assert re.findall(r"--analysis\.(\w+) \w+", printed) == list(settings)
    for name, setting in settings.items():
        _, _, described = printed.partition(f"--analysis.{name} ")
        described, _, _ = described.partition("\n  --")
        default = re.search(r"\(default: (\S+)\)", described)
        assert (default[1] if default else "None") == str(setting.default)
