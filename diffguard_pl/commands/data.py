"""The command ``diffguard-pl data``: checks for the images of a config, or downloads them."""

import argparse
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .errors import one_line_errors

if TYPE_CHECKING:
    from ..datamodules.base import OODData
    from ..datamodules.presence import Presence

NAMED = 3
"""Number of missing files of a dataset that are named."""
FURTHER_SOURCES = {
    "calibration": "in-distribution validation images to calibrate on",
    "train": "training images that baselines are fitted to",
}
"""Settings of a data module for images that a plain test does not need, with a description."""


def main(args: list[str] | None = None) -> None:
    """Check or prepare the data of a config.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given, settings = parser().parse_known_args(args)
    config = " ".join([*given.config, *settings])
    with one_line_errors("the same command continues"):
        is_complete = run(given, settings, config)
    if not is_complete:
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl data",
        description="Check which images of a config are present, or download those that OpenOOD "
        "publishes. Settings of the data module may follow, such as --data.root /datasets "
        "--data.only [species].",
    )
    parser.add_argument("action", choices=["check", "prepare"])
    parser.add_argument(
        "config", nargs="+", help="path or name of a config; later ones override earlier ones"
    )
    for name, what in FURTHER_SOURCES.items():
        parser.add_argument(f"--{name}", action="store_true", help=f"include {what}")
    return parser


def run(given: argparse.Namespace, settings: list[str], config: str) -> bool:
    """Check or prepare, and return whether all images are present."""
    from rich.progress import track

    from ..config import load_data
    from ..datamodules.presence import download_published, presence

    data = load_data(given.config, settings)
    sources: dict[str, Any] = dict(data.test_sources())
    for name in FURTHER_SOURCES:
        if vars(given)[name]:
            sources[f"data.{name}"] = further_source(data, name)
    if given.action == "prepare":
        download_published(sources)
    found = {}
    for name, source in track(sources.items(), "looking for images", transient=True):
        found[name] = presence(source)
    show(config, sources, found, data.groups)
    show_repeated(sources)
    return all(of_source.is_complete for of_source in found.values())


def further_source(data: "OODData", name: str) -> Any:
    """Return the source that the setting ``data.NAME`` names, or raise an `InputError`."""
    source = data.calibration_source() if name == "calibration" else data.train_source()
    if source is None:
        what = FURTHER_SOURCES[name]
        raise InputError(f"--{name}: data.{name} is not set; it is the source of {what}")
    return source


def show(
    config: str,
    sources: Mapping[str, Any],
    found: Mapping[str, "Presence"],
    groups: Mapping[str, str],
) -> None:
    """Print a table of the datasets, then what is missing and where to get it."""
    from rich.console import Console
    from rich.table import Table

    from ..datamodules.presence import where_to_get

    table = Table("group", "dataset", title=f"Data of {config}")
    for column in ("listed", "present", "missing"):
        table.add_column(column, justify="right")
    for name, of_source in found.items():
        counts = ["?"] * 3
        if not of_source.problem:
            missing = len(of_source.missing)
            counts = [f"{n:,}" for n in (of_source.listed, of_source.listed - missing, missing)]
        style = "" if of_source.is_complete else "bold red"
        table.add_row(groups.get(name, "in-distribution"), name, *counts, style=style)
    Console().print(table)
    for name, of_source in found.items():
        if of_source.is_complete:
            continue
        print(f"{name}: {of_source.problem or missing_files(sources[name], of_source)}")
        print(f"  {where_to_get(sources[name], config)}")


def show_repeated(sources: Mapping[str, Any]) -> None:
    """Print which images of the in-distribution dataset are in other datasets, too."""
    from ..datamodules.presence import repeated_files

    (ind, source), *others = sources.items()
    for name, pairs in repeated_files(source, dict(others)).items():
        file, equal = pairs[0]
        print(
            f"{name}: {len(pairs)} images are in {ind} as well, such as {file} = {equal}; remove "
            "them from one of the two"
        )


def missing_files(source: Any, found: "Presence") -> str:
    """Name the first missing files of a source."""
    names = [str(source.root / path) for path in found.missing[:NAMED]]
    more = len(found.missing) - NAMED
    if more > 0:
        names.append(f"and {more:,} more")
    return f"missing {', '.join(names)}"
