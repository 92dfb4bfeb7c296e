"""Which methods of the paper a run corresponds to, by the settings in its folder.

The name of the run's config does not count: a run of ``gdm`` with ``guidance.cutouts: 0`` is one of
the paper's ablations.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runs.changed_settings import Change, changes, flat_settings
from ..runs.record import CONFIG_FILE
from ..yaml_file import read_yaml
from .published import METHODS, Kind, Method, results_of
from .results import RunResults

Configs = Mapping[str, Mapping[str, Any]]
"""Settings of shipped configs by name, including those of their bases."""

OF_DATA = ("data.class_path",)
OF_DIFFUSION = ("model.backbone.class_path", "model.guidance.class_path")
OF_CLASSIFIER = ("model.classifier.model", "model.classifier.model.class_path", "data.image_size")
ESSENTIAL = {
    Kind.DISCREPANCY: (*OF_DATA, *OF_DIFFUSION),
    Kind.BASELINE: (*OF_DATA, *OF_CLASSIFIER),
    Kind.CASCADE: (*OF_DATA, *OF_DIFFUSION, "model.cascade.baseline"),
}
"""Settings that must be those of a method's config for a run to correspond to the method."""
NEEDED = {
    Kind.DISCREPANCY: ("model.", "data.", "trainer.", "seed_everything", "shard"),
    Kind.BASELINE: ("model.classifier.", "data.", "trainer.", "seed_everything", "shard"),
    Kind.CASCADE: ("model.", "data.", "trainer.", "seed_everything", "shard"),
}
"""Beginnings of the settings that a score depends on."""
NOT_NEEDED = {
    Kind.DISCREPANCY: ("model.fusion", "model.cascade", "data.train", "data.calibration"),
    Kind.BASELINE: ("data.calibration",),
    Kind.CASCADE: ("model.cascade.skip",),
}
"""Exceptions among these."""
IRRELEVANT = ("data.root", "data.follow_links", "data.only", "model.discrepancies")
"""Settings that no result on a dataset depends on."""


@dataclass(frozen=True)
class Match:
    """Method of the paper that a run corresponds to.

    Attributes:
        method: The method.
        changes: Settings of the run that differ from the method's config.
    """

    method: Method
    changes: list[Change]

    @property
    def distance(self) -> int:
        """Number of changed settings; the thresholds of the early stop count as one."""
        names = {change.name.partition("early_stop.")[0] for change in self.changes}
        return len(names)


def recorded_settings(run: RunResults) -> dict[str, Any] | None:
    """Return all settings of a run, from its record or its saved config; None without either.

    Raises:
        InputError: The saved config cannot be read.
    """
    settings = run.record.get("config")
    path = run.folder / CONFIG_FILE
    if settings is None and path.is_file():
        settings = read_yaml(path)
    return settings if isinstance(settings, dict) else None


def names_not_default(run: RunResults) -> list[str] | None:
    """Return the names of the settings that are not at their defaults; None if not recorded."""
    names = run.record.get("not_default")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names


def matching_methods(run: RunResults, recorded: Mapping[str, Any], configs: Configs) -> list[Match]:
    """Return the methods that a run corresponds to, in the order of the tables.

    Args:
        run: Results of the run.
        recorded: All settings of the run.
        configs: Shipped configs; methods whose config is missing are left out.
    """
    candidates = []
    for method in METHODS:
        has_scores = set(method.scores) <= set(run.header.scores)
        is_same_data = results_of(method)[0].ind == run.ind
        if not has_scores or not is_same_data or method.config not in configs:
            continue
        found = changed_settings(method, configs[method.config], recorded, names_not_default(run))
        if not any(change.name in ESSENTIAL[method.kind] for change in found):
            candidates.append(Match(method, found))

    # Of the configs that differ in their settings alone, the run is of the closest. Baselines do
    # not depend on each other, so each of them has its own.
    chosen: dict[tuple[Kind, str], Match] = {}
    for candidate in candidates:
        method = candidate.method
        place = (method.kind, method.name if method.kind is Kind.BASELINE else "")
        if place not in chosen or candidate.distance < chosen[place].distance:
            chosen[place] = candidate
    return [candidate for candidate in candidates if candidate in chosen.values()]


def changed_settings(
    method: Method,
    shipped: Mapping[str, Any],
    recorded: Mapping[str, Any],
    not_default: Sequence[str] | None,
) -> list[Change]:
    """Return the settings of a run that differ from a method's config and matter to its score.

    Args:
        method: The method.
        shipped: Settings of its config.
        recorded: All settings of the run.
        not_default: Names of the run's settings that are not at their defaults, if known.
    """
    # No config asks for a part of the images.
    of_config = {"shard": None} | flat_settings(shipped)
    baseline = method.scores[0]
    if method.kind is Kind.CASCADE:
        baseline = str(of_config.get("model.cascade.baseline"))
    found = changes(
        _needed(method.kind, baseline, of_config),
        _needed(method.kind, baseline, flat_settings(recorded)),
        not_default or (),
    )
    return [change for change in found if not _is_moved_file(change)]


def _needed(kind: Kind, baseline: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a score of a kind depends on.

    Args:
        kind: Kind of the score.
        baseline: Name of the baseline that it is or uses; ignored for discrepancies.
        settings: Settings of a config or a run.
    """
    needed = {}
    for name, value in settings.items():
        if name.startswith("model.baselines"):
            # Other baselines may be computed as well.
            is_needed = name.startswith(f"model.baselines.{baseline}.")
        else:
            is_needed = name.startswith(NEEDED[kind]) and not name.startswith(NOT_NEEDED[kind])
        if is_needed and name not in IRRELEVANT:
            needed[name] = value
    # A cascade ends in the first discrepancy, unless it names another score.
    names = settings.get("model.discrepancies")
    if kind is Kind.CASCADE and isinstance(names, list):
        needed["model.discrepancies"] = names[:1]
    return needed


def _is_moved_file(change: Change) -> bool:
    """Return whether checkpoints differ in their folders alone."""
    names = [_file_names(value) for value in (change.shipped, change.recorded)]
    return change.name.endswith(".checkpoint") and names[0] == names[1]


def _file_names(value: Any) -> list[str]:
    paths = value if isinstance(value, list) else [value]
    return [str(path).replace("\\", "/").rpartition("/")[2] for path in paths]
