"""What data a config needs, and how to get it.

    diffguard-pl data check gdm            # counts what is there, names what is missing and says where to get it
    diffguard-pl data prepare gdm          # downloads what OpenOOD publishes

Settings of ``data`` may follow: ``--data.root /datasets --data.only [species]``. ``--calibration`` and ``--train`` add the
images to calibrate on, and those that baselines are fitted to.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pooch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.data import Dataset

from ..checkpoints.download import fetch, google_drive, unzip
from ..config import load_data
from ..datamodules.base import OODData
from ..datamodules.openood import IMAGE_LISTS, PUBLISHED, PublishedList, PublishedSet
from ..datamodules.sources import ImageFiles
from ..errors import InputError

NAMED = 3
"""How many missing files of a set are named."""
MORE = {
    "calibration": "in-distribution validation images to calibrate on",
    "train": "training images that baselines are fitted to",
}
"""Sources of a data module that a plain run does without: how its ``data`` names them, and what they are."""


class Holding(NamedTuple):
    """What is there of a data set.

    Attributes:
        listed: images that it should have; 0 where that cannot be known.
        missing: those that are not there, by path.
        problem: why it cannot be known.
    """

    listed: int
    missing: list[str]
    problem: str = ""

    @property
    def complete(self) -> bool:
        """Whether every image is there."""
        return not self.missing and not self.problem


def main(args: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl data", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("action", choices=["check", "prepare"])
    parser.add_argument("config", nargs="+", help="path or name of a config; a later one overrides")
    for more, what in MORE.items():
        parser.add_argument(f"--{more}", action="store_true", help=f"look for {what}, too")
    given, settings = parser.parse_known_args(args)
    try:
        data = load_data(given.config, settings)
        sources = data.test_sources() | _more(data, [name for name in MORE if vars(given)[name]])
        if given.action == "prepare":
            prepare(sources)
        holdings = {
            name: holding(source)
            for name, source in track(sources.items(), "looking", transient=True)
        }
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where this one stopped")
    report(" ".join([*given.config, *settings]), sources, holdings, data.groups)
    if not all(found.complete for found in holdings.values()):
        sys.exit(1)


def _more(data: OODData, names: list[str]) -> dict[str, Dataset]:
    """Return the sources beside those of a plain run."""
    sources = {"calibration": data.calibration_source, "train": data.train_source}
    found = {}
    for name in names:
        source = sources[name]()
        if source is None:
            raise InputError(f"--{name}: data.{name} is not set; it is the source of {MORE[name]}")
        found[f"data.{name}"] = source
    return found


def holding(source: Any) -> Holding:
    """What is there of the images of a source: files are looked for, not opened."""
    try:
        if not isinstance(source, ImageFiles):
            return Holding(len(source), [])
        missing = [
            entry.path for entry in source.entries if not (source.root / entry.path).is_file()
        ]
        return Holding(len(source), missing)
    except InputError as error:
        return Holding(0, [], str(error))


def report(
    config: str, sources: dict[str, Any], holdings: dict[str, Holding], groups: dict[str, str]
) -> None:
    """Print a table of what is there, then for each set that is not complete what is missing and where to get it."""
    console = Console()
    table = Table("group", "data set", title=f"Data of {config}")
    for column in ("listed", "there", "missing"):
        table.add_column(column, justify="right")
    for name, found in holdings.items():
        counts = [
            f"{n:,}" for n in (found.listed, found.listed - len(found.missing), len(found.missing))
        ]
        style = "" if found.complete else "bold red"
        table.add_row(
            groups.get(name, "in-distribution"),
            name,
            *(["?"] * 3 if found.problem else counts),
            style=style,
        )
    console.print(table)
    for name, found in holdings.items():
        if found.complete:
            continue
        source = sources[name]
        more = len(found.missing) - NAMED
        what = found.problem or ", ".join(
            [str(source.root / path) for path in found.missing[:NAMED]]
            + ([f"and {more:,} more"] if more > 0 else [])
        )
        print(f"{name}: missing {what}" if not found.problem else f"{name}: {what}")
        print(f"  {where(config, source)}")


def where(config: str, source: Any) -> str:
    """Where to get the images of a source."""
    if isinstance(source, PublishedList):
        links = [] if source.file.exists() else [("image lists", IMAGE_LISTS)]
        links += [] if source.elsewhere else [(source.archive, PUBLISHED[source.archive])]
        if not links:
            return f"get it from {source.elsewhere} -> {source.root / source.archive}"
        by_hand = "; ".join(
            f"{name}: {browser_link(part)} -> {source.data_root / part.folder}"
            for name, part in links
        )
        return f"get it: diffguard-pl data prepare {config}; or by hand, {by_hand}"
    return (
        f"put the images into {source.root}"
        if isinstance(source, ImageFiles)
        else "see the documentation of the data set"
    )


def browser_link(published: PublishedSet) -> str:
    """The page on which a person can download an archive."""
    return f"https://drive.google.com/file/d/{published.drive}/view"


def prepare(sources: dict[str, Any]) -> None:
    """Download what OpenOOD publishes of these sources and is not there: the image lists first, then each archive once."""
    published = [source for source in sources.values() if isinstance(source, PublishedList)]
    if not published:
        raise InputError(
            "none of these data sets is published by OpenOOD; `check` says what each one needs"
        )
    if any(not source.file.exists() for source in published):
        _get("benchmark_imglist", IMAGE_LISTS, published[0].data_root)
    lacking = [
        source for source in published if not source.elsewhere and not holding(source).complete
    ]
    for archive, source in {source.archive: source for source in lacking}.items():
        _get(archive, PUBLISHED[archive], source.data_root)


def _get(name: str, published: PublishedSet, root: Path) -> None:
    """Fetch an archive, check it against the hash of the last time if there was one, unpack it as OpenOOD does, remove it.

    OpenOOD publishes no hashes; the first download's is kept in ``downloads.sha256``, in the format of ``sha256sum``, so that a
    group can pin its data. The checksums inside the archive are verified in any case.
    """
    folder = root / published.folder
    print(f"{name}: {browser_link(published)} -> {folder}", flush=True)
    known = _hashes(root).get(f"{name}.zip")
    file = fetch(google_drive(published.drive), folder, f"{name}.zip", sha256=known)
    if known is None:
        with (root / "downloads.sha256").open("a") as hashes:
            hashes.write(f"{pooch.file_hash(file)}  {name}.zip\n")
    unzip(file, folder)
    file.unlink()


def _hashes(root: Path) -> dict[str, str]:
    file = root / "downloads.sha256"
    lines = file.read_text().splitlines() if file.exists() else []
    return {name: value for value, _, name in (line.partition("  ") for line in lines)}
