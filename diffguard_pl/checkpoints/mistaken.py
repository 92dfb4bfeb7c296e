"""Files that are taken for checkpoints: what they are, by their first bytes, and the remedy."""

import re
import zipfile
from pathlib import Path

from ..errors import InputError

GIT_LFS = b"version https://git-lfs"
HTML = re.compile(rb"\s*<(!doctype\s+html|html|\?xml)\b", re.IGNORECASE)
TORCH = (b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.")
"""Beginning of a file of ``torch.save``: in its zip format, and in the one before it."""
SAFETENSORS = re.compile(rb".{6}\0\0\{", re.DOTALL)
"""Beginning of a safetensors file: the length of its JSON header as 8 bytes, and the header."""


def refuse_mistaken_file(path: Path) -> None:
    """Raise an `InputError` for a file that is not the checkpoint that its name says."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"checkpoint {path}: cannot be read ({reason}); allow it") from error
    is_safetensors = path.suffix == ".safetensors"
    problem = None
    if not start:
        problem = "is truncated to nothing; download it again"
    elif start.startswith(GIT_LFS):
        problem = "is a pointer of Git LFS; run git lfs pull, or download the file itself"
    elif HTML.match(start):
        problem = "is a web page, such as a confirmation or an error; download the file itself"
    elif is_safetensors and start.startswith(TORCH):
        problem = "is a file of torch.save; rename it to end in .pt"
    elif not is_safetensors and SAFETENSORS.match(start):
        problem = "is a safetensors file; rename it to end in .safetensors"
    elif zipfile.is_zipfile(path):
        problem = _mistaken_archive(path)
    if problem:
        raise InputError(f"checkpoint {path}: {problem}")


def _mistaken_archive(path: Path) -> str | None:
    """Say what is wrong with a .zip file that torch.save has not written."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile):
        # torch says what is damaged
        return None
    if "constants.pkl" in names:
        return (
            "is TorchScript, which holds code; save its state dict with "
            "torch.save(torch.jit.load(FILE).state_dict(), FILE2)"
        )
    if "data.pkl" not in names:
        return (
            "is an archive of another kind than torch.save writes (an exported program, NumPy "
            "arrays, packed files); save the model's state_dict(), or unpack it"
        )
    return None
