"""Makes ``diffguard_pl/weights/digits_ldm_detector.json``, the detector of the web demo: ``python recipes/digits_detector.py``.

It is what ``diffguard-pl calibrate --config digits_ldm`` writes, less when and where it was made: the threshold of the
validation digits, no other image is looked at. Twenty seconds on two cores; docs/digits.md says where the weights come from.
"""

import json
import tempfile
from pathlib import Path

from diffguard_pl import weights
from diffguard_pl.commands import calibrate

FILE = Path(weights.__file__).parent / "digits_ldm_detector.json"
OPTIONS = ["--config", "digits_ldm"]

if __name__ == "__main__":
    FILE.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        calibrate.main(
            [
                *OPTIONS,
                "--out",
                str(FILE),
                "--trainer.default_root_dir",
                folder,
                "--trainer.accelerator",
                "cpu",
            ]
        )
    content = json.loads(FILE.read_text())
    content["about"] |= {
        "made": None,
        "config": "digits_ldm",
        "command": ["python", "-m", "diffguard_pl", "calibrate", *OPTIONS],
    }
    FILE.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
