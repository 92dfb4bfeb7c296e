"""Batches of any usual kind are read as dicts; a prediction can be cut to some of its images."""

import pytest
import torch

from diffguard_pl import InputError
from diffguard_pl.classifiers.classifier import View
from diffguard_pl.stages import Prediction, as_batch

IMAGES, LABELS = torch.rand(2, 3, 8, 8), torch.tensor([1, 0])


@pytest.mark.parametrize(
    "batch", [{"image": IMAGES, "label": LABELS}, (IMAGES, LABELS), [IMAGES, LABELS]]
)
def test_pairs_and_dicts_are_read_as_dicts(batch):
    read = as_batch(batch, "image", "label")
    assert read["image"] is IMAGES
    assert read["label"] is LABELS


def test_images_alone_are_a_batch_without_labels():
    assert as_batch(IMAGES, "image") == {"image": IMAGES}
    with pytest.raises(InputError, match=r"batch: key 'label' not found.*image"):
        as_batch(IMAGES, "image", "label")


@pytest.mark.parametrize("batch", ["photo.png", None, [], [torch.rand(3, 8, 8)]])
def test_other_batches_are_rejected_by_their_type(batch):
    with pytest.raises(InputError, match=f"batch: must not be a {type(batch).__name__}; yield"):
        as_batch(batch, "image")


def test_some_images_of_a_prediction_keep_all_that_belongs_to_them():
    view = View(torch.rand(3, 4), torch.rand(3, 5), [torch.rand(3, 2, 8, 8)])
    whole = Prediction(
        view, torch.arange(3), torch.arange(3) + 1, torch.rand(3, 1, 8, 8), {"msp": torch.rand(3)}
    )
    part = whole.select(torch.tensor([True, False, True]))
    assert torch.equal(part.view.logits, view.logits[[0, 2]])
    assert torch.equal(part.view.features, view.features[[0, 2]])
    assert torch.equal(part.view.maps[0], view.maps[0][[0, 2]])
    assert part.predicted.tolist() == [0, 2]
    assert part.labels.tolist() == [1, 3]
    assert torch.equal(part.cam, whole.cam[[0, 2]])
    assert torch.equal(part.baselines["msp"], whole.baselines["msp"][[0, 2]])
    assert part.without_maps().view.maps == []
