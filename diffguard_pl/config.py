"""Configs by name, and a detector from one."""

import json
from argparse import ArgumentError
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from .detector import DiffGuard
from .errors import InputError
from .module import DiffGuardModule


def config_names() -> list[str]:
    """The configs that come with the package."""
    folder = _folder()
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """A config file by path, or by the name of a shipped one, with or without ``.yaml``.

    Raises:
        InputError: neither; lists what there is.
    """
    shipped = _folder() / f"{str(name).removesuffix('.yaml')}.yaml"
    for path in (Path(name), Path(f"{name}.yaml"), shipped):
        if path.is_file():
            return path
    raise InputError(f"no config {str(name)!r}; the shipped ones are: {', '.join(config_names())}; or give the path of a file")


def load(config: str | Path, **settings: Any) -> DiffGuard:
    """The detector of a config.

    Args:
        config: path or name of a config file; of its settings only ``model`` is used.
        settings: override those of ``model``, in dotted form with ``__`` for the dot: ``guidance__scale=5``.

    Example:
        >>> detector = load("digits_ldm", guidance__scale=5)
    """
    model = yaml.safe_load(find_config(config).read_text()).get("model", {})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffGuardModule, "model")
    flags = [
        f"--model.{name.replace('__', '.')}={value if isinstance(value, str) else json.dumps(value)}"
        for name, value in settings.items()
    ]
    try:
        parsed = parser.parse_args(flags, namespace=parser.parse_object({"model": model}))
    except ArgumentError as error:
        raise InputError(f"config {config}: " + " ".join(str(error).split())) from error
    return parser.instantiate_classes(parsed).model.detector.eval()


def _folder() -> Path:
    return Path(str(resources.files(f"{__package__}.configs")))
