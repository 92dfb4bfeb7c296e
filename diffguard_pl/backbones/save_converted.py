"""Conversion of an original checkpoint to diffusers modules in safetensors, without pickles.

The copy is used in place of the checkpoint as long as file and architecture stay the same.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file

from .. import __version__
from ..checkpoints.architectures import (
    LatentDiffusionArchitecture,
    NoisyClassifierArchitecture,
    UNetArchitecture,
)
from ..checkpoints.converted import (
    RECORD_FILE,
    conversion_record,
    converted_folder,
    known_architecture,
    parse_architecture,
)
from ..checkpoints.registry import find_published, resolve
from ..errors import InputError
from ..runs.files import apply_umask
from ..runs.lock import locked
from ..yaml_file import read_yaml
from .convert_latent_diffusion import load_latent_diffusion
from .layouts import layout_of
from .pixel import load_pixel_unet


def save_converted(
    checkpoint: str | Path, out: Path | None = None, architecture: Path | None = None
) -> Path:
    """Write a copy of a checkpoint in diffusers' layout.

    Args:
        checkpoint: Guided-diffusion, latent-diffusion or DDPM file, or anything else that
            :func:`~diffguard_pl.checkpoints.registry.resolve` takes.
        out: Folder to write; a copy in it is replaced. Defaults to where the copy is looked for.
        architecture: YAML or JSON file with the settings of the architecture. Defaults to those
            known for the name of the checkpoint, or the family's defaults.

    Returns:
        The folder.

    Raises:
        InputError: The file is not a checkpoint of a known family, its architecture does not fit,
            or the folder holds something else.
    """
    published = find_published(checkpoint)
    if published and isinstance(published.architecture, NoisyClassifierArchitecture):
        raise InputError(
            f"checkpoint {checkpoint}: is a classifier, which is used as it is; nothing needs to "
            "be converted"
        )
    path = resolve(checkpoint)
    if path.is_dir():
        raise InputError(f"checkpoint {path}: is a folder; nothing needs to be converted")
    kind = layout_of(path)
    if architecture is not None:
        settings = _read_architecture(kind, architecture)
    else:
        settings = known_architecture(checkpoint, kind) or kind()
    record = conversion_record(path, settings) | {"diffguard_pl": __version__}
    out = out or converted_folder(checkpoint)
    with _complete_folder(out) as folder:
        if not isinstance(settings, LatentDiffusionArchitecture):
            load_pixel_unet(path, settings).save_pretrained(folder)
        else:
            unet, embedding, first_stage = load_latent_diffusion(path, settings)
            unet.save_pretrained(folder / "unet")
            first_stage.save_pretrained(folder / "vqvae")
            (folder / "class_embedding").mkdir()
            save_file(embedding.state_dict(), folder / "class_embedding" / "model.safetensors")
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2), encoding="utf-8")
    return out


def _read_architecture(kind: type[UNetArchitecture], file: Path) -> UNetArchitecture:
    return parse_architecture(kind, read_yaml(file, "architecture"), str(file))


@contextmanager
def _complete_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to fill, which takes its name once it is complete."""
    if out.exists() and not (out / RECORD_FILE).is_file():
        raise InputError(
            f"{out}: exists and is not a converted checkpoint; remove it, or choose another folder"
        )
    unfinished = out.with_name(f"{out.name}.part")
    with locked(out):
        # a process that was killed may have left a folder of this name
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        try:
            yield unfinished
            for file in filter(Path.is_file, unfinished.rglob("*")):
                apply_umask(file)
            shutil.rmtree(out, ignore_errors=True)
            unfinished.rename(out)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
