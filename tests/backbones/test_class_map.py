"""Classes of the classifier that are others of the diffusion model."""

import copy

import pytest
import torch
from torchvision.models import ResNet50_Weights

from diffguard_pl import DiffGuard, InputError
from diffguard_pl.backbones.class_map import ClassMap
from diffguard_pl.checkpoints.class_maps import CLASS_MAPS
from diffguard_pl.classifiers.classifier import Classifier
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.description import describe_method
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance

LAST_FOUR = [4, 5, 6, 7]


@pytest.fixture(scope="module")
def few(digits_ldm) -> Classifier:
    """Return the digits classifier without its first four classes."""
    model = SmallResNet(4)
    state = copy.deepcopy(digits_ldm.classifier.model.state_dict())
    for name in ("fc.weight", "fc.bias"):
        state[name] = state[name][LAST_FOUR]
    model.load_state_dict(state)
    return Classifier(model, input_size=16, mean=(0.5,) * 3, std=(0.5,) * 3)


def test_images_are_reconstructed_under_the_mapped_classes(digits_ldm, few):
    images, backbone = digits("test").images[:3], digits_ldm.backbone
    mapped = DiffGuard(
        few, backbone, ClassifierFreeGuidance(), 3, ["l2"], baselines=[], class_map=LAST_FOUR
    )
    found = mapped(images)
    assert (found.labels < 4).all()
    full = DiffGuard(
        digits_ldm.classifier, backbone, ClassifierFreeGuidance(), 3, ["l2"], baselines=[]
    )
    expected = full(images, found.labels + 4)
    assert torch.equal(found.reconstructions, expected.reconstructions)
    assert describe_method(mapped)["class_map"] == LAST_FOUR  # a detector file depends on it
    assert "class_map" not in describe_method(full)
    assert mapped.class_map is not None
    assert mapped.class_map.null_label == 4  # before mapping; 8 to the network


def test_fewer_classes_without_a_map_are_warned_of(digits_ldm, few):
    with pytest.warns(UserWarning, match=r"classifier: has 4 classes, .* 8.*class_map"):
        DiffGuard(few, digits_ldm.backbone, ClassifierFreeGuidance(), 3, ["l2"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([0, 1, 2], "class_map: .*each of the classifier's 4 classes, has 3"),
        ([0, 1, 2, 8], "class_map: entry 3 is 8, .*0 to 7"),
        ([0, 1, 2, -1], "class_map: entry 3 is -1"),
        ("imagenet", "class_map 'imagenet'; choose from: imagenet200"),
        ("imagenet200", "class_map: .*4 classes, has 200"),
    ],
)
def test_a_wrong_map_is_refused(classes, message, digits_ldm):
    with pytest.raises(InputError, match=message):
        ClassMap(classes, 4, digits_ldm.backbone)


def test_a_model_without_labels_needs_no_map(digits_gdm):
    with pytest.raises(InputError, match=r"class_map: PixelDiffusion takes no label.*null"):
        ClassMap([0, 1], 2, digits_gdm.backbone)


def test_imagenet200_has_200_classes_of_imagenet_in_their_order():
    classes = CLASS_MAPS["imagenet200"]
    assert len(classes) == 200
    assert sorted(set(classes)) == list(classes)
    # as OpenOOD's lists of ImageNet-R and ImageNet-V2 number them, with 200 classes and with 1,000
    pairs = {0: 1, 77: 293, 110: 393, 132: 483, 147: 617}
    assert {number: classes[number] for number in pairs} == pairs
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    assert [names[classes[number]] for number in (0, 77, 132)] == ["goldfish", "cheetah", "castle"]
