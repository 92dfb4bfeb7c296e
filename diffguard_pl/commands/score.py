"""Accept or reject image files: ``diffguard-pl score --detector detector.json photo.jpg folder/``.

A line of JSON (or of CSV) for each image, as soon as it is decided, in the order given:

    {"path": "photo.jpg", "decision": "reject", "label": 3, "class": "3", "score": 0.41, "p_value": 0.0046, "diffused": true}
    {"path": "broken.jpg", "error": "not an image that Pillow can read"}

Exit status: 0, all images were decided; 1, an error; 2, a mistake in the arguments; 3, some images could not be read; 4, with
``--fail-on-ood``, at least one was rejected. With ``--resume`` what ``--out`` holds already counts; it has to be of the same
detector and tpr, which ``.OUT.detector`` beside it says.
"""

import argparse
import math
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..deploy.decision_log import COLUMNS, DecisionLog, as_json, printable
from ..errors import InputError
from ..runs.signals import GracefulTermination, StopRequested

if (
    TYPE_CHECKING
):  # torch and Lightning take seconds; they are imported when the arguments are known to be right
    from ..deploy.decisions import Decision, Decisions
    from ..deploy.detector import Detector

__all__ = ["COLUMNS", "REJECTED", "Files", "described", "files", "main", "score"]
UNREADABLE, REJECTED = 3, 4
"""Exit statuses: some images could not be read; with ``--fail-on-ood``, one was rejected."""
MOMENT, PART = 0.05, 1 << 20
"""Paths on the standard input are taken together that come within so many seconds of the first, up to so many bytes."""


class Files:
    """A data set of image files by path; nothing is read before it is asked for.

    Args:
        paths: of the images, and why one cannot be had, where that is known.
        upright: turn images as their EXIF orientation says.
    """

    def __init__(self, paths: Mapping[str, str | None], upright: bool = False):
        self.paths, self.why, self.upright = list(paths), paths, upright

    def __len__(self) -> int:
        return len(self.paths)

    def path_of(self, index: int) -> str:
        """The path of an image."""
        return self.paths[index]

    def __getitem__(self, index: int) -> Any:
        from ..datamodules.reading import read_image

        if why := self.why[self.paths[index]]:
            raise InputError(why)
        return read_image(Path(self.paths[index]), self.upright)


def main(args: list[str] | None = None) -> None:
    """Decide as the command line says."""
    given = _parser().parse_args(args)
    try:
        with GracefulTermination().handling_signals():
            rejected, broken = score(given)
    except (StopRequested, KeyboardInterrupt) as stopped:
        signum = getattr(stopped, "signum", signal.SIGINT)
        again = f"; --resume goes on with {given.out}" if given.out else ""
        print(f"stopped by {signal.Signals(signum).name}{again}", file=sys.stderr)
        sys.exit(128 + signum)
    except BrokenPipeError:  # the reader has seen enough, as head does
        sys.stdout = open("/dev/null", "w")  # noqa: SIM115  the interpreter flushes it once more
        sys.exit(0)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except Exception:
        from .errors import one_line_errors

        with one_line_errors():
            raise
    if rejected and given.fail_on_ood:
        sys.exit(REJECTED)
    if broken:
        sys.exit(UNREADABLE)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="diffguard-pl score", description="Accept or reject images."
    )
    parser.add_argument(
        "image",
        nargs="+",
        help="an image, a folder of images, or - for paths on the standard input, which are decided on as they come",
    )
    parser.add_argument(
        "--detector",
        required=True,
        metavar="FILE",
        help="that diffguard-pl calibrate has written",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON Lines, or CSV by its name; none: JSON Lines on standard output",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="draw each image, its reconstruction and their difference",
    )
    parser.add_argument(
        "--fail-on-ood",
        action="store_true",
        help=f"exit status {REJECTED} if an image was rejected",
    )
    parser.add_argument(
        "--tpr",
        type=float,
        help="another share of in-distribution images to accept than the detector's",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="leave out the images that --out has already, and add to it",
    )
    parser.add_argument("--device", help="cpu, cuda, ...; none: a GPU if there is one")
    parser.add_argument(
        "--slots", type=int, help="rows of the diffusion model's batch, see model.slots"
    )
    parser.add_argument(
        "--batch-size", type=int, default=32, help="images that are read at a time (32)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes that read images (2)")
    return parser


def score(given: argparse.Namespace) -> tuple[int, int]:
    """Decide on all images; returns how many were rejected, and how many could not be read, those that ``--out`` had included."""
    if given.batch_size < 1 or given.workers < 0:
        raise InputError(
            f"--batch-size {given.batch_size}, --workers {given.workers}: expected at least 1 and 0"
        )
    if given.resume and not given.out:
        raise InputError("--resume: goes on with the file of --out; give that, too")
    if given.pictures:
        _check_folder(given.pictures)
    with ExitStack() as opened:
        out = (
            opened.enter_context(closing(DecisionLog(given.out, given.resume)))
            if given.out
            else None
        )
        import pooch

        from ..deploy.detector import Detector
        from ..deploy.detector_file import shipped_detector

        changes = {} if given.slots is None else {"slots": given.slots}
        detector = Detector.load(given.detector, device=given.device, **changes)
        if given.tpr is not None:
            detector.with_tpr(given.tpr)
        if out:
            out.begin(
                pooch.file_hash(shipped_detector(given.detector) or Path(given.detector)),
                detector.tpr,
            )
        done = out.paths if out else set()
        rejected, broken, decided, known = (
            out.rejected if out else 0,
            out.unreadable if out else 0,
            0,
            0,
        )
        tell = opened.enter_context(_progress())
        draw = _drawing(given.pictures) if given.pictures else None
        for part in files(given.image):
            paths = {path: why for path, why in part.items() if printable(path) not in done}
            known += len(paths)
            tell(decided, known)
            for batch, decisions in detector.decide(_batches(detector, paths, given)):
                lines = described(batch, decisions)
                if draw and decisions is not None:
                    draw(lines, batch, decisions)
                for line in lines.values():
                    out.write(line) if out else print(as_json(line), flush=True)
                    rejected += line.get("decision") == "reject"
                    broken += "error" in line
                decided += len(lines)
                tell(decided, known)
    print(
        f"{len(done) + decided - rejected - broken} accepted, {rejected} rejected"
        + (f", {broken} could not be read" if broken else "")
        + (f"; {len(done)} of them before" if done else ""),
        file=sys.stderr,
    )
    return rejected, broken


def files(given: Sequence[str]) -> Iterator[dict[str, str | None]]:
    """Paths of images: those given, of folders all in them, and for ``-`` those on the standard input; each once, in order.

    Yields:
        Of each path, why it cannot be read, where that is known: a folder without images. All in one part, but for the standard
        input: a part is what has come by the time that it is asked for.

    Raises:
        InputError: no image at all.
    """
    from ..datamodules.sources import ImageDirectory

    found: set[str] = set()
    part: dict[str, str | None] = {}

    def new() -> dict[str, str | None]:
        """Those of the part that no earlier one had."""
        fresh = {path: why for path, why in part.items() if path not in found}
        found.update(fresh)
        part.clear()
        return fresh

    why_not = "there are no images to score"
    for name in given:
        if name == "-":
            for lines in chain([[]], arriving()):  # what was given before it is not to wait
                part |= dict.fromkeys(map(os.fsdecode, lines))
                yield new()
        elif os.path.isdir(name):  # of a name that no file can have, too
            try:
                entries = ImageDirectory(os.path.abspath(name), follow_links=True).entries
                part |= dict.fromkeys(str(Path(name) / entry.path) for entry in entries)
            except InputError as error:
                part[name] = why_not = str(error)
        else:
            part[name] = None
    if not found and all(part.values()):
        raise InputError(why_not)
    yield new()


def arriving() -> Iterator[list[bytes]]:
    """Lines of the standard input that are not empty, as many at a time as are there: a pipe that waits keeps none of them."""
    try:
        source = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError) as error:
        raise InputError(
            "-: the standard input is closed; give it the paths of images, one a line"
        ) from error
    rest, ended = b"", False
    while not ended:
        read = os.read(source, 1 << 16) if select.select([source], [], [])[0] else b""
        ended, last = not read, time.monotonic() + MOMENT
        while (
            not ended
            and len(read) < PART
            and select.select([source], [], [], max(0, last - time.monotonic()))[0]
        ):
            more = os.read(source, 1 << 16)
            read, ended = read + more, not more
        whole, _, rest = (rest + read, b"", b"") if ended else (rest + read).rpartition(b"\n")
        if len(rest) > PART:
            raise InputError(
                f"-: the standard input has a line of more than {PART:,} bytes; give it the paths of images, one a line"
            )
        if lines := [
            line for line in (line.rstrip(b"\r") for line in whole.split(b"\n")) if line.strip()
        ]:
            yield lines


def described(batch: Mapping[str, Any], decisions: "Decisions | None") -> dict[int, dict[str, Any]]:
    """A line for each image of a batch by its number, in the order in which they were given."""
    lines = {
        item["index"]: {"path": item["path"], "error": item["error"]}
        for item in batch["unreadable"]
    }
    for index, path, decision in zip(batch["index"], batch["path"], decisions or (), strict=True):
        lines[int(index)] = {"path": path} | _described(decision)
    return {index: lines[index] for index in sorted(lines)}


def _described(decision: "Decision") -> dict[str, Any]:
    """What JSON has no number for is null, and said."""
    score_, p_value = decision.score, decision.p_value
    line = {
        "decision": "accept" if decision.accepted else "reject",
        "label": decision.label,
        "class": decision.label_name,
        "score": score_ if math.isfinite(score_) else None,
        "p_value": p_value if math.isfinite(score_) and math.isfinite(p_value) else None,
        "diffused": decision.diffused,
    }
    if not math.isfinite(score_):
        line["note"] = (
            "its score is not a number" if math.isnan(score_) else f"its score is {score_}"
        )
    return line


def _batches(
    detector: "Detector", paths: Mapping[str, str | None], given: argparse.Namespace
) -> Iterable[dict[str, Any]]:
    from torch.utils.data import DataLoader

    from ..datamodules.reading import Prepared, collate

    if not paths:
        return []
    images: Any = Files(paths, detector.preparation.upright)
    return DataLoader(
        Prepared(images, detector.preparation.transform, "", in_distribution=False),
        given.batch_size,
        num_workers=given.workers if len(paths) > given.batch_size else 0,
        collate_fn=collate,
        worker_init_fn=_leave_signals,
    )


def _leave_signals(worker: int) -> None:
    """To the process that the worker reads for: it ends the workers. The first SIGTERM may have been for the whole group."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda signum, frame: signal.signal(signum, signal.SIG_DFL))


def _check_folder(folder: Path) -> None:
    """Images take long; that their pictures have no place is to be said before."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"--pictures {folder}: cannot be written ({error.strerror or error})"
        ) from error


def _drawing(folder: Path) -> Any:
    """A function that draws the pictures of a batch; one that cannot be written is said on stderr, once for each reason."""
    from ..report.pictures import draw_decision

    said = set()

    def draw(
        lines: Mapping[int, dict[str, Any]], batch: Mapping[str, Any], decisions: "Decisions"
    ) -> None:
        assert decisions.images is not None
        assert decisions.reconstructions is not None
        for i, (index, decision) in enumerate(zip(batch["index"], decisions, strict=True)):
            file = folder / _picture_name(lines[int(index)]["path"])
            verdict = "accepted" if decision.accepted else "rejected"
            caption = f"{verdict} as {decision.label_name}: {decisions.score_name} {decision.score:.4g}, p {decision.p_value:.3g}"
            reconstruction = decisions.reconstructions[i].cpu() if decision.diffused else None
            try:
                draw_decision(decisions.images[i].cpu(), reconstruction, caption, file)
                lines[int(index)]["picture"] = printable(str(file))
            except InputError as error:
                why = getattr(error.__cause__, "strerror", None) or str(error)
                if why not in said:
                    print(
                        f"{file}: the picture could not be written ({why}); nor can others, perhaps",
                        file=sys.stderr,
                    )
                    said.add(why)

    return draw


def _picture_name(path: str) -> str:
    """Of an image, the same in every session and of no other; a file name has at most 255 bytes."""
    stem = Path(path).stem.encode()[:80].decode(errors="ignore")
    return f"{stem}_{sha256(path.encode()).hexdigest()[:12]}.png"


@contextmanager
def _progress() -> Iterator[Any]:
    """A function to call with how many images are done and how many are known of: a bar, or a line every half minute in a log."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    began = told = time.monotonic()
    console = Console(stderr=True)
    columns = (
        TextColumn("scoring"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    with Progress(
        *columns, console=console, expand=True, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None, rate="")

        def tell(done: int, total: int) -> None:
            nonlocal told
            per_second = done / max(time.monotonic() - began, 1e-9)
            rate = f"{per_second:.1f} images/s" + (
                f", {(total - done) / per_second:.0f} s left" if per_second else ""
            )
            bar.update(task, completed=done, total=total, rate=rate)
            if not console.is_terminal and time.monotonic() - told >= 30:
                told = time.monotonic()
                print(f"{done}/{total} images, {rate}", file=sys.stderr, flush=True)

        yield tell
