"""What configs and detector files may import: an allow-list, and what the user adds to it.

These files name classes and functions, which are imported and called. A file that names anything
else than the packages below is refused before any import. Names that the user types, on the command
line or in Python, are not checked.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import InputError, beginning

ALLOWED = frozenset(
    {
        *("diffguard_pl", "datamodules", "callbacks"),
        *("torch", "torchvision", "torchmetrics", "pytorch_lightning", "lightning"),
        *("timm", "diffusers", "transformers", "open_clip", "pytorch_ood", "piq"),
    }
)
"""Top-level packages from which any file may import."""
VARIABLE = "DIFFGUARD_TRUST"
"""Environment variable with further packages, separated by commas."""
FLAG = "--trust"
IMPORTING = frozenset(
    {
        *("class_path", "model", "backbone", "guidance", "data", "discrepancies", "baselines"),
        *("path_scores", "second_network", "zero_shot", "logger", "callbacks", "strategy"),
        *("plugins", "profiler", "sampler", "transform", "dict_kwargs"),
    }
)
"""Settings whose values, or whose keys, may be import paths."""
PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
"""An import path: names with dots between them."""
FILE_ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors", ".json", ".yaml", ".yml", ".txt", ".csv")


def trust(*packages: str) -> None:
    """Let configs and detector files import from further packages, in this process and its own.

    Args:
        packages: Names of top-level packages or modules.

    Raises:
        InputError: A name is no name of a package.
    """
    for package in packages:
        if not re.fullmatch(r"[^\W\d]\w*", package):
            raise InputError(
                f"{FLAG} {package!r}: must be the name of a package, such as my_package"
            )
    os.environ[VARIABLE] = ",".join(sorted({*_added(), *packages}))


def without_flags(args: Sequence[str]) -> list[str]:
    """Return arguments of a command without ``--trust PACKAGE``, which is put into effect.

    Raises:
        InputError: A name is missing, or is no name of a package.
    """
    left, rest = [], list(args)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if option != FLAG:
            left.append(option + equals + value)
            continue
        if not equals:
            value = rest.pop(0) if rest else ""
        trust(*value.split(","))
    return left


def check_imports(settings: Any, file: Any) -> None:
    """Refuse settings of a file that would import from a package that is not trusted.

    Raises:
        InputError: The first such name, and the remedy.
    """
    allowed = ALLOWED | _added()
    for key, path in _import_paths(settings, ""):
        package = path.partition(".")[0]
        if package not in allowed:
            raise InputError(
                f"{file}: {key} names {beginning(path)}, and importing it would run code of "
                f"{package}, which is not trusted; if you trust it, add {FLAG} {package}, or in "
                f"Python diffguard_pl.trust({package!r})"
            )


def _added() -> frozenset[str]:
    """Return the packages that the user has added."""
    return frozenset(name for name in os.environ.get(VARIABLE, "").split(",") if name)


def _import_paths(settings: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the settings that may be import paths, and their values."""
    name = key.rpartition(".")[2]
    if isinstance(settings, Mapping):
        for part, value in settings.items():
            if name in IMPORTING and isinstance(part, str) and PATH.fullmatch(part):
                yield key, part
            yield from _import_paths(value, f"{key}.{part}".lstrip("."))
    elif isinstance(settings, list | tuple):
        for value in settings:
            yield from _import_paths(value, key)
    elif isinstance(settings, str) and name in IMPORTING:
        is_file = name != "class_path" and settings.lower().endswith(FILE_ENDINGS)
        if PATH.fullmatch(settings) and not is_file:
            yield key, settings
