"""Configs by name, and a detector or a data module from one."""

import json
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning import LightningDataModule

from .config_errors import construction_errors, reason
from .datamodules import import_data_modules
from .datamodules.base import OODData
from .diffguard import DiffGuard
from .errors import InputError
from .evaluation.module import DiffGuardModule


def config_names() -> list[str]:
    """The configs that come with the package."""
    folder = _folder()
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
    )


def config_name(path: Path) -> str:
    """What a config file is called: a shipped one by its name, such as ``oracle/gdm``, another by its file's."""
    path, folder = path.resolve().with_suffix(""), _folder().resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def find_config(name: str | Path) -> Path:
    """A config file by path, or by the name of a shipped one, with or without ``.yaml``.

    Raises:
        InputError: neither; lists what there is.
    """
    shipped = _folder() / f"{str(name).removesuffix('.yaml')}.yaml"
    for path in (Path(name), Path(f"{name}.yaml"), shipped):
        if path.is_file():
            return path
    raise InputError(
        f"no config {str(name)!r}; the shipped ones are: {', '.join(config_names())}; or give the path of a file"
    )


def with_bases(name: str | Path) -> list[Path]:
    """The files that make up a config: the one that it names as its ``base`` (a name, or a path from its folder), then itself.

    Raises:
        InputError: a file is missing, is not YAML, or builds on itself.
    """
    files = [find_config(name)]
    while base := read(files[0]).get("base"):
        if not isinstance(base, str):
            raise InputError(
                f"config {files[0]}: base: expected the name or path of one config, found {base!r}"
            )
        beside = files[0].parent / base
        file = beside if beside.is_file() else find_config(base)
        if file.resolve() in [known.resolve() for known in files]:
            raise InputError(f"config {file}: builds on itself")
        files.insert(0, file)
    return files


def read(file: Path) -> dict[str, Any]:
    """The content of a config file."""
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"config {file}: not YAML: " + " ".join(str(error).split())) from error
    if not isinstance(content, dict):
        raise InputError(f"config {file}: expected settings, found {type(content).__name__}")
    return content


def load(config: str | Path, **settings: Any) -> DiffGuard:
    """The detector of a config.

    Args:
        config: path or name of a config file; of its settings only ``model`` is used.
        settings: override those of ``model``, in dotted form with ``__`` for the dot: ``guidance__scale=5``.

    Example:
        >>> detector = load("digits_ldm", guidance__scale=5)
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffGuardModule, "model")
    flags = [
        f"--model.{name.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]
    return _instantiate(parser, [config], "model", flags).diffguard.eval()


def module_from(settings: Mapping[str, Any]) -> DiffGuardModule:
    """The module of the settings that a config has under ``model``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffGuardModule, "model")
    try:
        parsed = parser.parse_object({"model": dict(settings)})
    except ArgumentError as error:
        raise InputError(reason(error)) from error
    with construction_errors():
        return parser.instantiate_classes(parsed).model


def load_data(configs: Sequence[str | Path], flags: Sequence[str] = ()) -> OODData:
    """The data module of a config, or of several that override each other.

    Args:
        configs: paths or names of config files; of their settings only ``data`` is used.
        flags: override those, as on the command line: ``--data.root=/datasets``.
    """
    import_data_modules()  # so that a config may name its classes without their package
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    return OODData.wrap(_instantiate(parser, configs, "data", flags))


def _instantiate(
    parser: ArgumentParser, configs: Sequence[str | Path], section: str, flags: Sequence[str]
) -> Any:
    settings = None
    try:
        for file in (file for config in configs for file in with_bases(config)):
            if section in read(file):
                settings = parser.parse_object({section: read(file)[section]}, settings)
        if settings is None:
            raise InputError(f"config {configs[0]}: says nothing of {section}")
        parsed = parser.parse_args(list(flags), namespace=settings)
    except ArgumentError as error:
        raise InputError(f"config {configs[0]}: {reason(error)}") from error
    with construction_errors():
        return parser.instantiate_classes(parsed)[section]


def _folder() -> Path:
    return Path(str(resources.files(f"{__package__}.configs")))
