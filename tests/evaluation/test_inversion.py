"""Similarity along the inversion is the mean over the images of every step."""

import numpy as np
import pytest
import torch
from helpers.analyses import SomeImages, analysed, random_images
from helpers.streams import CheapBackbone, cheap_diffguard
from torch import Tensor

from diffguard_pl import InputError
from diffguard_pl.evaluation.inversion import InversionAnalysis, InversionModule, Moments


class NoNoise(CheapBackbone):
    """Predicts no noise, so that inversion scales the image by the signal level."""

    clip_denoised = False

    def eps(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros_like(x)


def curve(diffguard, batch_size: int = 32, similarities: tuple[str, ...] = ("psnr", "l2")):
    data = SomeImages(batch_size, ind=random_images(5, 0), ood=random_images(3, 1, -1))
    module = InversionModule(diffguard, InversionAnalysis(similarities), data)
    analysed(module)
    return module, data


def test_psnr_is_that_of_the_paper_s_formula_over_the_images_of_a_dataset():
    diffguard = cheap_diffguard(backbone=NoNoise(), steps=5, early_stop_steps=1)
    module, data = curve(diffguard)
    # an image counts as a state of the first step
    schedule = diffguard.schedule
    signal = (schedule.inversion_to / schedule.inversion_from[0]).sqrt()
    for point in module.points:
        # x_t = signal x in [-1, 1]; the rmse of images in [0, 1] is half of it
        images = data.images[point.dataset].images.double() * 2 - 1
        rmse = (1 - signal[point.step]) * images.square().mean(dim=(1, 2, 3)).sqrt() / 2
        psnr = (20 * torch.log10(1 / rmse)).numpy() + 20 * np.log10(255 / 2)
        assert point.mean["psnr"] == pytest.approx(psnr.mean(), abs=1e-3)
        assert point.std["psnr"] == pytest.approx(psnr.std(ddof=1), abs=1e-3)
        assert point.images == len(images)
    assert [(p.dataset, p.step) for p in module.points] == [
        (dataset, step) for dataset in ("ind", "ood") for step in range(4)
    ]
    assert [p.timestep for p in module.points[:4]] == schedule.timesteps[:4].tolist()


def test_early_stop_ends_no_curve_and_its_thresholds_are_kept_for_the_plot():
    diffguard = cheap_diffguard(steps=4, early_stop={"psnr": 1000.0}, forback_skip_diff=2)
    module, _ = curve(diffguard)
    assert diffguard.sampling.early_stop == {"psnr": 1000.0}
    assert {point.step for point in module.points} == {0, 1, 2, 3}
    assert module.thresholds == {"psnr": 1000.0}


def test_the_batch_does_not_matter():
    one, many = (curve(cheap_diffguard(steps=4), size)[0].points for size in (1, 4))
    for a, b in zip(one, many, strict=True):
        assert a.mean == pytest.approx(b.mean, rel=1e-5)
        assert a.std == pytest.approx(b.std, rel=1e-3)


def test_latents_are_compared_as_images(digits_ldm):
    settings = {"classifier": digits_ldm.classifier, "guidance": digits_ldm.guidance, "steps": 3}
    module, _ = curve(cheap_diffguard(backbone=digits_ldm.backbone, **settings))
    assert all(40 < point.mean["psnr"] < 70 for point in module.points)


@pytest.mark.parametrize("similarities", [[], ["psnr", "logits"]])
def test_unknown_similarities_are_refused(similarities):
    with pytest.raises(InputError, match=r"analysis.similarities.*psnr"):
        InversionAnalysis(similarities)


def test_moments_are_those_of_all_values_of_a_place():
    values = torch.tensor([[50.0, 0.1], [52.0, 0.4], [47.0, 0.3]])
    moments = Moments((2, 2))
    moments.update((1,), values[:1])
    moments.update((1,), values[1:])
    counts, mean, std = moments.compute()
    assert counts.tolist() == [[0, 0], [3, 3]]
    torch.testing.assert_close(mean[1], values.double().mean(dim=0))
    torch.testing.assert_close(std[1], values.double().std(dim=0))
