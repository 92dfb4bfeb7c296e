"""What baselines and path scores have in common: scores by name, some of them fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from ..errors import InputError, choose
from ..names import RESERVED
from .hyperparameters import WithHyperparameters
from .import_path import import_object

S = TypeVar("S", bound=WithHyperparameters)


class NamedScores(nn.Module, Generic[S]):
    """Scores with hyper-parameters by name, and the tensors that some are fitted to.

    Args:
        settings: Hyper-parameters by the given name; see :func:`settings_by_name`.
        scores: The scores built from them, in the same order.

    Attributes:
        names: Names of the scores.
        hyperparameters: Hyper-parameters of each score, defaults included, by the given name.

    Raises:
        InputError: Two scores have the same name.
    """

    setting: ClassVar[str]

    def __init__(self, settings: Mapping[str, Any], scores: Sequence[S]):
        super().__init__()
        self._scores = {score.name: score for score in scores}
        if len(self._scores) < len(scores):
            raise InputError(f"{self.setting}: two of {[*settings]} have the same name; rename one")
        self.names = list(self._scores)
        self.hyperparameters = {
            given: asdict(score) for given, score in zip(settings, scores, strict=True)
        }
        for key in self._keys():
            self.register_buffer(key, None)

    @property
    def fits(self) -> dict[str, bool]:
        """Whether each score is fitted to in-distribution images, by name."""
        return {name: bool(score.tensors) for name, score in self._scores.items()}

    @property
    def unfitted(self) -> list[str]:
        """Names of the scores that have yet to be fitted."""
        return [
            name
            for name, score in self._scores.items()
            if any(tensor is None for tensor in self._fitted(score).values())
        ]

    @property
    def fitted(self) -> bool:
        """Whether every score that is fitted has been."""
        return not self.unfitted

    def _key(self, score: S, tensor: str) -> str:
        """Return the name of the buffer that holds a fitted tensor."""
        raise NotImplementedError

    def _keys(self) -> list[str]:
        """List the names of all buffers; two scores may share one."""
        keys = [
            self._key(score, tensor) for score in self._scores.values() for tensor in score.tensors
        ]
        return list(dict.fromkeys(keys))

    def _fitted(self, score: S) -> dict[str, Any]:
        """Return the fitted tensors of a score by name; None where they have yet to be fitted."""
        return {tensor: getattr(self, self._key(score, tensor)) for tensor in score.tensors}

    def _device_of_fitted(self) -> torch.device | None:
        """Return the device for fitted tensors that are loaded; None: that of the file."""
        return None

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        """Load fitted tensors, whose shapes only the state knows."""
        # Make room first: strict loading copies into tensors of equal shape.
        for key in self._keys():
            value: Tensor | None = state_dict.get(prefix + key)
            if value is not None:
                setattr(self, key, torch.empty_like(value, device=self._device_of_fitted()))
        super()._load_from_state_dict(state_dict, prefix, *args)


def settings_by_name(
    setting: str,
    names: Sequence[str] | Mapping[str, Mapping[str, Any] | None],
    registry: Mapping[str, str],
) -> Mapping[str, Mapping[str, Any] | None]:
    """Return hyper-parameters by name of what a setting lists.

    Args:
        setting: Name of the setting.
        names: Names, or a mapping from these to hyper-parameters; None stands for the defaults.
        registry: Known scores by name.

    Raises:
        InputError: It is no list of names, each once.
    """
    if isinstance(names, str) or len(set(names)) < len(names):
        raise InputError(
            f"{setting}: {names!r} must be a list of names, each once; choose from: "
            f"{', '.join(registry)}"
        )
    return names if isinstance(names, Mapping) else dict.fromkeys(names)


def find_registered(base: type[S], name: str, registry: Mapping[str, str], package: str) -> type[S]:
    """Return the class of a score by its name.

    Args:
        base: Base class of the scores.
        name: Name of the score.
        registry: By name, the module in the package and the class.
        package: Package of the modules.

    Raises:
        InputError: The name is unknown.
    """
    choose(base.kind, name, list(registry))
    module, _, of = registry[name].partition(".")
    found: type[S] = getattr(import_module(f"{package}.{module}"), of)
    return found


def find_imported(
    base: type[S], path: str, registry: Mapping[str, str], attributes: Sequence[str]
) -> type[S]:
    """Return the class of a score outside this package by its import path.

    Args:
        base: Base class of the scores.
        path: Import path.
        registry: Names that are taken.
        attributes: Class attributes that it must have, the first one its name.

    Raises:
        InputError: It does not lead to a subclass with these attributes and a name of its own.
    """
    found: Any = import_object(base.setting, path)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(
            f"{base.setting}: {path} must be a subclass of {base.__module__}.{base.__name__}"
        )
    has_all = all(hasattr(found, attribute) for attribute in attributes)
    if not (has_all and isinstance(getattr(found, attributes[0]), str)):
        plural = "s" if len(attributes) > 1 else ""
        listed = " and ".join(attributes)
        raise InputError(f"{base.setting}: {path} must have the class attribute{plural} {listed}")
    if found.name in (*registry, *RESERVED):
        raise InputError(f"{base.setting}: {path}: the name {found.name!r} is reserved; rename it")
    return found
