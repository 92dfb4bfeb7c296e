"""Accept or reject image files: ``python -m diffguard_pl.score --detector detector.json photo.jpg folder/``.

A line of JSON (or of CSV) for each image, as soon as it is decided, in the order given:

    {"path": "photo.jpg", "decision": "reject", "label": 3, "class": "3", "score": 0.41, "p_value": 0.0046, "diffused": true}
    {"path": "broken.jpg", "error": "not an image that PIL can read"}

Exit status: 0, all images were decided; 1, an error; 2, a mistake in the arguments; 3, some images could not be read; 4, with
``--fail-on-ood``, at least one was rejected.
"""

import argparse
import csv
import json
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.utils.data import DataLoader, Dataset

from .datamodules.reading import Prepared, collate, read_image
from .datamodules.sources import ImageDirectory
from .errors import InputError
from .guard import Decisions, Detector
from .report.pictures import draw_decision
from .stop import Stop, StopRequested
from .test import LEFT_OUT, one_line_errors

REJECTED = 4
"""Exit status with ``--fail-on-ood`` where an image was rejected."""
COLUMNS = ("path", "decision", "label", "class", "score", "p_value", "diffused", "picture", "error")


class Files(Dataset):
    """Image files by path; nothing is read before it is asked for."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> str:
        """The path of an image."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Any:
        return read_image(Path(self.paths[index]))


def main(args: list[str] | None = None) -> None:
    """Decide as the command line says."""
    given = _parser().parse_args(args)
    with one_line_errors(), Stop().listening():
        try:
            rejected, broken = score(given)
        except (StopRequested, KeyboardInterrupt) as stopped:
            signum = getattr(stopped, "signum", signal.SIGINT)
            again = f"; --resume goes on with {given.out}" if given.out else ""
            print(f"stopped by {signal.Signals(signum).name}{again}", file=sys.stderr)
            sys.exit(128 + signum)
        except BrokenPipeError:  # the reader has seen enough, as head does
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115  the interpreter flushes it once more
            sys.exit(0)
    if rejected and given.fail_on_ood:
        sys.exit(REJECTED)
    if broken:
        sys.exit(LEFT_OUT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m diffguard_pl.score", description="Accept or reject images.")
    parser.add_argument("image", nargs="+", help="an image, a folder of images, or - for paths on the standard input")
    parser.add_argument("--detector", required=True, metavar="FILE", help="that python -m diffguard_pl.calibrate has written")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="JSON Lines, or CSV by its name; none: JSON Lines on standard output"
    )
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw each image, its reconstruction and their difference")
    parser.add_argument("--fail-on-ood", action="store_true", help=f"exit status {REJECTED} if an image was rejected")
    parser.add_argument("--tpr", type=float, help="another share of in-distribution images to accept than the detector's")
    parser.add_argument("--resume", action="store_true", help="leave out the images that --out has already, and add to it")
    parser.add_argument("--device", help="cpu, cuda, ...; none: a GPU if there is one")
    parser.add_argument("--slots", type=int, help="rows of the diffusion model's batch, see model.slots")
    parser.add_argument("--batch-size", type=int, default=32, help="images that are read at a time (32)")
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (2)")
    return parser


def score(given: argparse.Namespace) -> tuple[int, int]:
    """Decide on all images; returns how many were rejected, and how many could not be read."""
    if given.batch_size < 1 or given.workers < 0:
        raise InputError(f"--batch-size {given.batch_size}, --workers {given.workers}: expected at least 1 and 0")
    done = _done(given.out, given.resume)
    changes = {} if given.slots is None else {"slots": given.slots}
    detector = Detector.load(given.detector, device=given.device, **changes)
    if given.tpr is not None:
        detector.with_tpr(given.tpr)
    paths = [path for path in files(given.image) if path not in done]
    rejected = broken = 0
    with ExitStack() as opened:
        write = opened.enter_context(_writer(given.out))
        tick = opened.enter_context(_progress(len(paths)))
        for batch, decisions in detector.decide(_batches(detector, paths, given)):
            lines = described(batch, decisions)
            if given.pictures and decisions is not None:
                _draw(given.pictures, lines, batch, decisions)
            for line in lines:
                write(line)
            rejected += sum(line.get("decision") == "reject" for line in lines)
            broken += sum("error" in line for line in lines)
            tick(len(lines))
    print(
        f"{len(paths) - rejected - broken} accepted, {rejected} rejected" + (f", {broken} could not be read" if broken else ""),
        file=sys.stderr,
    )
    return rejected, broken


def files(given: Sequence[str]) -> list[str]:
    """Paths of images: those given, of folders all in them, and for ``-`` those on the standard input; each once.

    Raises:
        InputError: a folder without images, or no image at all.
    """
    found: list[str] = []
    for name in given:
        if name == "-":
            found += [line.rstrip("\n") for line in sys.stdin if line.strip()]
        elif Path(name).is_dir():
            folder = ImageDirectory(name, follow_links=True)
            found += [str(Path(name) / entry.path) for entry in folder.entries]
        else:
            found.append(name)
    if not found:
        raise InputError("there are no images to score")
    return list(dict.fromkeys(found))


def described(batch: Mapping[str, Any], decisions: Decisions | None) -> list[dict[str, Any]]:
    """A line for each image of a batch, in the order in which they were given."""
    lines = {item["index"]: {"path": item["path"], "error": item["error"]} for item in batch["broken"]}
    for index, path, decision in zip(batch["index"], batch["path"], decisions or (), strict=True):
        lines[int(index)] = {
            "path": path,
            "decision": "accept" if decision.accepted else "reject",
            "label": decision.label,
            "class": decision.label_name,
            "score": decision.score,
            "p_value": decision.p_value,
            "diffused": decision.diffused,
        }
    return [lines[index] for index in sorted(lines)]


def _batches(detector: Detector, paths: list[str], given: argparse.Namespace) -> Iterable[dict[str, Any]]:
    if not paths:
        return []
    return DataLoader(
        Prepared(Files(paths), detector.transform, "", in_distribution=False),
        given.batch_size,
        num_workers=given.workers if len(paths) > given.batch_size else 0,
        collate_fn=collate,
    )


def _draw(folder: Path, lines: list[dict[str, Any]], batch: Mapping[str, Any], decisions: Decisions) -> None:
    """The pictures of a batch, by the number of the image, since paths may be anything."""
    assert decisions.images is not None
    assert decisions.reconstructions is not None
    of_path = {line["path"]: line for line in lines}
    for i, (index, path, decision) in enumerate(zip(batch["index"], batch["path"], decisions, strict=True)):
        file = folder / f"{int(index):06}_{Path(path).stem[:80]}.png"
        verdict = "accepted" if decision.accepted else "rejected"
        caption = f"{verdict} as {decision.label_name}: {decisions.score_name} {decision.score:.4g}, p {decision.p_value:.3g}"
        reconstruction = decisions.reconstructions[i] if decision.diffused else None
        draw_decision(decisions.images[i], reconstruction, caption, file)
        of_path[path]["picture"] = str(file)


def _done(out: Path | None, resume: bool) -> set[str]:
    """Paths that the file has already; a line that an interruption has cut off is taken out of it."""
    if out is None or not out.exists():
        return set()
    if not resume:
        raise InputError(f"{out}: is there already; --resume adds to it what it lacks, or give another name")
    text = out.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        out.write_text(whole, encoding="utf-8")
    try:
        if out.suffix.lower() == ".csv":
            return {line["path"] for line in csv.DictReader(whole.splitlines())}
        return {json.loads(line)["path"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{out}: holds something else than scores; give another name") from error


@contextmanager
def _writer(out: Path | None) -> Iterator[Any]:
    """A function that writes a line; each is on its way to the disk before the next batch."""
    if out is None:
        yield lambda line: print(json.dumps(line), flush=True)
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        begun = out.exists() and out.stat().st_size > 0
        with out.open("a", encoding="utf-8", newline="") as file:
            yield _csv_lines(file, begun) if out.suffix.lower() == ".csv" else _json_lines(file)
    except OSError as error:
        raise InputError(f"{out}: could not be written ({error.strerror or error}); --resume goes on with it") from error


def _json_lines(file: TextIO) -> Any:
    def write(line: Mapping[str, Any]) -> None:
        file.write(json.dumps(line) + "\n")
        file.flush()

    return write


def _csv_lines(file: TextIO, begun: bool) -> Any:
    writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
    if not begun:
        writer.writeheader()

    def write(line: Mapping[str, Any]) -> None:
        writer.writerow(line)
        file.flush()

    return write


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A function to call with how many images are done: a bar on a terminal, a line every half minute elsewhere."""
    began, done, told = time.monotonic(), 0, time.monotonic()
    console = Console(stderr=True)

    def rate() -> str:
        per_second = done / max(time.monotonic() - began, 1e-9)
        left = f", {(total - done) / per_second:.0f} s left" if per_second else ""
        return f"{per_second:.1f} images/s{left}"

    columns = (TextColumn("scoring"), BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, console=console, expand=True, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate="")

        def tick(count: int) -> None:
            nonlocal done, told
            done += count
            bar.update(task, completed=done, rate=rate())
            if not console.is_terminal and time.monotonic() - told >= 30:
                told = time.monotonic()
                print(f"{done}/{total} images, {rate()}", file=sys.stderr, flush=True)

        yield tick


if __name__ == "__main__":
    main(sys.argv[1:])
