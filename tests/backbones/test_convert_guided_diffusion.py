"""guided-diffusion's layout: every flag converts, and a misfit names key and setting."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel, VQModel
from helpers.golden import GDM_ARCHITECTURE, LDM_ARCHITECTURE
from helpers.originals import GDM_FILE, LDM_FILE, original_state, saved, some_eps

from diffguard_pl import InputError
from diffguard_pl.backbones import (
    LatentDiffusion,
    PixelDiffusion,
)
from diffguard_pl.backbones.convert_guided_diffusion import (
    build_guided_diffusion,
    unet_module_names,
)
from diffguard_pl.checkpoints.registry import PUBLISHED
from diffguard_pl.diffusion.schedule import linear_alpha_bar

VARIANTS = [
    {},
    {"resblock_updown": False},
    {"use_scale_shift_norm": False},
    {"learn_sigma": False},
    {"class_cond": True, "num_classes": 7},
    {"num_head_channels": -1, "num_heads": 2},
    {"use_new_attention_order": True},
    {"num_res_blocks": 2, "channel_mult": (1, 2, 3), "attention_resolutions": (16, 8)},
    {"attention_resolutions": (32, 8), "channel_mult": (1, 2, 2)},
]


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: ",".join(flags) or "plain")
def test_every_flag_of_guided_diffusion_converts(flags, tmp_path):
    architecture = replace(GDM_ARCHITECTURE, **flags)
    state = original_state(architecture)
    backbone = PixelDiffusion(saved(state, tmp_path / "model.pt"), architecture)
    assert sum(p.numel() for p in backbone.unet.parameters()) == sum(
        t.numel() for t in state.values()
    )
    # samples of other classes and timesteps do not influence each other
    x, t, y = torch.randn(3, 3, 32, 32), torch.tensor([0, 500, 999]), torch.tensor([0, 3, 6])
    eps = backbone.eps(x, t, y)
    for i in range(3):
        alone = backbone.eps(x[i : i + 1], t[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(eps[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not importlib.util.find_spec("guided_diffusion"),
    reason="guided_diffusion is on no registry; golden files stand in for it",
)
@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: ",".join(flags) or "plain")
def test_pixel_unet_as_guided_diffusion(flags, tmp_path):
    from guided_diffusion.script_util import create_model

    a = replace(GDM_ARCHITECTURE, **flags)
    theirs = create_model(
        a.image_size,
        a.num_channels,
        a.num_res_blocks,
        channel_mult=",".join(map(str, a.channel_mult)),
        learn_sigma=a.learn_sigma,
        class_cond=a.class_cond,
        attention_resolutions=",".join(map(str, a.attention_resolutions)),
        num_heads=a.num_heads,
        num_head_channels=a.num_head_channels,
        use_scale_shift_norm=a.use_scale_shift_norm,
        resblock_updown=a.resblock_updown,
        use_new_attention_order=a.use_new_attention_order,
    ).eval()
    a = replace(a, num_classes=1000)
    state = original_state(a)
    theirs.load_state_dict(state)
    ours = PixelDiffusion(saved(state, tmp_path / "model.pt"), a)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([10, 700]), torch.tensor([1, 2])
    with torch.no_grad():
        expected = theirs(x, t, y if a.class_cond else None)[:, :3]
    torch.testing.assert_close(ours.eps(x, t, y), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"num_channels": 64},
            r"time_embed.0.weight is \[128, 32\], expected \[256, 64\].*num_channels",
        ),
        ({"learn_sigma": False}, r"out.2.*learn_sigma"),
        ({"use_scale_shift_norm": False}, r"emb_layers.1.*use_scale_shift_norm"),
        ({"attention_resolutions": (32, 16)}, r"attentions.*attention_resolutions"),
        ({"resblock_updown": False}, r"resblock_updown"),
        ({"num_res_blocks": 2}, r"num_res_blocks"),
        ({"channel_mult": (1, 3)}, r"channel_mult"),
        ({"class_cond": True}, r"class_embedding.*class_cond"),
    ],
)
def test_a_pixel_checkpoint_of_another_architecture_names_key_and_setting(flags, said):
    with pytest.raises(InputError, match=said) as error:
        PixelDiffusion(str(GDM_FILE), replace(GDM_ARCHITECTURE, **flags))
    assert "\n" not in str(error.value)


def test_a_pixel_checkpoint_given_to_the_latent_backbone_and_the_other_way_round():
    with pytest.raises(InputError, match="does not fit"):
        LatentDiffusion(str(GDM_FILE), LDM_ARCHITECTURE)
    with pytest.raises(InputError, match="does not fit"):
        PixelDiffusion(str(LDM_FILE), GDM_ARCHITECTURE)


def test_networks_are_diffusers_modules_and_frozen():
    pixel = PixelDiffusion(str(GDM_FILE), GDM_ARCHITECTURE)
    latent = LatentDiffusion(str(LDM_FILE), LDM_ARCHITECTURE)
    assert isinstance(pixel.unet, UNet2DModel)
    assert isinstance(latent.unet, UNet2DConditionModel)
    assert isinstance(latent.first_stage, VQModel)
    for backbone in (pixel, latent):
        assert not any(parameter.requires_grad for parameter in backbone.parameters())


def test_each_module_of_the_unet_has_one_name_in_either_layout():
    unet = build_guided_diffusion(GDM_ARCHITECTURE)
    names = unet_module_names(GDM_ARCHITECTURE)
    modules = dict(unet.named_modules())
    absent = {new for new in names.values() if new not in modules}
    # without classes there is no class embedding
    assert absent == {"class_embedding"} - set(modules)
    assert len(set(names.values())) == len(names)
    inside = tuple(f"{new}." for new in names.values())
    assert all(key.startswith(inside) for key in unet.state_dict())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gdm-imagenet256", 552_814_086),
        ("gdm-imagenet64-cond", 295_904_454),
        ("gdm-imagenet128-cond", 421_529_606),
        ("gdm-imagenet256-cond", 553_838_086),
        ("gdm-cifar10", 52_546_438),
    ],
)
def test_published_architectures_have_as_many_parameters_as_in_the_original_code(name, parameters):
    unet = build_guided_diffusion(PUBLISHED[name].architecture)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


@pytest.mark.parametrize(
    ("path", "place"),
    [("model", "module."), ("ema", ""), ("state_dict", "model.diffusion_model."), ("", "net.")],
)
def test_a_unet_is_found_wherever_it_is_and_keys_are_named_as_in_the_file(path, place, tmp_path):
    state = {f"{place}{key}": t for key, t in original_state(GDM_ARCHITECTURE).items()}
    state |= {f"{place}n_averaged": torch.tensor(1), "criterion.weight": torch.ones(3)}
    content = {path: state, "step": 7} if path else state
    plain = PixelDiffusion(
        saved(original_state(GDM_ARCHITECTURE), tmp_path / "a.pt"), GDM_ARCHITECTURE
    )
    found = PixelDiffusion(saved(content, tmp_path / "b.pt"), GDM_ARCHITECTURE)
    assert torch.equal(some_eps(found), some_eps(plain))
    with pytest.raises(InputError, match=rf"b.pt: .*its {place}time_embed.0.weight is \[128, 32\]"):
        PixelDiffusion(str(tmp_path / "b.pt"), replace(GDM_ARCHITECTURE, num_channels=64))

    missing = f"{place}input_blocks.1.0.in_layers.2.weight"
    del state[missing]
    with pytest.raises(InputError, match=rf"c.pt: .*its {missing} \[32, 32, 3, 3\] is missing"):
        PixelDiffusion(saved(content, tmp_path / "c.pt"), GDM_ARCHITECTURE)


def test_the_average_beside_the_weights_is_used_and_a_contradicting_schedule_refused(
    tmp_path, capsys
):
    state = original_state(GDM_ARCHITECTURE)
    average = {f"module.{key}": tensor / 2 for key, tensor in state.items()}
    path = saved({"model": state, "ema": average}, tmp_path / "both.pt")
    averaged = PixelDiffusion(path, GDM_ARCHITECTURE)
    assert "uses the weights of ema, not of model" in capsys.readouterr().err
    trained = PixelDiffusion(path, replace(GDM_ARCHITECTURE, use_ema=False))
    bias = "conv_in.bias"
    assert torch.equal(averaged.unet.state_dict()[bias], trained.unet.state_dict()[bias] / 2)

    state = {f"net.{key}": tensor for key, tensor in state.items()}
    state["alphas_cumprod"] = linear_alpha_bar().float()
    path = saved({"state_dict": state}, tmp_path / "wrapped.pt")
    assert PixelDiffusion(path, GDM_ARCHITECTURE).clip_denoised
    with pytest.raises(InputError, match=r"wrapped.pt: its alphas_cumprod .*noise_schedule"):
        PixelDiffusion(path, replace(GDM_ARCHITECTURE, noise_schedule="cosine"))
