"""EDM's and EDM2's networks give what NVIDIA's own modules give, and run as backbones."""

from pathlib import Path

import pytest
import torch
from helpers.edm import CLASSES, LABELS, SIGMAS, inputs, reference, save, weights
from helpers.small_models import assert_scores_do_not_depend_on_the_batch, autoencoder

from diffguard_pl import Classifier, DiffGuard, InputError
from diffguard_pl.backbones import EDMDiffusion
from diffguard_pl.backbones.edm import RAW_MEAN, RAW_STD, load_edm
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.schedule import timesteps_at

NAMES = list(reference())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_network_is_nvidias(name: str, tmp_path: Path):
    network, golden = load_edm(save(tmp_path, name)), reference()[name]
    x, times = inputs(network.channels, 8)
    labels = torch.zeros(3, 0)
    if network.num_classes:
        assert network.num_classes == CLASSES
        labels = torch.nn.functional.one_hot(torch.tensor(LABELS), CLASSES)
    output = network(x, times, labels)
    expected = torch.tensor(golden["output"]).view_as(output)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    if network.num_classes:
        output = network(x, times, torch.zeros(3, CLASSES)).flatten()[:64]
        expected = torch.tensor(golden["without_label"])
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["ddpmpp", "edm2_pixel"])
@torch.no_grad()
def test_eps_is_the_noise_of_edms_denoiser(name: str, tmp_path: Path):
    backbone = EDMDiffusion(str(save(tmp_path, name)))
    assert (backbone.image_size, backbone.num_classes, backbone.null_label) == (8, CLASSES, None)
    sigma = torch.tensor(SIGMAS, dtype=torch.float64)
    column = sigma.view(-1, 1, 1, 1)
    given, _ = inputs(3, 8)
    # The golden output is that of c_in x = given.
    own = given.double() * (column**2 + 0.25).sqrt()
    output = torch.tensor(reference()[name]["output"], dtype=torch.float64).view_as(own)
    denoised = 0.25 / (column**2 + 0.25) * own + column * 0.5 / (column**2 + 0.25).sqrt() * output

    x = (own / (1 + column**2).sqrt()).float()
    t = timesteps_at(backbone.alpha_bar, sigma)
    eps = backbone.eps(x, t, torch.tensor(LABELS))
    expected = ((own - denoised) / column).float()
    assert (eps - expected).abs().max() < 1e-5 * expected.abs().max()


def test_steps_are_those_of_edms_sampler(tmp_path: Path):
    backbone = EDMDiffusion(str(save(tmp_path, "ddpmpp")))
    level = backbone.schedule(18).denoising_from.flip(0)
    i = torch.arange(18, dtype=torch.float64)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close(((1 - level) / level).sqrt(), expected, rtol=1e-9, atol=0)


@torch.no_grad()
def test_a_second_network_predicts_no_class(tmp_path: Path):
    both = EDMDiffusion(
        str(save(tmp_path, "edm2_pixel")),
        unconditional=str(save(tmp_path, "edm2_unconditional")),
    )
    assert both.null_label == CLASSES
    alone = [
        EDMDiffusion(str(save(tmp_path, name))) for name in ("edm2_pixel", "edm2_unconditional")
    ]
    x, _ = inputs(3, 8)
    t = torch.tensor([100, 500, 900])
    mixed = both.eps(x, t, torch.tensor([1, CLASSES, 2]))
    expected = [model.eps(x, t, torch.tensor([1, 1, 2])) for model in alone]
    torch.testing.assert_close(mixed[[0, 2]], expected[0][[0, 2]])
    torch.testing.assert_close(mixed[1], expected[1][1])

    dropped = EDMDiffusion(str(save(tmp_path, "edm2_pixel")), zeros_are_null=True)
    assert dropped.null_label == CLASSES
    assert (dropped.eps(x, t, torch.full((3,), CLASSES)) - mixed).abs().max() > 1e-3


def test_latents_are_those_of_edm2(tmp_path: Path):
    autoencoder().save_pretrained(tmp_path / "vae")
    backbone = EDMDiffusion(str(save(tmp_path, "edm2")), vae=str(tmp_path / "vae"))
    assert (backbone.image_size, backbone.is_pixel_space) == (16, False)
    images = torch.rand(2, 3, 16, 16)
    x = backbone.encode(images * 2 - 1)

    # EDM2's autoencoder takes images in [0, 1]; a latent has a mean of 0 and a deviation of 0.5.
    vae = autoencoder()
    with torch.no_grad():
        raw = vae.encode(images).latent_dist.mode()
        decoded = vae.decode(raw).sample
    mean, std = (torch.tensor(values).view(1, 4, 1, 1) for values in (RAW_MEAN, RAW_STD))
    torch.testing.assert_close(x, (raw - mean) / std * 0.5)
    expected = (decoded * 2 - 1).clamp(-1, 1)
    torch.testing.assert_close(backbone.decode(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["adm", "edm2_pixel"])
def test_the_score_of_an_image_does_not_depend_on_the_batch(name: str, tmp_path: Path):
    second = name == "edm2_pixel"
    backbone = EDMDiffusion(
        str(save(tmp_path, name)),
        unconditional=str(save(tmp_path, "edm2_unconditional")) if second else None,
    )
    torch.manual_seed(4)
    classifier = Classifier(SmallResNet(CLASSES), input_size=8)
    guidance = ClassifierGuidance(1.0, cutouts=2, cutout_size=4)
    diffguard = DiffGuard(
        classifier,
        backbone,
        ClassifierFreeGuidance(2.0) if second else guidance,
        4,
        ["l2"],
        slots=4,
    )
    assert_scores_do_not_depend_on_the_batch(diffguard, 8, rtol=1e-3)


def test_a_file_of_something_else_is_refused(tmp_path: Path):
    def load(state: dict) -> EDMDiffusion:
        torch.save(state, tmp_path / "file.pt")
        return EDMDiffusion(str(tmp_path / "file.pt"))

    with pytest.raises(
        InputError, match=r"must be the state dict of a network of EDM.*first keys: weight"
    ):
        load({"weight": torch.zeros(2)})
    state = weights(reference()["ddpmpp"]["shapes"], False)
    missing = {key: value for key, value in state.items() if "4x4_block0.conv1" not in key}
    with pytest.raises(InputError, match=r"4x4_block0\.conv1.* is missing"):
        load(missing)
    with pytest.raises(InputError, match=r"its layer enc\.9x9_what\.weight is unknown"):
        load(state | {"model.enc.9x9_what.weight": torch.zeros(2)})
    with pytest.raises(InputError, match=r"its .*enc\.8x8_block0\.other.* is unexpected"):
        load(state | {"model.enc.8x8_block0.other": torch.zeros(2)})


def test_settings_that_do_not_fit_are_named(tmp_path: Path):
    pixel, latent = (str(save(tmp_path, name)) for name in ("edm2_pixel", "edm2"))
    null = str(save(tmp_path, "edm2_unconditional"))
    with pytest.raises(InputError, match="vae: the network diffuses latents of 4 channels"):
        EDMDiffusion(latent)
    with pytest.raises(InputError, match=r"unconditional: .* must be a network without labels"):
        EDMDiffusion(pixel, unconditional=pixel)
    with pytest.raises(InputError, match=r"zeros_are_null: .* takes no labels"):
        EDMDiffusion(null, zeros_are_null=True)
    with pytest.raises(InputError, match=r"sigma_min=2, sigma_max=1\.0"):
        EDMDiffusion(pixel, sigma_min=2, sigma_max=1.0)
    with pytest.raises(InputError, match="spacing=scheduler: EDMDiffusion has no scheduler"):
        EDMDiffusion(pixel, spacing="scheduler")


def test_damage_of_a_file_of_edm2_is_named(tmp_path: Path):
    state = weights(reference()["edm2_pixel"]["shapes"], True)
    gain = next(key for key in state if key.endswith("emb_gain"))
    wide = next(key for key in state if key.endswith("block0.conv_res1.weight"))

    def load(changes: dict) -> None:
        torch.save({k: v for k, v in (state | changes).items() if v is not None}, tmp_path / "f.pt")
        EDMDiffusion(str(tmp_path / "f.pt"))

    with pytest.raises(InputError, match=r"emb_gain is missing or no number"):
        load({gain: None})
    with pytest.raises(InputError, match=r"out_gain is missing or no number"):
        load({"unet.out_gain": torch.ones(7)})
    with pytest.raises(InputError, match=r"conv_res1\.weight is torch.*|is int64, not floating"):
        load({wide: state[wide].long()})
    with pytest.raises(InputError, match="does not fit"):
        load({wide: state[wide][:, :-1]})
    with pytest.raises(InputError, match="has NaN"):
        load({wide: state[wide] * float("nan")})


@torch.no_grad()
def test_two_networks_under_autocast_and_of_other_sizes(tmp_path: Path):
    both = EDMDiffusion(
        str(save(tmp_path, "edm2_pixel")), unconditional=str(save(tmp_path, "edm2_unconditional"))
    )
    x, _ = inputs(3, 8)
    t, labels = torch.tensor([100, 500, 900]), torch.tensor([1, CLASSES, 2])
    expected = both.eps(x, t, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = both.eps(x, t, labels)
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    with pytest.raises(InputError, match="takes 4 channels of 8 pixels, the checkpoint 3 of 8"):
        EDMDiffusion(
            str(save(tmp_path, "edm2_pixel")),
            unconditional=str(save(tmp_path, "edm2_latent_unconditional")),
        )


@pytest.mark.parametrize("name", ["ncsnpp", "edm2_pixel"])
def test_fourier_features_keep_their_precision(name: str, tmp_path: Path):
    backbone = EDMDiffusion(str(save(tmp_path, name)))
    before = {n: b.clone() for n, b in backbone.network.named_buffers() if "freqs" in n}
    backbone.networks_to(torch.bfloat16)
    assert backbone.dtype == torch.bfloat16
    after = dict(backbone.network.named_buffers())
    assert before
    for key, buffer in before.items():
        assert torch.equal(after[key], buffer)
