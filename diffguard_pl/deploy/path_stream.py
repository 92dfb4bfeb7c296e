"""Paths of images to decide on: files, folders, and standard input as its lines arrive."""

import codecs
import os
import select
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import InputError

GROUP_SECONDS = 0.05
"""Lines that arrive within this time of the first one are decided on together."""
GROUP_BYTES = 1 << 20
"""Number of bytes at which a group is complete, which is also the limit of a line."""
READ_BYTES = 1 << 16


def image_paths(
    names: Sequence[str], passed_over: list[str] | None = None
) -> Iterator[dict[str, str | None]]:
    """Yield the paths of images in groups, in the given order, each path once.

    Args:
        names: Files, folders (for all images below them), or ``-`` for standard input, which has
            one path per line.
        passed_over: List that the files of folders are added to that are not images, and hidden
            folders.

    Yields:
        Each path with the reason why it cannot be read; None where nothing is known against it. All
        paths form one group, except on standard input: there a group is what has arrived by the
        time it is requested.

    Raises:
        InputError: There is no image at all, or standard input cannot be read.
    """
    known: set[str] = set()
    group: dict[str, str | None] = {}
    problem = "-: standard input is empty; give it the paths of images, one per line"

    def take_group() -> dict[str, str | None]:
        new = {path: reason for path, reason in group.items() if path not in known}
        known.update(new)
        group.clear()
        return new

    for name in names:
        if name == "-":
            # What was named before must not wait for standard input.
            yield take_group()
            for lines in arriving_lines():
                group |= dict.fromkeys(map(os.fsdecode, lines))
                yield take_group()
        elif os.path.isdir(name):  # unlike Path.is_dir, False for a name that is too long
            try:
                images, others = _listed(name)
                group |= dict.fromkeys(images)
                if passed_over is not None:
                    passed_over += others
            except InputError as error:
                problem = str(error)
                group[name] = problem
        else:
            group[name] = None
    if not known and all(group.values()):
        raise InputError(problem)
    yield take_group()


def arriving_lines() -> Iterator[list[bytes]]:
    """Yield the non-empty lines of standard input, as many at a time as are available.

    Reads the descriptor itself: Python's buffer would hold lines back until it is full.

    Raises:
        InputError: Standard input is closed or not text, or a line is longer than `GROUP_BYTES`.
    """
    try:
        source = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError) as error:
        raise InputError(
            "-: standard input is closed; give it the paths of images, one per line"
        ) from error
    incomplete, is_first, has_ended = b"", True, False
    while not has_ended:
        received, has_ended = _receive(source)
        received = incomplete + received
        # The last line waits for its end, unless the input ends without one.
        if has_ended:
            complete, incomplete = received, b""
        else:
            complete, _, incomplete = received.rpartition(b"\n")
        if len(incomplete) > GROUP_BYTES:
            raise InputError(
                f"-: standard input has a line of more than {GROUP_BYTES:,} bytes; give it the "
                "paths of images, one per line"
            )
        if b"\0" in complete:
            raise InputError(
                "-: standard input has bytes of value 0, as UTF-16 or `find -print0` have; give it "
                "the paths of images in UTF-8, one per line"
            )
        if is_first:  # Windows marks files of UTF-8
            complete = complete.removeprefix(codecs.BOM_UTF8)
            is_first = not complete
        lines = [line.rstrip(b"\r") for line in complete.split(b"\n") if line.strip()]
        if lines:
            yield lines


def _receive(source: int) -> tuple[bytes, bool]:
    """Wait for bytes; return those that arrive together, and whether the input has ended."""
    select.select([source], [], [])
    received = os.read(source, READ_BYTES)
    has_ended = not received
    # A deadline, not a pause: under a steady stream there would never be a pause.
    deadline = time.monotonic() + GROUP_SECONDS
    while not has_ended and len(received) < GROUP_BYTES:
        seconds_left = max(0, deadline - time.monotonic())
        if not select.select([source], [], [], seconds_left)[0]:
            break
        more = os.read(source, READ_BYTES)
        received += more
        has_ended = not more
    return received, has_ended


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Return the images below a folder, and its other files; all begin with the given name.

    A file without the suffix of an image is one if its content is.

    Raises:
        InputError: The folder cannot be read, or has no images.
    """
    from ..datamodules.listing import list_files, no_images
    from ..datamodules.reading import is_image

    listing = list_files(Path(folder))
    unnamed = {path for path in listing.others if is_image(Path(folder, path))}
    images = sorted([*listing.images, *unnamed])
    if not images:
        raise no_images(folder)
    others = [path for path in listing.others if path not in unnamed]
    # the images as pathlib writes paths; the others with the slash of a hidden folder
    below = [str(Path(folder, path)) for path in images]
    return below, [os.path.join(folder, path) for path in others]
