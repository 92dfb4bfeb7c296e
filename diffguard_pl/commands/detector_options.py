"""Options of the commands that decide with a detector."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

# torch takes seconds: it is imported once the arguments are known to be valid
if TYPE_CHECKING:
    from ..deploy.detector import Detector


def add_detector_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--detector`` and what it may be loaded with."""
    add = parser.add_argument
    add(
        "--detector",
        required=True,
        metavar="FILE",
        help="file that diffguard-pl calibrate wrote, hf://owner/name[@revision], or the name of a "
        "detector that comes with the package: digits_ldm",
    )
    add(
        "--tpr",
        type=float,
        help="fraction of in-distribution images to accept (default: the detector's)",
    )
    add("--device", help="cpu, cuda, ... (default: a GPU if present)")
    add("--slots", type=int, help="batch size of the diffusion model (default: the detector's)")


def load_detector(given: argparse.Namespace) -> "Detector":
    """Load the detector that the options name.

    Raises:
        InputError: It cannot be loaded.
    """
    from ..deploy.detector import Detector

    changes = {} if given.slots is None else {"slots": given.slots}
    detector = Detector.load(given.detector, device=given.device, **changes)
    return detector if given.tpr is None else detector.with_tpr(given.tpr)


def hash_of_detector(name: str | Path) -> str:
    """Return the SHA-256 of a detector file by its path, name or address."""
    import pooch

    from ..deploy.hub import find_detector_file

    return pooch.file_hash(find_detector_file(name))
