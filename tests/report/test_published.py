"""The paper's tables as data, and the config and score of each row."""

import pytest

from diffguard_pl.config import config_names, settings_of
from diffguard_pl.names import AVERAGE
from diffguard_pl.report.published import (
    METHODS,
    NOT_OURS,
    Kind,
    Method,
    published,
    results_of,
)
from diffguard_pl.scores.baselines.names import DEFAULT_BASELINES


def test_every_published_row_has_a_config():
    reproduced = {(method.table, method.name): method for method in METHODS}
    for row in published():
        if row.method in NOT_OURS:
            continue
        config = reproduced[row.table, row.method].config
        assert config in config_names(), f"Table {row.table}, {row.method}"


@pytest.mark.parametrize("method", METHODS, ids=lambda method: f"{method.table} {method.name}")
def test_the_config_of_a_row_has_its_score(method: Method):
    assert results_of(method)
    model = settings_of(method.config)["model"]
    if method.kind is Kind.DISCREPANCY:
        assert {*method.scores} <= {*model["discrepancies"]}
    elif method.kind is Kind.BASELINE:
        assert {*method.scores} <= {*model.get("baselines", DEFAULT_BASELINES)}
    else:
        assert method.scores == ("cascade",)
        assert model["cascade"]


OTHER_AVERAGE = {(4, "GDM, DISTS 0.37")}
"""Row whose published average, 69.83, is not the mean of its four values, 70.12."""


def test_an_average_is_that_of_the_datasets():
    """A slip of the pen in a figure would show here."""
    for table, name in dict.fromkeys((row.table, row.method) for row in published()):
        of_method = [row for row in published() if (row.table, row.method) == (table, name)]
        *datasets, average = of_method
        assert average.dataset == AVERAGE
        assert len(datasets) == (2 if table == 1 else 4)
        for metric in ("auroc", "fpr95"):
            values = [getattr(row, metric) for row in datasets]
            if None in values:
                assert table > 2
                continue
            mean = sum(values) / len(values)
            is_mean = getattr(average, metric) == pytest.approx(mean, abs=1.01e-4)
            assert is_mean == ((table, name) not in OTHER_AVERAGE), name


def test_published_values_are_those_of_the_paper():
    values = {(row.table, row.method, row.dataset): row for row in published()}
    assert len(values) == 136
    gdm = values[2, "DiffGuard (GDM)", AVERAGE]
    assert (gdm.ind, gdm.auroc, gdm.fpr95) == ("imagenet", 0.7664, 0.7936)
    assert values[1, "DiffGuard (oracle)", "tin"].auroc == 0.9852
    assert values[4, "GDM, PSNR 6.39, DISTS 0.37", "inaturalist"][4:] == (0.8106, None)
