"""The command ``diffguard-pl score --detector detector.json photo.jpg folder/``.

It accepts or rejects images. Each image yields a line of JSON (or of CSV) as soon as it is decided,
in the given order:

    {"path": "a.jpg", "decision": "reject", "label": 3, "class": "3", "score": 0.41, ...}
    {"path": "broken.jpg", "error": "not an image that Pillow can read"}

Exit status: 0 if all images were decided, 1 on an error, 2 on invalid arguments, `UNREADABLE` if
some images could not be read, `REJECTED` if ``--fail-on-ood`` is given and an image was rejected.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..deploy.decision_log import DecisionLog, as_json, decision_lines, printable
from ..deploy.path_stream import image_paths
from ..errors import InputError
from .detector_options import add_detector_options, hash_of_detector, load_detector
from .errors import START_AGAIN, one_line_errors
from .output import lost_output

# torch takes seconds: it is imported once the arguments are known to be valid
if TYPE_CHECKING:
    from ..deploy.decisions import Decisions
    from ..deploy.detector import Detector

UNREADABLE, REJECTED = 3, 4
SECONDS_BETWEEN_LINES = 30
"""Interval of progress lines where standard error is not a terminal."""
NAMED = 3
"""Number of files that are named of those that were passed over."""


def main(args: list[str] | None = None) -> None:
    """Accept or reject images.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given = parser().parse_args(args)
    go_on = f"--resume continues {given.out}" if given.out else START_AGAIN
    with one_line_errors(go_on):
        try:
            counts = score(given)
        except BrokenPipeError:
            sys.exit(0)  # the reader has seen enough, as head does
    if counts.rejected and given.fail_on_ood:
        sys.exit(REJECTED)
    if counts.unreadable:
        sys.exit(UNREADABLE)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl score", description="Accept or reject images with a detector file."
    )
    add = parser.add_argument
    add(
        "image",
        nargs="+",
        help="image file, folder of images, or - for paths on standard input, one per line, "
        "which are processed as they arrive",
    )
    add_detector_options(parser)
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="file of the decisions: CSV if its name ends in .csv, otherwise JSON Lines "
        "(default: JSON Lines on standard output)",
    )
    add("--resume", action="store_true", help="skip the images that --out already contains")
    add(
        "--pictures",
        type=Path,
        metavar="FOLDER",
        help="draw each image, its reconstruction and their difference into this folder",
    )
    add(
        "--fail-on-ood",
        action="store_true",
        help=f"exit with status {REJECTED} if an image was rejected (and {UNREADABLE} if one could "
        "not be judged)",
    )
    add(
        "--batch-size",
        type=int,
        default=32,
        help="number of images read at a time (default: %(default)s)",
    )
    add(
        "--workers",
        type=int,
        default=2,
        help="number of processes that read images (default: %(default)s)",
    )
    return parser


@dataclass
class Counts:
    """Numbers of images by outcome, including those that ``--out`` already contained."""

    total: int = 0
    rejected: int = 0
    unreadable: int = 0
    passed_over: int = 0

    def add(self, line: Mapping[str, Any]) -> None:
        self.total += 1
        self.rejected += line.get("decision") == "reject"
        self.unreadable += "error" in line

    def summary(self, earlier: int) -> str:
        """Describe the counts in one line, and how many are of earlier runs."""
        accepted = self.total - self.rejected - self.unreadable
        text = f"{accepted} accepted, {self.rejected} rejected"
        if self.unreadable:
            text += f", {self.unreadable} could not be read"
        if self.passed_over:
            text += f", {self.passed_over} other files passed over"
        if earlier:
            text += f"; {earlier} of these in earlier runs"
        return text


def score(given: argparse.Namespace) -> Counts:
    """Decide on all images.

    Args:
        given: Parsed arguments of the command.

    Raises:
        InputError: An argument is invalid, or an output cannot be written.
    """
    _check_arguments(given)
    # Open the outputs first: loading the detector takes seconds.
    pictures = DecisionPictures(given.pictures) if given.pictures else None
    with ExitStack() as stack:
        log = None
        if given.out:
            log = stack.enter_context(closing(DecisionLog(given.out, given.resume)))
        detector = load_detector(given)
        # From here on the log holds the decisions of this detector, those of earlier runs included.
        if log:
            log.begin(hash_of_detector(given.detector), detector.tpr)
        earlier = log.paths if log else set()
        counts = Counts(len(earlier), log.rejected, log.unreadable) if log else Counts()

        # Paths on standard input arrive in groups, so that the number of images is not yet known.
        show_progress = stack.enter_context(_progress())
        decided = expected = 0
        passed_over: list[str] = []
        for group in image_paths(given.image, passed_over):
            paths = {
                path: reason for path, reason in group.items() if printable(path) not in earlier
            }
            expected += len(paths)
            show_progress(decided, expected)
            for lines in _decide(detector, paths, pictures, given):
                for line in lines:
                    if log:
                        log.write(line)
                    else:
                        print(as_json(line), flush=True)
                        _check_output(given.fail_on_ood)
                    counts.add(line)
                decided += len(lines)
                show_progress(decided, expected)
    counts.passed_over = len(passed_over)
    if passed_over:
        print(_name_passed_over(passed_over), file=sys.stderr)
    print(counts.summary(len(earlier)), file=sys.stderr)
    return counts


def _name_passed_over(paths: Sequence[str]) -> str:
    """Name the first files that were passed over."""
    named = ", ".join(printable(path) for path in paths[:NAMED])
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return f"passed over (not images, or hidden folders): {named}{more}"


def _check_output(status_matters: bool) -> None:
    """Raise an error if the decisions that standard output got are lost.

    Args:
        status_matters: Whether the exit status is wanted even where nobody reads the decisions.
    """
    failure = lost_output()
    if isinstance(failure, BrokenPipeError):
        if not status_matters:
            raise failure
    elif failure is not None:
        reason = getattr(failure, "strerror", None) or failure
        raise InputError(f"standard output: cannot be written ({reason}); use --out FILE")


def _check_arguments(given: argparse.Namespace) -> None:
    if given.batch_size < 1:
        raise InputError(f"--batch-size {given.batch_size}: must be at least 1")
    if given.workers < 0:
        raise InputError(f"--workers {given.workers}: must be at least 0")
    if given.resume and not given.out:
        raise InputError("--resume: needs the file to continue; add --out FILE")


def _decide(
    detector: "Detector",
    paths: Mapping[str, str | None],
    pictures: "DecisionPictures | None",
    given: argparse.Namespace,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines of each batch of images."""
    from ..deploy.image_batches import image_batches

    batches = image_batches(paths, detector.preparation, given.batch_size, given.workers)
    for batch, decisions in detector.decide(batches):
        lines = decision_lines(batch, decisions)
        if pictures and decisions is not None:
            pictures.draw([lines[int(index)] for index in batch["index"]], decisions)
        yield list(lines.values())


class DecisionPictures:
    """Folder of one picture per decided image. A picture that cannot be written ends nothing.

    Args:
        folder: Folder, created if needed.

    Raises:
        InputError: The folder cannot be written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.reported: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"--pictures {folder}: cannot be written ({reason})") from error

    def draw(self, lines: list[dict[str, Any]], decisions: "Decisions") -> None:
        """Draw the pictures of a batch, and record them in the lines of its images."""
        from ..report.pictures import draw_decision

        assert decisions.images is not None
        for i, (line, decision) in enumerate(zip(lines, decisions, strict=True)):
            file = self.folder / picture_name(line["path"])
            verdict = "accepted" if decision.accepted else "rejected"
            caption = (
                f"{verdict} as {decision.label_name}: "
                f"{decisions.score_name} {decision.score:.4g}, p {decision.p_value:.3g}"
            )
            reconstruction = None
            if decision.diffused and decisions.reconstructions is not None:
                reconstruction = decisions.reconstructions[i].cpu()
            try:
                draw_decision(decisions.images[i].cpu(), reconstruction, caption, file)
            except InputError as error:
                self._report(file, error)
            else:
                line["picture"] = printable(str(file))

    def _report(self, file: Path, error: InputError) -> None:
        """Report a picture that could not be written, once for each reason."""
        reason = getattr(error.__cause__, "strerror", None) or str(error)
        if reason not in self.reported:
            self.reported.add(reason)
            print(
                f"{file}: cannot be written ({reason}); not repeated for further pictures",
                file=sys.stderr,
            )


def picture_name(path: str) -> str:
    """Return the file name of an image's picture: the same in every run, and of no other image."""
    stem = Path(path).stem.encode()[:80].decode(errors="ignore")  # a name has at most 255 bytes
    return f"{stem}_{sha256(path.encode()).hexdigest()[:12]}.png"


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show progress on standard error: a bar on a terminal, now and then a line elsewhere.

    Yields:
        Function of the number of decided images and the number of images known so far.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("scoring"),
        BarColumn(None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    began = last_line = time.monotonic()
    with Progress(
        *columns, console=console, expand=True, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None, rate="")

        def show(done: int, total: int) -> None:
            nonlocal last_line
            now = time.monotonic()
            per_second = done / max(now - began, 1e-9)
            rate = f"{per_second:.1f} images/s"
            if per_second:
                rate += f", {(total - done) / per_second:.0f} s left"
            bar.update(task, completed=done, total=total, rate=rate)
            if not console.is_terminal and now - last_line >= SECONDS_BETWEEN_LINES:
                last_line = now
                print(f"{done}/{total} images, {rate}", file=sys.stderr, flush=True)

        yield show
