"""Images of the in-distribution dataset that other datasets hold as well."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["dataset", "index", "path", "fingerprint"]
"""Columns of the scores that repeated images are found by."""


def describe_repeats(frame: "pd.DataFrame", datasets: Sequence[str]) -> str:
    """Describe in one line which images are in several datasets; empty if none is.

    Args:
        frame: Table of a run's scores with at least `COLUMNS`.
        datasets: Names of the datasets, the in-distribution one first.
    """
    known = frame[frame["fingerprint"].notna()]
    is_ind = known["dataset"] == datasets[0]
    ind_paths = known[is_ind].drop_duplicates("fingerprint").set_index("fingerprint")["path"]
    others = known[~is_ind & known["fingerprint"].isin(ind_paths.index)]
    parts = []
    for dataset, repeated in others.groupby("dataset", sort=False):
        first = repeated.iloc[0]
        parts.append(
            f"{len(repeated)} of {dataset}, such as {first['path']} = "
            f"{ind_paths[first['fingerprint']]}"
        )
    if not parts:
        return ""
    return (
        f"{datasets[0]}: the same images, to the pixel, are in other datasets: "
        f"{'; '.join(parts)}. Their scores are equal, so that no threshold separates them; remove "
        "them from one of the two"
    )
