"""The GDM pipeline is the original's, number by number."""

import pytest
import torch
from helpers.golden import REFERENCE, NFECounter, _scores, close, gdm_golden, unit
from safetensors.torch import load_file

from diffguard_pl.diffusion.ddim import Level, eps_from_x0, predict_x0, step
from diffguard_pl.diffusion.guidance import GuidingClassifier

RUNS = ["plain", "offset", "early_stop", "no_cutouts", "no_x0hat", "smooth", "smooth_early_stop"]


def test_the_seeded_classifier_is_still_that_of_the_golden_runs():
    golden = gdm_golden("plain")
    logits = load_file(REFERENCE / "gdm_golden.safetensors")["logits"]
    close(golden.diffguard.classifier(golden.images), logits, 1e-5)


@pytest.mark.parametrize("run", ["plain", "offset", "early_stop"])
def test_inversion_and_stop_indices(run):
    golden = gdm_golden(run)
    steps = []
    prediction = golden.diffguard.classify(golden.images, golden.labels)
    inversion = golden.diffguard.invert(
        golden.images, prediction, callback=lambda s: steps.append(s.x)
    )
    close(inversion.noise, golden.tensors["xT"], 1e-4)
    assert inversion.stop_index.tolist() == golden.tensors["stop_index"].tolist()
    if "inversion_steps" in golden.tensors:
        close(torch.stack(steps, dim=1), golden.tensors["inversion_steps"], 1e-4)


def test_every_guidance_and_denoising_step_from_the_golden_state():
    golden = gdm_golden("smooth")
    detector, schedule = golden.diffguard, golden.diffguard.schedule
    classifier = GuidingClassifier(detector.classifier.whole, 28)
    crops = detector.guidance.crops(8, 32)
    states = torch.cat(
        [gdm_golden("plain").tensors["xT"][:, None], golden.tensors["denoise_steps"]], dim=1
    )
    for k in range(8):
        index = torch.full((3,), 7 - k)
        level = Level.of(schedule.denoising_from[index], states)
        x, expected = states[:, k], golden.tensors["guidance"][:, k]
        eps = detector.backbone.eps(x, schedule.timesteps[index], golden.labels)
        x0 = predict_x0(x, eps, level)
        g = detector.guidance.scale * detector.guidance.gradient(
            x, x0, level, golden.labels, crops[k].expand(3, -1, -1), classifier
        )
        assert (g - expected).norm() / expected.norm() < 1e-4
        eps = eps_from_x0(x, x0.clamp(-1, 1), level) - level.noise * expected
        close(
            step(x, eps, level, Level.of(schedule.denoising_to[index], x)), states[:, k + 1], 1e-5
        )


@pytest.mark.parametrize("run", ["smooth", "smooth_early_stop"])
def test_free_running_reconstruction(run):
    golden = gdm_golden(run)
    detection = golden.diffguard(golden.images, golden.labels)
    recon = unit(golden.tensors["recon"])
    if run == "smooth":
        close(detection.reconstructions, recon, 1e-3)
    else:
        close(detection.reconstructions, recon[:, 0], 1e-3)
        close(detection.unguided, recon[:, 1], 1e-3)
    for name, scores in golden.scores.items():
        close(detection.scores[name], scores, 1e-4)


def test_without_cutouts_the_classifier_is_given_the_picture_at_its_full_size():
    golden = gdm_golden("no_cutouts")
    detection = golden.diffguard(golden.images, golden.labels)
    for name, scores in golden.scores.items():
        close(detection.scores[name], scores, 1e-4)


@pytest.mark.parametrize("run", RUNS)
def test_scores_of_the_golden_reconstructions(run):
    golden = gdm_golden(run)
    close(
        torch.stack(list(_scores(golden).values())), torch.stack(list(golden.scores.values())), 1e-4
    )


@pytest.mark.parametrize(("run", "rows"), [("plain", 48), ("no_cutouts", 48), ("early_stop", 57)])
def test_no_row_too_many_goes_through_the_network(run, rows):
    golden = gdm_golden(run)
    counter = NFECounter(golden.diffguard.backbone.unet)
    golden.diffguard(golden.images, golden.labels)
    assert counter.nfe == rows


def test_nothing_is_differentiated_through_the_diffusion_network():
    golden = gdm_golden("plain")
    graphs = []
    golden.diffguard.backbone.unet.register_forward_hook(
        lambda m, i, o: graphs.append(o.sample.requires_grad)
    )
    with torch.enable_grad():
        golden.diffguard(golden.images, golden.labels)
    assert graphs
    assert not any(graphs)


def test_padding_keeps_the_picture_and_compares_without_the_border():
    backbone = gdm_golden("plain").diffguard.backbone
    backbone.process_method = "pad"
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    x = backbone.encode(images)
    assert x.shape == (2, 3, 32, 32)
    assert (x[:, :, :2] == -1).all()
    close(backbone.decode(x), images, 0)
    close(backbone.remove_padding(x), images, 0)
