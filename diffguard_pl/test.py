"""The evaluation: ``python -m diffguard_pl.test --config ldm.yaml --trainer.devices 8``."""

import sys

from .__main__ import main
from .imports import exiting_at_once_after_help

if __name__ == "__main__":
    with exiting_at_once_after_help():
        main(["test", *sys.argv[1:]])
