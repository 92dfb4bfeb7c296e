"""The paper's tables 1 to 4, and the config and score that reproduce each of their rows.

Gao et al., ICCV 2023, arXiv 2308.07687. The figures are in ``published.csv``.
"""

import csv
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import NamedTuple

FILE = Path(__file__).with_name("published.csv")
GDM_SPREAD = 0.005
"""Largest standard deviation of four runs of GDM that the paper states, 0.13 to 0.5 percent."""
BEST_OF = ("dists", "gmsd", "l2")
"""Distances of Table 4, of which the paper shows the best for each dataset."""


class Published(NamedTuple):
    """Published result of a method on a dataset.

    Attributes:
        table: Number of the paper's table.
        ind: Name of the in-distribution dataset.
        method: Name of the method in the paper.
        dataset: Name of the out-of-distribution dataset, or ``average``.
        auroc: AUROC in [0, 1].
        fpr95: FPR@95 in [0, 1], by the original's convention; None if not published.
    """

    table: int
    ind: str
    method: str
    dataset: str
    auroc: float
    fpr95: float | None


class Kind(Enum):
    """What a score is made from, and thus which settings it depends on."""

    DISCREPANCY = "discrepancy"
    BASELINE = "baseline"
    CASCADE = "cascade"


@dataclass(frozen=True)
class Method:
    """Row of a table of the paper, and how to reproduce it.

    Attributes:
        table: Number of the paper's table.
        name: Name of the method in the paper.
        config: Name of the config.
        scores: Name of the score in the run's results; of several, the best on each dataset counts.
        kind: What the score is made from.
        spread: Standard deviation of the paper's own runs, in [0, 1]; 0 where it states none.
        not_given: Settings that the paper's text does not give; empty if it gives all.
    """

    table: int
    name: str
    config: str
    scores: tuple[str, ...]
    kind: Kind
    spread: float = 0.0
    not_given: str = ""


def _on_cifar10(name: str, config: str) -> Method:
    not_given = "steps, guidance scale, CAM cut and early stop on CIFAR-10"
    return Method(1, name, config, ("logits",), Kind.DISCREPANCY, not_given=not_given)


def _on_imagenet(table: int, name: str, config: str, spread: float = GDM_SPREAD) -> Method:
    return Method(table, name, config, ("dists",), Kind.DISCREPANCY, spread)


def _early_stop(name: str, config: str) -> Method:
    not_given = "the settings of Table 4 besides its thresholds"
    return Method(4, name, config, BEST_OF, Kind.DISCREPANCY, GDM_SPREAD, not_given)


def _baseline(table: int, name: str, config: str, score: str) -> Method:
    return Method(table, name, config, (score,), Kind.BASELINE)


def _cascade(table: int, name: str, config: str, spread: float = 0.0) -> Method:
    not_given = "how sure the baseline must be in a combination"
    return Method(table, name, config, ("cascade",), Kind.CASCADE, spread, not_given)


METHODS = (
    # Table 1, CIFAR-10. The paper states no spread.
    _baseline(1, "EBO", "combine/cifar10_energy", "energy"),
    _baseline(1, "KNN", "combine/cifar10_energy", "knn"),
    _baseline(1, "MLS", "combine/cifar10_energy", "max_logit"),
    _baseline(1, "ViM", "combine/cifar10_energy", "vim"),
    _baseline(1, "Deep ensemble", "combine/cifar10_ensemble", "ensemble"),
    _on_cifar10("DiffGuard", "cifar10"),
    _cascade(1, "DiffGuard + EBO", "combine/cifar10_energy"),
    _cascade(1, "DiffGuard + Deep ensemble", "combine/cifar10_ensemble"),
    _on_cifar10("DiffGuard (oracle)", "oracle/cifar10"),
    # Table 2, ImageNet. LDM draws no random numbers.
    _baseline(2, "EBO", "combine/gdm_max_logit", "energy"),
    _baseline(2, "KNN", "combine/gdm_knn", "knn"),
    _baseline(2, "ViM", "combine/gdm_vim", "vim"),
    _baseline(2, "MLS", "combine/gdm_max_logit", "max_logit"),
    _on_imagenet(2, "DiffGuard (GDM)", "gdm"),
    _on_imagenet(2, "DiffGuard (LDM)", "ldm", spread=0.0),
    _cascade(2, "DiffGuard (GDM) + KNN", "combine/gdm_knn", GDM_SPREAD),
    _cascade(2, "DiffGuard (GDM) + ViM", "combine/gdm_vim", GDM_SPREAD),
    _cascade(2, "DiffGuard (LDM) + ViM", "combine/ldm_vim"),
    _cascade(2, "DiffGuard (GDM) + MLS", "combine/gdm_max_logit", GDM_SPREAD),
    _cascade(2, "DiffGuard (LDM) + MLS", "combine/ldm_max_logit"),
    # Table 3, parts of the clean gradient.
    _on_imagenet(3, "GDM, no x0hat, no cutouts", "ablation/gdm_no_x0hat_no_cutouts"),
    _on_imagenet(3, "GDM, cutouts only", "ablation/gdm_cutouts_only"),
    _on_imagenet(3, "GDM, x0hat only", "ablation/gdm_x0hat_only"),
    _on_imagenet(3, "DiffGuard (GDM)", "gdm"),
    # Table 4, thresholds of the adaptive early stop.
    _early_stop("GDM, PSNR 5.89", "early_stop/psnr_5_89"),
    _early_stop("GDM, PSNR 6.39", "early_stop/psnr_6_39"),
    _early_stop("GDM, DISTS 0.39", "early_stop/dists_0_39"),
    _early_stop("GDM, DISTS 0.37", "early_stop/dists_0_37"),
    _early_stop("GDM, PSNR 6.39, DISTS 0.37", "early_stop/psnr_6_39_dists_0_37"),
)
"""Method of each row of the tables, in their order."""
NOT_OURS = ("MC-Dropout", "ConfidNet (VGG16)", "DiffNB")
"""Methods of Table 1 that other work proposed and this package does not have."""


@cache
def published() -> list[Published]:
    """Return all published results, in the order of the tables."""
    text = FILE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [
        Published(
            table=int(line["table"]),
            ind=line["ind"],
            method=line["method"],
            dataset=line["ood"],
            auroc=round(float(line["auroc"]) / 100, 4),
            fpr95=round(float(line["fpr95"]) / 100, 4) if line["fpr95"] else None,
        )
        for line in csv.DictReader(lines)
    ]


def results_of(method: Method) -> list[Published]:
    """Return the published results of a method, the average last."""
    return [row for row in published() if (row.table, row.method) == (method.table, method.name)]
