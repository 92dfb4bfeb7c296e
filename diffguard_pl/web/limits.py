"""Limits on uploads; imports nothing heavy, as ``diffguard-pl demo --help`` shows the defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits on an upload.

    Attributes:
        megabytes: Largest file, in MiB.
        megapixels: Largest number of pixels, in millions.
    """

    megabytes: float = 10
    megapixels: float = 40


DEFAULT_LIMITS = Limits()
