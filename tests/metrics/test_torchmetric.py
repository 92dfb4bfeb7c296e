"""The torchmetrics class gives the exact table, on one process and on two, in one order."""

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from helpers.results import sklearn_metrics

from diffguard_pl import InputError, OODMetrics
from diffguard_pl.metrics.detection import DetectionMetrics, auroc
from diffguard_pl.metrics.table import ScoreTable, result_rows


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("centre", [-500.0, 0.0, 500.0])
def test_large_scores_a_millionth_apart_are_distinguished(centre):
    ind, ood = tensor([centre + 2e-6, centre + 4e-6]), tensor([centre + 1e-6, centre + 3e-6])
    metric = OODMetrics(["score"], ["ind", "ood"])
    metric.update(torch.cat([ind, ood])[:, None], torch.tensor([0, 0, 1, 1]))
    assert metric.compute()[0].metrics == pytest.approx(
        sklearn_metrics(ind.numpy(), ood.numpy()), abs=1e-12
    )
    assert auroc(ind, ood) == 0.75


def test_batches_in_any_order_give_the_table_of_the_whole():
    generator = np.random.default_rng(0)
    values, members = generator.normal(size=(90, 2)) * [1, 300], np.repeat([0, 1, 2], 30)
    settings = ["a", "b"], ["ind", "x", "y"], {"x": "far", "y": "far"}
    metric = OODMetrics(*settings)
    for part in np.array_split(generator.permutation(90), 7):
        metric.update(tensor(values[part]), torch.tensor(members[part]))
    assert metric.compute() == result_rows(ScoreTable(*settings, values, members))
    assert metric.sizes == {"ind": 30, "x": 30, "y": 30}


def test_one_dataset_alone_and_scores_of_another_shape_are_refused():
    with pytest.raises(InputError, match=r"datasets: .*at least one other"):
        OODMetrics(["a"], ["digits"])
    with pytest.raises(InputError, match=r"must be \[N, 1\] and \[N\]"):
        OODMetrics(["a"], ["digits", "photos"]).update(torch.zeros(3, 2), torch.zeros(3))


def test_the_table_has_one_order_however_the_images_were_distributed():
    values, members, indices = torch.randn(30, 2).double(), torch.arange(30) % 3, torch.arange(30)
    tables = []
    for parts in ([slice(None)], [slice(1, None, 2), slice(0, None, 2)]):
        metric = OODMetrics(["a", "b"], ["ind", "near", "far"])
        for part in parts:
            metric.update(values[part], members[part], indices[part])
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
    part = slice(0, 7) if rank == 0 else slice(7, None)  # uneven
    metric.update(values[part, None], members[part])
    assert metric.compute()[0].metrics == pytest.approx(expected, abs=1e-12)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one(tmp_path):
    generator = np.random.default_rng(1)
    values, members = generator.normal(size=50) * 500, (np.arange(50) % 3 == 0).astype(int)
    expected = sklearn_metrics(values[members == 0], values[members == 1])
    mp.spawn(
        _one_rank,
        (2, str(tmp_path / "meeting"), tensor(values), torch.tensor(members), expected),
        nprocs=2,
    )
