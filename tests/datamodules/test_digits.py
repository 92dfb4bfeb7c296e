"""The embedded benchmark: its data, its weights, and that an image's score is its own."""

import pytest
import torch

import diffguard_pl
from diffguard_pl import InputError
from diffguard_pl.checkpoints.registry import SHIPPED
from diffguard_pl.datamodules.digits import (
    CLASSES,
    DigitsDataModule,
    _scans,
    digits,
    held_out,
    letters,
    photos,
    tuning,
)

CONFIGS = ["digits_ldm", "digits_gdm"]


def some(count: int) -> torch.Tensor:
    """In- and out-of-distribution images, mixed."""
    images = torch.cat(
        [digits("test").images[: count // 2], held_out().images[: count - count // 2]]
    )
    return images[torch.randperm(count, generator=torch.Generator().manual_seed(0))]


def test_the_split_is_a_partition_without_4_and_9():
    _, target, split = _scans()
    indices = [i for part in split.values() for i in part]
    assert len(indices) == len(set(indices)) == sum(d in CLASSES for d in target)
    assert {target[i] for i in indices} == set(CLASSES)
    assert {name: len(part) for name, part in split.items()} == {
        "train": 790,
        "val": 215,
        "test": 431,
    }


def test_no_tuning_image_is_in_a_test_set():
    test_paths = {
        path for data in (digits("test"), held_out(), photos(), letters()) for path in data.paths
    }
    parts = {
        part
        for path in tuning().paths
        for part in path.split("/")
        if part.startswith("load_digits")
    }
    validation = set(digits("val").paths)
    assert parts <= validation
    assert not test_paths & (validation | set(tuning().paths))


@pytest.mark.parametrize(
    "data",
    [digits("test"), held_out(), photos(), letters(), tuning()],
    ids=lambda data: data.paths[0],
)
def test_every_image_is_16_px_rgb_in_0_to_1(data):
    assert data.images.shape[1:] == (3, 16, 16)
    assert data.images.dtype == torch.float32
    assert 0 <= data.images.min() < data.images.max() <= 1
    assert len(data.paths) == len(data.labels) == len(data)


@pytest.mark.parametrize(
    "data", [digits("test"), held_out(), photos(), letters()], ids=lambda data: data.paths[0]
)
def test_no_test_image_counts_twice(data):
    assert len(set(data.paths)) == len(data)


def test_limit_spreads_over_the_set_and_keeps_the_index():
    items = DigitsDataModule(limit=10).datasets()["digits_4_9"]
    indices = [items[i]["index"] for i in range(10)]
    assert indices == [i * 361 // 10 for i in range(10)]


def test_an_unknown_split():
    with pytest.raises(InputError, match="test, tuning"):
        DigitsDataModule(split="train")


def test_the_shipped_weights_are_safetensors_and_small():
    files = [
        path for path in SHIPPED.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")
    ]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    for benchmark, limit in (("digits", 8e6), ("fashion", 12e6)):
        of_it = [
            path.stat().st_size
            for path in files
            if path.relative_to(SHIPPED).parts[0].startswith(benchmark)
        ]
        assert 0 < sum(of_it) < limit


# For GDM tests/engine compares the scores of other batches and orders.
@pytest.mark.parametrize(
    "config", ["digits_ldm", pytest.param("digits_gdm", marks=pytest.mark.slow)]
)
def test_an_image_scores_the_same_whatever_is_in_its_batch(config):
    detector = diffguard_pl.load(config)
    images = some(21)
    runs = []
    for size in (1, 3, 7):
        detections = [detector(batch) for batch in images.split(size)]
        assert [len(d.labels) for d in detections] == [size] * (21 // size)
        scores = {
            name: torch.cat([d.scores[name] for d in detections]) for name in detections[0].scores
        }
        stops = torch.cat([d.stop_index for d in detections])
        runs.append((scores, stops))
    for scores, stops in runs[1:]:
        assert stops.tolist() == runs[0][1].tolist()
        for name, values in scores.items():
            difference = (values - runs[0][0][name]).abs()
            assert difference.median() < 1e-5
            threshold = runs[0][0][name].quantile(0.5)
            crossed = ((values > threshold) != (runs[0][0][name] > threshold)) & (
                (values - threshold).abs() > 1e-3
            )
            assert not crossed.any()


@pytest.mark.parametrize("config", CONFIGS)
def test_a_4_comes_back_as_something_else_and_a_3_as_itself(config):
    detector = diffguard_pl.load(config)
    known, strange = digits("test").images[:40], held_out().images[:40]
    kept, changed = detector(known), detector(strange)
    accuracy = (kept.labels == torch.tensor(digits("test").labels[:40])).float().mean()
    assert accuracy > 0.95
    headline = detector.discrepancies.names[0]
    assert kept.scores[headline].median() > changed.scores[headline].median()
    error = [
        (a - b).square().mean()
        for a, b in ((known, kept.reconstructions), (strange, changed.reconstructions))
    ]
    assert error[0] < error[1]
