"""Scores with hyper-parameters, which settings give by name and which are checked."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from ..errors import InputError, choose

Score = TypeVar("Score", bound="WithHyperparameters")


@dataclass(frozen=True)
class WithHyperparameters:
    """A score whose fields are its hyper-parameters.

    Attributes:
        setting: Setting of the model that lists such scores.
        kind: What such a score is called.
        name: Name of the score in settings and tables.
    """

    setting: ClassVar[str]
    kind: ClassVar[str]
    name: ClassVar[str]

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensors that the score is fitted to; empty if it is not fitted."""
        return ()

    @classmethod
    def from_settings(cls: type[Score], settings: Mapping[str, Any] | None) -> Score:
        """Build the score from hyper-parameters by name; those absent or None are the defaults.

        Raises:
            InputError: A hyper-parameter is unknown or out of range.
        """
        where = f"{cls.setting}: {cls.name}"
        if settings is None:
            settings = {}
        if not isinstance(settings, Mapping):
            raise InputError(f"{where}: {settings!r} must be a mapping of hyper-parameters or null")
        known = {
            parameter.name: parameter
            for parameter in fields(cls)
            if not parameter.metadata.get("derived")
        }
        if settings and not known:
            raise InputError(f"{where} has no hyper-parameters; remove {[*settings]}")
        values = {}
        for name, value in settings.items():
            choose(f"hyper-parameter of {cls.kind} {cls.name}", name, list(known))
            if value is not None:
                values[name] = cls._checked(name, value, known[name].metadata)
        return cls(**values)

    @classmethod
    def _checked(cls, name: str, value: Any, metadata: Mapping[str, Any]) -> Any:
        """Return a hyper-parameter as its type; an `InputError` if it is out of range."""
        if "choices" in metadata:
            choose(f"{name} of {cls.kind} {cls.name}", str(value), metadata["choices"])
        if "allowed" not in metadata:
            return value
        many = isinstance(value, list | tuple) and metadata["many"]
        numbers = list(value) if many else [value]
        is_right = bool(numbers) and all(
            _is_number(number) and metadata["allowed"](number) for number in numbers
        )
        if not is_right or (metadata["many"] and not many):
            raise InputError(
                f"{cls.setting}: {cls.name}: {name}={value} must be {metadata['expected']}"
            )
        converted = [metadata["kind"](number) for number in numbers]
        return tuple(converted) if many else converted[0]


def parameter(
    default: Any,
    allowed: Callable[[float], bool],
    expected: str,
    kind: type = float,
    many: bool = False,
) -> Any:
    """Declare a hyper-parameter: a field of a score with a range.

    Args:
        default: Its default.
        allowed: Whether a number is in range.
        expected: The range in words.
        kind: Type of the number.
        many: Whether it is a list of such numbers, which becomes a tuple.
    """
    metadata = {"allowed": allowed, "expected": expected, "kind": kind, "many": many}
    return field(default=default, metadata=metadata)


def derived(default: Any) -> Any:
    """Declare a field that follows from the hyper-parameters, and that settings do not give."""
    return field(default=default, metadata={"derived": True})


def positive(default: float) -> Any:
    """Declare a hyper-parameter above 0."""
    return parameter(default, lambda value: value > 0, "a number above 0")


def count(default: int | None) -> Any:
    """Declare a hyper-parameter that is a whole number, 1 or more."""

    def allowed(value: float) -> bool:
        return value >= 1 and float(value).is_integer()

    return parameter(default, allowed, "a whole number, 1 or more", int)


def fractions(*default: float) -> Any:
    """Declare a hyper-parameter that is a list of numbers from 0 to 1."""
    return parameter(default, _is_fraction, "a list of numbers from 0 to 1", float, many=True)


def fraction(default: float) -> Any:
    """Declare a hyper-parameter that is a number from 0 to 1."""
    return parameter(default, _is_fraction, "a number from 0 to 1")


def _is_fraction(value: float) -> bool:
    return 0 <= value <= 1


def choice(default: str, names: Sequence[str]) -> Any:
    """Declare a hyper-parameter that is one of several names."""
    return field(default=default, metadata={"choices": list(names)})


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)
