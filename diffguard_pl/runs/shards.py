"""The setting ``shard``: which part of a run's images a process computes."""

import re

from ..errors import InputError


def parse_shard(shard: str) -> tuple[int, int]:
    """Parse the number of a shard and the number of shards: ``2/8`` is (2, 8).

    Raises:
        InputError: the text is not of this form, or the number is too large.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"shard={shard}: must be I/N with I from 0 to N-1, such as 0/8")
    return int(found[1]), int(found[2])
