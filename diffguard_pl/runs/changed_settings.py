"""Settings of a run that differ from those of a shipped config."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from .record import score_settings, setting_names

DEFAULT = "the default"
"""Stands for the value of a setting that a config does not have."""


class Change(NamedTuple):
    """A setting of a run that differs from the config.

    Attributes:
        name: Dotted name of the setting, without ``init_args``.
        shipped: Value in the config; ``DEFAULT`` if the config leaves it at its default.
        recorded: Value in the run.
    """

    name: str
    shipped: Any
    recorded: Any

    def __str__(self) -> str:
        return f"{self.name} is {_in_words(self.recorded)}, not {_in_words(self.shipped)}"


def flat_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config that scores depend on, by dotted name.

    Names are without ``init_args``, and classes without their modules, so that two ways to write
    the same config give the same settings.
    """
    flat = {}
    values = score_settings(config)
    for name in setting_names(config):
        value = values[name]
        if name.endswith("class_path"):
            value = str(value).rpartition(".")[2]
        # A config may leave out the class of the classifier; no part of a config is empty.
        if value not in ({}, "Classifier"):
            flat[plain_name(name)] = value
    return flat


def plain_name(name: str) -> str:
    """Return the dotted name of a setting without ``init_args``."""
    return ".".join(part for part in name.split(".") if part != "init_args")


def changes(
    shipped: Mapping[str, Any], recorded: Mapping[str, Any], not_default: Iterable[str]
) -> list[Change]:
    """Return the differences between a config and a run.

    Args:
        shipped: Settings of the config, as of :func:`flat_settings`.
        recorded: Settings of the run, as of :func:`flat_settings`.
        not_default: Names of the run's settings that are not at their defaults, as of
            :func:`~diffguard_pl.runs.record.setting_names`. Settings that the config does not have
            are looked for here.
    """
    found = []
    for name, value in shipped.items():
        if recorded.get(name) != value:
            found.append(Change(name, value, recorded.get(name)))
    for name in map(plain_name, not_default):
        if name in recorded and name not in shipped:
            found.append(Change(name, DEFAULT, recorded[name]))
    return found


def _in_words(value: Any) -> str:
    return "not set" if value is None else str(value)
