"""The LDM pipeline is the original's, number by number."""

from dataclasses import replace

import pytest
import torch
from helpers.golden import NFECounter, _scores, close, ldm_golden, unit

RUNS = ["masked", "unmasked", "inverse_mask", "guided_inversion"]


@pytest.mark.parametrize("run", ["masked", "guided_inversion"])
def test_latents_and_inversion(run):
    golden = ldm_golden(run)
    steps = []
    prediction = golden.diffguard.classify(golden.images, golden.labels)
    inversion = golden.diffguard.invert(
        golden.images, prediction, callback=lambda s: steps.append(s.x)
    )
    if run == "masked":
        close(
            golden.diffguard.backbone.encode(golden.images * 2 - 1), golden.tensors["latent"], 1e-5
        )
    close(torch.stack(steps, dim=1), golden.tensors["inversion_steps"], 1e-4)
    close(inversion.noise, golden.tensors["xT"], 1e-4)


@pytest.mark.parametrize("run", ["masked", "inverse_mask"])
def test_activation_map_and_mask(run):
    golden = ldm_golden(run)
    prediction = golden.diffguard.classify(golden.images, golden.labels)
    if run == "masked":  # the original keeps the map as it is, and scales it when it cuts
        cam = golden.tensors["cam"]
        low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
        close(prediction.cam[:, 0], (cam - low) / (high - low + 1e-7), 1e-4)
    mask = golden.diffguard.latent_mask(prediction, golden.tensors["denoise_steps"][:, 0])
    assert torch.equal(mask.float(), golden.tensors["cam_mask_latent"])


@pytest.mark.parametrize("run", RUNS)
def test_free_running_latents(run):
    golden = ldm_golden(run)
    steps = []
    prediction = golden.diffguard.classify(golden.images, golden.labels)
    inversion = golden.diffguard.invert(golden.images, prediction)
    golden.diffguard.reconstruct(inversion, prediction, callback=lambda s: steps.append(s.x))
    # scale 10 amplifies rounding; the latents reach 60
    close(torch.stack(steps, dim=1), golden.tensors["denoise_steps"], 3e-2)


@pytest.mark.parametrize("run", RUNS)
def test_reconstruction_but_for_latents_that_fall_to_another_code(run):
    golden = ldm_golden(run)
    detector, steps = golden.diffguard, []
    prediction = detector.classify(golden.images, golden.labels)
    recon = detector.reconstruct(
        detector.invert(golden.images, prediction), prediction, callback=lambda s: steps.append(s.x)
    )
    difference = (recon.guided - unit(golden.tensors["recon"])).abs().amax((1, 2, 3))

    def codes(latents: torch.Tensor) -> torch.Tensor:
        return detector.backbone.first_stage.quantize(latents)[2][2].view(len(latents), -1)

    flips = (codes(steps[-1]) != codes(golden.tensors["denoise_steps"][:, -1])).sum(dim=1)
    assert (difference[flips == 0] < 2e-5).all()
    assert (difference < 0.12).all()
    assert flips.sum() <= 2  # of 768


def test_decoding_the_golden_latents():
    golden = ldm_golden("unmasked")
    close(
        unit(golden.diffguard.backbone.decode(golden.tensors["denoise_steps"][:, -1])),
        unit(golden.tensors["recon"]),
        2e-5,
    )


@pytest.mark.parametrize("run", RUNS)
def test_scores_of_the_golden_reconstructions(run):
    golden = ldm_golden(run)
    close(
        torch.stack(list(_scores(golden).values())), torch.stack(list(golden.scores.values())), 1e-4
    )


@pytest.mark.parametrize(("run", "rows"), [("masked", 72), ("guided_inversion", 96)])
def test_no_row_too_many_goes_through_the_network(run, rows):
    golden = ldm_golden(run)
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images, golden.labels)
    assert counter.nfe == rows


def test_an_unguided_reconstruction_costs_one_row_a_step():
    golden = ldm_golden("masked")
    sampling = golden.diffguard.sampling
    golden.diffguard.sampling = replace(sampling, compare_to="unguided")
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images, golden.labels)
    assert counter.nfe == 72 + 24 - 3  # the first step without guidance is part of that with it
