"""Adaptive early stop compares each state to its own image."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffguard_pl.diffusion.early_stop import PSNR, EarlyStop, LearnedSimilarity

IMAGES = torch.zeros(3, 3, 8, 8)
STATES = IMAGES + torch.tensor([0.1, 1.0, 0.1]).view(3, 1, 1, 1)


class TwoTensors:
    """A similarity that keeps two tensors of each image, and is the first of them."""

    def reference(self, images: Tensor) -> list[Tensor]:
        return [torch.tensor([0.5, 0.5, 0.1]), images]

    def __call__(self, x: Tensor, reference: Sequence[Tensor]) -> Tensor:
        assert torch.equal(reference[1], IMAGES[: len(x)])
        return reference[0]


def test_psnr_is_that_of_the_original_with_a_peak_of_255():
    psnr = PSNR()(STATES, PSNR().reference(IMAGES))
    assert psnr.tolist() == pytest.approx([68.13, 48.13, 68.13], abs=0.01)


@pytest.mark.parametrize(("in_table_4", "in_the_configs"), [(5.89, 48.0), (6.39, 48.5)])
def test_thresholds_of_table_4_are_those_of_images_from_0_to_1(in_table_4, in_the_configs):
    rmse = 10 ** (-in_table_4 / 20)  # PSNR = 20 log10(1 / rmse) of images in [0, 1]
    states = IMAGES + 2 * rmse  # [-1, 1] is twice as wide
    psnr = PSNR()(states, PSNR().reference(IMAGES))
    assert psnr.tolist() == pytest.approx([in_the_configs] * 3, abs=0.001)


def test_an_image_stops_when_any_similarity_is_below_its_threshold():
    thresholds, similarities = {"psnr": 50.0, "other": 0.2}, {"psnr": PSNR(), "other": TwoTensors()}
    early_stop = EarlyStop(thresholds, similarities)
    reference = early_stop.reference(IMAGES)
    assert early_stop.should_stop(STATES, reference).tolist() == [False, True, True]


def test_states_are_compared_to_the_rows_of_their_images():
    early_stop = EarlyStop({"psnr": 50.0}, {"psnr": PSNR()})
    (images,) = early_stop.reference(STATES)
    assert early_stop.should_stop(STATES[[1, 0]], [images[[1, 1]]]).tolist() == [False, True]


def test_states_and_images_are_cropped_before_they_are_compared():
    early_stop = EarlyStop({"psnr": 60.0}, {"psnr": PSNR()}, lambda x: x[..., 2:6, 2:6])
    x = IMAGES.clone()
    x[..., :2] = 1
    assert not early_stop.should_stop(x, early_stop.reference(IMAGES)).any()


def test_a_learned_similarity_is_one_minus_the_distance_of_images_in_0_to_1():
    class MeanDistance:
        def features(self, images: Tensor) -> list[Tensor]:
            return [images.mean(dim=(1, 2, 3))]

        def distance(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
            return (a[0] - b[0]).abs()

    similarity = LearnedSimilarity(MeanDistance())
    found = similarity(STATES, similarity.reference(IMAGES))
    assert found.tolist() == pytest.approx([0.95, 0.5, 0.95])
