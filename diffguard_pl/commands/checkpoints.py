"""The checkpoint command: ``diffguard-pl checkpoints list | fetch NAME... | convert FILE_OR_NAME [OUT]``.

``convert`` writes a checkpoint as diffusers modules in safetensors, which other tools read too and which hold no pickle. Whoever
names the checkpoint then gets that copy, for as long as file and architecture stay as they are.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from safetensors.torch import save_file

from .. import __version__
from ..backbones.convert_guided_diffusion import load_guided_diffusion
from ..backbones.convert_latent_diffusion import load_latent_diffusion
from ..checkpoints.architectures import (
    Architecture,
    GuidedDiffusionArchitecture,
    LatentDiffusionArchitecture,
)
from ..checkpoints.converted import (
    RECORD_FILE,
    conversion_record,
    converted_folder,
    is_up_to_date,
    known_architecture,
    parse_architecture,
)
from ..checkpoints.registry import PUBLISHED, cached_path, resolve
from ..checkpoints.tensors import load_tensors
from ..errors import InputError
from ..runs.files import apply_umask


def main(args: list[str] | None = None) -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(
        prog="diffguard-pl checkpoints", description="Fetch and convert checkpoints."
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="list | fetch | convert"
    )
    commands.add_parser("list", help="the checkpoints with a name, and which of them are here")
    fetching = commands.add_parser("fetch", help="download checkpoints into the cache")
    fetching.add_argument("name", nargs="+", help="a name of the list, a URL, or hf://owner/name")
    converting = commands.add_parser(
        "convert", help="write a checkpoint as diffusers modules in safetensors"
    )
    converting.add_argument("checkpoint", help="a file, or anything that can be fetched")
    converting.add_argument(
        "out",
        nargs="?",
        type=Path,
        help="folder to write; by default where the copy is found by itself",
    )
    converting.add_argument(
        "--architecture",
        type=Path,
        metavar="FILE",
        help="YAML or JSON with its settings that are no default",
    )
    given = parser.parse_args(args)
    try:
        if given.command == "list":
            Console().print(_table())
        elif given.command == "fetch":
            for name in given.name:
                print(resolve(name))
        else:
            print(convert(given.checkpoint, given.out, given.architecture))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


def _table() -> Table:
    table = Table("name", "what", "size", "in the cache", "converted")
    for published in PUBLISHED.values():
        path = cached_path(published)
        size = path.stat().st_size if path and path.is_file() else published.size
        converted = published.architecture and is_up_to_date(
            converted_folder(published.name), path, published.architecture
        )
        marks = ("yes" if there else "" for there in (path, converted))
        table.add_row(published.name, published.description, decimal(size) if size else "?", *marks)
    return table


def convert(
    checkpoint: str | Path, out: Path | None = None, architecture: Path | None = None
) -> Path:
    """Write the copy of a checkpoint in diffusers' layout.

    Args:
        checkpoint: a guided-diffusion or latent-diffusion file, or what else :func:`~diffguard_pl.checkpoints.registry.resolve` takes.
        out: folder to write; none: where the copy is found by itself. A copy that is there already is replaced.
        architecture: a YAML or JSON file with its settings; none: those of the name, or the defaults.

    Returns:
        The folder.

    Raises:
        InputError: not a checkpoint of either family, an architecture that does not fit, or a folder that is something else.
    """
    path = resolve(checkpoint)
    if path.is_dir():
        raise InputError(f"checkpoint {path}: a folder already, there is nothing to convert")
    kind = _kind(path)
    a = _read(kind, architecture) if architecture else known_architecture(checkpoint, kind)
    note = conversion_record(path, a) | {"diffguard_pl": __version__}
    out = out or converted_folder(checkpoint)
    with _whole_folder(out) as folder:
        if isinstance(a, GuidedDiffusionArchitecture):
            load_guided_diffusion(path, a).save_pretrained(folder)
        else:
            unet, embedding, first_stage = load_latent_diffusion(path, a)
            unet.save_pretrained(folder / "unet")
            first_stage.save_pretrained(folder / "vqvae")
            (folder / "class_embedding").mkdir()
            save_file(embedding.state_dict(), folder / "class_embedding" / "model.safetensors")
        (folder / RECORD_FILE).write_text(json.dumps(note, indent=2))
    return out


def _kind(path: Path) -> type[Architecture]:
    """Which family a file is of, by its keys."""
    keys = list(load_tensors(path))
    if any(key.startswith("model.diffusion_model.") for key in keys):
        return LatentDiffusionArchitecture
    if any(key.startswith("input_blocks.") for key in keys):
        return GuidedDiffusionArchitecture
    what = (
        "neither guided diffusion (input_blocks...) nor latent diffusion (model.diffusion_model...)"
    )
    raise InputError(f"checkpoint {path}: {what}; its first key is {next(iter(keys), 'none')}")


def _read(kind: type[Architecture], file: Path) -> Architecture:
    try:
        return parse_architecture(kind, yaml.safe_load(file.read_text()), str(file))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(
            f"architecture {file}: cannot be read as YAML or JSON ({' '.join(str(error).split())})"
        ) from error


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """A folder to fill that takes its name when it is full."""
    if out.exists() and not (out / RECORD_FILE).is_file():
        raise InputError(
            f"{out} is there already and is no converted checkpoint; remove it, or give another folder to write"
        )
    part = out.with_name(f"{out.name}.{os.getpid()}.part")
    part.mkdir(parents=True)
    try:
        yield part
        for file in filter(Path.is_file, part.rglob("*")):
            apply_umask(file)
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
