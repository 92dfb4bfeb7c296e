"""Detection metrics agree with scikit-learn for any real scores, on one process and on two."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers.results import sklearn_figures
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl import InputError, OODMetrics
from diffguard_pl.metrics.detection import (
    DetectionMetrics,
    aupr,
    auroc,
    detection_metrics,
    fpr_at_tpr,
)

scores = st.lists(st.floats(-600, 600) | st.integers(-3, 3).map(float), min_size=1, max_size=40)


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(scores, scores)
def test_as_scikit_learn(ind, ood):
    assert detection_metrics(tensor(ind), tensor(ood)) == pytest.approx(
        sklearn_figures(np.array(ind), np.array(ood)), abs=1e-12
    )


@pytest.mark.parametrize("centre", [-500.0, 0.0, 500.0])
def test_large_scores_a_millionth_apart_are_told_apart(centre):
    ind, ood = tensor([centre + 2e-6, centre + 4e-6]), tensor([centre + 1e-6, centre + 3e-6])
    metric = OODMetrics(["score"], ["ind", "ood"])
    metric.update(torch.cat([ind, ood])[:, None], torch.tensor([0, 0, 1, 1]))
    assert metric.compute()[0].metrics == pytest.approx(
        sklearn_figures(ind.numpy(), ood.numpy()), abs=1e-12
    )
    assert auroc(ind, ood) == 0.75


@given(scores, scores, st.floats(0.1, 10))
def test_only_the_order_of_scores_counts(ind, ood, scale):
    def rank(values):
        distinct = sorted({*ind, *ood})
        return tensor([scale * distinct.index(v) for v in values])

    assert detection_metrics(tensor(ind), tensor(ood)) == detection_metrics(rank(ind), rank(ood))


@given(scores, scores)
def test_swapping_the_sets_mirrors_auroc(ind, ood):
    assert auroc(tensor(ind), tensor(ood)) == pytest.approx(
        1 - auroc(tensor(ood), tensor(ind)), abs=1e-12
    )


def test_perfect_useless_and_inverted_scores():
    high, low = tensor([3.0, 4.0]), tensor([1.0, 2.0])
    assert detection_metrics(high, low) == (1, 0, 1, 1, 0)
    assert auroc(low, high) == 0
    assert fpr_at_tpr(low, high) == 1
    assert auroc(tensor([1.0] * 5), tensor([1.0] * 7)) == 0.5


@pytest.mark.parametrize("metric", [auroc, aupr, fpr_at_tpr])
def test_scores_of_one_kind_only_or_nan_are_refused(metric):
    with pytest.raises(InputError, match="none of out-of-distribution"):
        metric(tensor([1.0]), tensor([]))
    with pytest.raises(InputError, match="1 of 3 scores are NaN"):
        metric(tensor([1.0, float("nan")]), tensor([0.0]))


def test_a_table_of_several_sets_and_scores_with_group_means():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(90, 2)) * [1, 300]
    members = np.repeat([0, 1, 2], 30)
    metric = OODMetrics(["a", "b"], ["ind", "x", "y"], {"x": "far", "y": "far"})
    for part in np.array_split(generator.permutation(90), 7):
        metric.update(tensor(values[part]), torch.tensor(members[part]))
    rows = {(row.group, row.dataset, row.score): row.metrics for row in metric.compute()}
    assert list(rows) == [
        ("far", name, score) for name in ("x", "y", "mean") for score in ("a", "b")
    ]
    for k, score in enumerate("ab"):
        each = [sklearn_figures(values[members == 0, k], values[members == d, k]) for d in (1, 2)]
        assert rows["far", "x", score] == pytest.approx(each[0], abs=1e-12)
        assert rows["far", "mean", score] == pytest.approx(tuple(np.mean(each, axis=0)), abs=1e-12)


def test_a_nan_score_spoils_its_own_rows_alone():
    metric = OODMetrics(["good", "broken"], ["ind", "ood"])
    metric.update(tensor([[1.0, 1.0], [0.0, float("nan")]]), torch.tensor([0, 1]))
    good, broken = metric.compute()
    assert good.metrics.auroc == 1
    assert np.isnan(broken.metrics).all()


def test_an_empty_set_has_no_figures_and_does_not_cost_the_others_theirs():
    metric = OODMetrics(["a"], ["digits", "letters", "photos"], {"letters": "far", "photos": "far"})
    metric.update(tensor([[1.0], [0.0]]), torch.tensor([0, 2]))
    letters, photos, mean = metric.compute()
    assert np.isnan(letters.metrics).all()
    assert photos.metrics.auroc == 1
    assert np.isnan(mean.metrics).all()
    assert metric.sizes == {"digits": 1, "letters": 0, "photos": 1}


def test_a_run_without_in_distribution_scores_or_with_one_set_is_refused():
    metric = OODMetrics(["a"], ["digits", "letters"])
    metric.update(tensor([[1.0]]), torch.tensor([1]))
    with pytest.raises(InputError, match="in-distribution set digits"):
        metric.compute()
    with pytest.raises(InputError, match="at least one other"):
        OODMetrics(["a"], ["digits"])


def test_the_table_has_one_order_however_the_images_were_shared_out():
    values, members, indices = torch.randn(30, 2).double(), torch.arange(30) % 3, torch.arange(30)
    tables = []
    for shares in ([slice(None)], [slice(1, None, 2), slice(0, None, 2)]):
        metric = OODMetrics(["a", "b"], ["ind", "near", "far"])
        for share in shares:
            metric.update(values[share], members[share], indices[share])
        metric.compute()
        tables.append(metric.table)
    assert (tables[0].values == tables[1].values).all()
    assert (tables[0].of(1) == values[members == 1].numpy()).all()


def _one_rank(
    rank: int,
    world_size: int,
    meeting: str,
    values: torch.Tensor,
    members: torch.Tensor,
    expected: DetectionMetrics,
) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=world_size
    )
    metric = OODMetrics(["a"], ["ind", "ood"])
    share = slice(0, 7) if rank == 0 else slice(7, None)  # uneven
    metric.update(values[share, None], members[share])
    assert metric.compute()[0].metrics == pytest.approx(expected, abs=1e-12)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_figures_of_one(tmp_path):
    generator = np.random.default_rng(1)
    values, members = generator.normal(size=50) * 500, (np.arange(50) % 3 == 0).astype(int)
    expected = sklearn_figures(values[members == 0], values[members == 1])
    mp.spawn(
        _one_rank,
        (2, str(tmp_path / "meeting"), tensor(values), torch.tensor(members), expected),
        nprocs=2,
    )
