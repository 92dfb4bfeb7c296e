"""Recreate the detector of the web demo: ``python recipes/digits_detector.py``.

Runs ``diffguard-pl calibrate`` on the primary score and removes time and place from the file,
so that ``diffguard_pl/weights/digits_ldm_detector.json`` is the same on every machine. The
validation digits set the threshold. Twenty seconds on two cores.
"""

import json
import tempfile
from pathlib import Path

from diffguard_pl import weights
from diffguard_pl.commands import calibrate
from diffguard_pl.deploy.detector_file import CHECKSUM, checksum

FILE = Path(weights.__file__).parent / "digits_ldm_detector.json"
OPTIONS = ["--config", "digits_ldm", "--model.discrepancies", "[maps]"]

if __name__ == "__main__":
    FILE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
        calibrate.main([*OPTIONS, "--out", str(FILE), *trainer])
    content = json.loads(FILE.read_text())
    content["about"] |= {
        "made": None,
        "config": "digits_ldm",
        "command": ["python", "-m", "diffguard_pl", "calibrate", *OPTIONS],
    }
    content[CHECKSUM] = checksum(content)
    FILE.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
