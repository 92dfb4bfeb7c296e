"""Oracle labels."""

import pytest
import torch

from diffguard_pl import InputError
from diffguard_pl.evaluation.oracle import oracle_labels
from diffguard_pl.random_by_index import random_by_index

RECORDED = [0, 0, 6, 4, 7, 2]
"""Labels of images 5 to 10 of ``photos`` under 8 classes."""


def batch(labels: list[int]) -> dict:
    return {
        "image": torch.zeros(len(labels), 3, 2, 2),
        "label": torch.tensor(labels),
        "index": torch.arange(len(labels)) + 5,
        "path": [f"{i}.png" for i in range(len(labels))],
    }


@pytest.mark.parametrize(
    ("oracle", "in_distribution", "expected"),
    [
        ("none", True, None),
        ("none", False, None),
        ("ind", True, [3, -1]),
        ("ind", False, None),
        ("all", True, [3, -1]),
    ],
)
def test_true_labels_are_those_of_in_distribution_images(oracle, in_distribution, expected):
    found = oracle_labels(oracle, batch([3, -1]), "digits", in_distribution, num_classes=8)
    assert found is expected if expected is None else found.tolist() == expected


def test_random_labels_are_the_same_in_every_run_and_batch():
    # recorded from the first release: published results depend on them
    found = oracle_labels("all", batch([-1] * 6), "photos", False, num_classes=8)
    assert found.tolist() == RECORDED
    alone = {name: value[3:4] for name, value in batch([-1] * 6).items()}
    assert oracle_labels("all", alone, "photos", False, num_classes=8).tolist() == RECORDED[3:4]
    assert len({random_by_index("photos", i).random() for i in range(100)}) == 100


def test_a_label_that_is_no_class_is_named_with_its_image():
    with pytest.raises(
        InputError, match=r"digits image 6 1\.png: label 9 .* 8 classes; oracle=ind"
    ):
        oracle_labels("ind", batch([0, 9]), "digits", True, num_classes=8)
