"""The command ``diffguard-pl checkpoints list | fetch NAME... | convert FILE_OR_NAME [OUT]``."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import one_line_errors

if TYPE_CHECKING:
    from rich.table import Table


def main(args: list[str] | None = None) -> None:
    """List, fetch or convert checkpoints.

    Args:
        args: Arguments of the command. Defaults to those of the process.
    """
    given = parser().parse_args(args)
    with one_line_errors("the same command continues"):
        if given.action == "list":
            from rich.console import Console

            Console().print(table())
        elif given.action == "fetch":
            from ..checkpoints.registry import resolve

            for name in given.name:
                print(resolve(name))
        else:
            from ..backbones.save_converted import save_converted

            print(save_converted(given.checkpoint, given.out, given.architecture))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl checkpoints", description="List, fetch and convert checkpoints."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | fetch | convert")
    actions.add_parser(
        "list", help="list the published checkpoints and which of them are in the cache"
    )
    fetch = actions.add_parser("fetch", help="download checkpoints into the cache")
    fetch.add_argument("name", nargs="+", help="name from the list, URL, or hf://owner/name")
    convert = actions.add_parser(
        "convert", help="write a checkpoint as diffusers modules in safetensors"
    )
    convert.add_argument("checkpoint", help="file, or a name as for fetch")
    convert.add_argument(
        "out",
        nargs="?",
        type=Path,
        help="folder to write (default: the cache, where the checkpoint's name finds it)",
    )
    convert.add_argument(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="YAML or JSON file with the settings that differ from the family's defaults",
    )
    return parser


def table() -> "Table":
    """Return a table of the published checkpoints."""
    from rich.filesize import decimal
    from rich.table import Column, Table

    from ..checkpoints.converted import converted_folder, is_up_to_date
    from ..checkpoints.registry import PUBLISHED, cached_path

    shipped = "The digits weights come with the package: Apache-2.0, like the code."
    table = Table(Column("name", no_wrap=True), caption=shipped)
    for column in ("description", "licence", "size", "in the cache", "converted"):
        table.add_column(column)
    for published in PUBLISHED.values():
        path = cached_path(published)
        size = path.stat().st_size if path and path.is_file() else published.size
        is_converted = published.architecture and is_up_to_date(
            converted_folder(published.name), path, published.architecture
        )
        table.add_row(
            published.name,
            published.description,
            published.licence,
            decimal(size) if size else "?",
            "yes" if path else "",
            "yes" if is_converted else "",
        )
    return table
