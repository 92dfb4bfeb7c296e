"""Mistakes in a config's class_path end in one line that names the setting."""

import pytest
import yaml

import diffguard_pl
from diffguard_pl import InputError


def load_with(model: dict, folder) -> diffguard_pl.DiffGuard:
    """Build the digits' DiffGuard with a classifier of other settings."""
    classifier = {"model": model, "checkpoint": None, "input_size": 32}
    config = {"base": "digits_ldm", "model": {"classifier": classifier}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(config))
    return diffguard_pl.load(folder / "mine.yaml")


@pytest.mark.parametrize(
    ("path", "settings", "said"),
    [
        ("torchvision.models.resnet18", {"init_args": {"num_classe": 8}}, "num_classe; .*classes"),
        ("torchvision.models.resnet18", {"dict_kwargs": {"num_classe": 8}}, "num_classe of ResNet"),
        ("torchvision.models.get_model", {"init_args": {"name": "resnet1"}}, "mine.yaml.*resnet1"),
        (
            "torchvision.models.get_model",
            {"init_args": {"name": "resnet18", "num_classes": 8}},
            "num_classes; .*choose.*dict_kwargs",
        ),
        ("torchvision.models.vit_b_16", {"dict_kwargs": {"image_size": 33}}, "mine.yaml: .*patch"),
        (
            "torch.nn.MultiheadAttention",
            {"init_args": {"embed_dim": 5, "num_heads": 2}},
            "mine.yaml: .*embed_dim",
        ),
        (
            "diffguard_pl.classifiers.resnets.SmallResNet",
            {"init_args": {"num_classe": 8}},
            "num_classe; did you mean num_classes",
        ),
    ],
    ids=range(7),
)
def test_a_wrong_setting_of_a_class_or_function_is_named(path, settings, said, tmp_path):
    with pytest.raises(InputError, match=said) as error:
        load_with({"class_path": path} | settings, tmp_path)
    assert "\n" not in str(error.value)


def test_timm_create_model_takes_the_settings_that_it_passes_on_as_dict_kwargs(tmp_path):
    pytest.importorskip("timm")
    model = {"class_path": "timm.create_model", "init_args": {"model_name": "test_resnet"}}
    loaded = load_with(model | {"dict_kwargs": {"num_classes": 8}}, tmp_path)
    assert loaded.classifier.num_classes == 8
    model["init_args"]["num_classes"] = 8
    with pytest.raises(InputError, match=r"unknown setting num_classes; .*dict_kwargs"):
        load_with(model, tmp_path)


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"num_chanels": 32}, "num_chanels; did you mean num_channels"),
        ({"ch": 32, "attn_resolution": [16]}, "attn_resolution; did you mean attn_resolutions"),
        ({"ch": "many"}, "architecture.ch: must be int"),
        ({"channel_mult": [1, "a"]}, "architecture.channel_mult: must be int"),
        ({"ch": 32, "num_channels": 32}, "unknown setting ch; .*num_channels"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, dict) else "",
)
def test_settings_of_one_of_two_classes_are_compared_with_those_of_the_right_one(
    architecture, said, tmp_path
):
    backbone = {"init_args": {"checkpoint": "random", "architecture": architecture}}
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump({"base": "cifar10_gdm", "model": {"backbone": backbone}}))
    with pytest.raises(InputError, match=said) as error:
        diffguard_pl.load(config)
    assert "\n" not in str(error.value)
