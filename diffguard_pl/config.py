"""Configs: finding them by name, and building a DiffGuard or a data module from one.

jsonargparse and Lightning are imported where they are needed, so that a detector file loads without
Lightning.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .config_errors import check_values, import_classes, parser_errors
from .errors import InputError
from .trusted import check_imports
from .yaml_file import make_parser_read_settings, read_yaml

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from .datamodules.base import OODData
    from .diffguard import DiffGuard

EVALUATION_SETTINGS = ("oracle", "fusion", "cascade", "tf32")
"""Settings of ``model`` that only an evaluation (``DiffGuardModule``) has, not ``DiffGuard``."""

_LISTED: ContextVar[dict[Any, list[str]] | None] = ContextVar("_LISTED", default=None)
"""Import paths of subclasses that were listed during the current parse."""

WHOLE = ("early_stop", "baselines", "path_scores")
"""Settings whose values are mappings of any names: a later one replaces the earlier one."""


def config_names() -> list[str]:
    """Return the names of the configs that the package contains, such as ``oracle/gdm``."""
    folder = _folder()
    files = folder.rglob("*.yaml")
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in files)


def config_name(path: Path) -> str:
    """Return the name of a shipped config such as ``oracle/gdm``, or the stem of any other file."""
    path, folder = path.resolve().with_suffix(""), _folder().resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.name


def find_config(name: str | Path) -> Path:
    """Find a config file by path or by the name of a shipped config, with or without ``.yaml``.

    Raises:
        InputError: neither exists; the message lists the shipped configs.
    """
    shipped = _folder() / f"{str(name).removesuffix('.yaml')}.yaml"
    for path in (Path(name), Path(f"{name}.yaml"), shipped):
        if path.is_file():
            return path
    names = ", ".join(config_names())
    raise InputError(f"unknown config {str(name)!r}; choose from: {names}; or give a path")


def with_bases(name: str | Path) -> list[Path]:
    """List the files of a config: its bases, outermost first, then itself.

    Args:
        name: Path or name of a config. Its ``base`` is a name, or a path relative to its folder.

    Raises:
        InputError: a file is missing, is not YAML, or builds on itself.
    """
    files = [find_config(name)]
    while base := read(files[0]).get("base"):
        if not isinstance(base, str):
            raise InputError(
                f"config {files[0]}: base: must be the name or path of one config, not {base!r}"
            )
        beside = files[0].parent / base
        file = beside if beside.is_file() else find_config(base)
        if file.resolve() in [known.resolve() for known in files]:
            raise InputError(f"config {file}: base: builds on itself; remove the circle")
        files.insert(0, file)
    return files


def settings_of(name: str | Path) -> dict[str, Any]:
    """Return the settings of a config with those of its bases, merged as the parser merges them.

    Neither classes nor defaults are looked up, so nothing heavy is imported.

    Raises:
        InputError: a file is missing, is not YAML, or builds on itself.
    """
    merged: dict[str, Any] = {}
    for file in with_bases(name):
        merged = _merged(merged, read(file))
    merged.pop("base", None)
    return merged


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of a later file, which win."""
    merged = dict(below)
    for name, value in above.items():
        earlier = merged.get(name)
        if isinstance(earlier, dict) and isinstance(value, dict) and name not in WHOLE:
            value = _merged(earlier, value)
        merged[name] = value
    return merged


def read(file: Path) -> dict[str, Any]:
    """Read the settings of a config file, without those of its base.

    Raises:
        InputError: the file is not YAML, or is not a mapping.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise InputError(f"config {file}: must map settings, not be a {type(content).__name__}")
    _check_classes(content, f"config {file}: ")
    check_imports(content, f"config {file}")
    return content


def _check_classes(content: Any, prefix: str) -> None:
    """Raise an `InputError` where a ``class_path`` is no name, or ``init_args`` no mapping."""
    items = content.items() if isinstance(content, dict) else enumerate(content)
    for name, value in items:
        if name == "class_path" and not isinstance(value, str):
            raise InputError(f"{prefix}{name}: must be the name of a class, not {value!r}")
        if name == "init_args" and not isinstance(value, dict | None):
            raise InputError(f"{prefix}{name}: must map settings, not be {value!r}")
        if isinstance(value, dict | list):
            _check_classes(value, f"{prefix}{name}.")


def load(config: str | Path, **settings: Any) -> "DiffGuard":
    """Build the DiffGuard of a config.

    Args:
        config: Path or name of a config file. Only its settings of ``model`` are used.
        settings: Overrides of these, with ``__`` for the dot: ``guidance__scale=5``.

    Raises:
        InputError: the config or a setting is unknown or invalid.

    Example:
        >>> diffguard = load("digits_ldm", guidance__scale=5)
    """
    flags = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flags.append(f"--model.{name.replace('__', '.')}={text}")
    sections = [_method_settings(section) for section in _sections([config], "model")]
    with parser_errors(f"config {config}: "):
        return _build(_model_parser(), "model", sections, flags).eval()


def diffguard_from(settings: Mapping[str, Any]) -> "DiffGuard":
    """Build a DiffGuard from the settings that a config has under ``model``.

    Raises:
        InputError: a setting is unknown or invalid.
    """
    with parser_errors():
        return _build(_model_parser(), "model", [_method_settings(settings)])


def load_data(configs: Sequence[str | Path], flags: Sequence[str] = ()) -> "OODData":
    """Build the data module of a config, or of several where later ones override earlier ones.

    Args:
        configs: Paths or names of config files. Only their settings of ``data`` are used.
        flags: Overrides of these in the form of the command line: ``--data.root=/datasets``.

    Raises:
        InputError: a config or a setting is unknown or invalid.
    """
    from jsonargparse import ArgumentParser
    from pytorch_lightning import LightningDataModule

    from .datamodules import import_data_modules
    from .datamodules.base import OODData

    import_data_modules()  # configs name their classes without the package
    make_parser_read_settings()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    with parser_errors(f"config {configs[0]}: "):
        return OODData.wrap(_build(parser, "data", _sections(configs, "data"), flags))


def _model_parser() -> "ArgumentParser":
    from jsonargparse import ArgumentParser

    from .diffguard import DiffGuard

    import_classes("model.guidance")
    make_parser_read_settings()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffGuard, "model")
    return parser


def _method_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in EVALUATION_SETTINGS}


def _sections(configs: Sequence[str | Path], name: str) -> list[dict[str, Any]]:
    """Read one section of configs and their bases; later ones override earlier ones."""
    files = [file for config in configs for file in with_bases(config)]
    sections = [content[name] for content in map(read, files) if name in content]
    if not sections:
        raise InputError(f"config {configs[0]}: has no settings of {name}; add {name}")
    return sections


def _build(
    parser: "ArgumentParser",
    name: str,
    sections: Sequence[Mapping[str, Any]],
    flags: Sequence[str] = (),
) -> Any:
    """Instantiate a parser's argument ``name``; later sections override earlier ones."""
    settings = None
    with subclasses_listed_once():
        for section in sections:
            settings = parser.parse_object({name: section}, settings)
        parsed = parser.parse_args(list(flags), namespace=settings)
        check_values(parser, parsed)
    return parser.instantiate_classes(parsed)[name]


@contextmanager
def subclasses_listed_once() -> Iterator[None]:
    """Have jsonargparse list the subclasses of a class once, and not again for each value.

    For the name of a classifier, such as ``resnet50``, it looks through thousands of subclasses of
    ``torch.nn.Module``, some twenty times in a config.
    """
    _make_parser_remember_subclasses()
    token = _LISTED.set({})
    try:
        yield
    finally:
        _LISTED.reset(token)


@cache  # once in a process
def _make_parser_remember_subclasses() -> None:
    from jsonargparse import _typehints

    list_subclasses = getattr(_typehints, "get_all_subclass_paths", None)
    if list_subclasses is None:  # another version of jsonargparse
        return

    def list_or_remember(cls: Any, **options: bool) -> list[str]:
        listed, key = _LISTED.get(), (cls, *sorted(options.items()))
        if listed is None:
            return list_subclasses(cls, **options)
        if key not in listed:
            listed[key] = list_subclasses(cls, **options)
        return listed[key]

    _typehints.get_all_subclass_paths = list_or_remember  # type: ignore[assignment]


def _folder() -> Path:
    return Path(str(resources.files(f"{__package__}.configs")))
