"""Classes of the classifier that are others of the diffusion model."""

import copy

import pytest
import torch
from torchvision.models import ResNet50_Weights

from diffguard_pl import Detector, DiffGuard, InputError
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
        ("imagenet", "class_map 'imagenet'; choose from: names, imagenet200"),
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


NAMES = ["zero", "one", "two", "three", "four, quatre", "five", "crane, bird", "Crane, machine"]


@pytest.fixture
def named(digits_ldm, monkeypatch):
    """Return the digits' diffusion model with names of its classes."""
    monkeypatch.setattr(digits_ldm.backbone, "given_class_names", NAMES)
    return digits_ldm.backbone


def classes_of(given, backbone, names=("three", "Two", "Quatre", "five")) -> list:
    return ClassMap(given, 4, backbone, names).classes


def test_classes_are_found_by_name(named):
    assert classes_of("names", named) == [3, 2, 4, 5]
    assert classes_of({}, named) == [3, 2, 4, 5]
    assert classes_of({"two": "one", "3": 7}, named) == [3, 1, 4, 7]
    assert classes_of(["zero", 5, "four", "ONE"], named, None) == [0, 5, 4, 1]
    assert classes_of({0: 1, 1: 2, 2: 3, 3: "crane,_bird"}, named, None) == [1, 2, 3, 6]


def test_classes_without_a_counterpart_are_named(named):
    with pytest.warns(UserWarning, match=r"2 of .*\(nine, five\); images that"):
        found = ClassMap({"five": None}, 4, named, ["nine", "one", "two", "five"])
    assert found.classes == [None, 1, 2, None]
    assert found.without_counterpart == ["nine", "five"]
    assert found.has_counterpart.tolist() == [False, True, True, False]


@pytest.mark.filterwarnings("ignore:class_map")
@pytest.mark.parametrize(
    ("given", "names", "message"),
    [
        ("names", None, "the classifier's classes have no names"),
        ({"nine": 1}, NAMES[:4], r"'nine' is no class of the classifier.*\(zero, one, two"),
        ({"9": 1}, NAMES[:4], "'9' is no class of the classifier, which has 4"),
        (["zero", "one", "two", "nine"], None, "entry 3 is 'nine', which is no class"),
        ("names", ["crane", "a", "b", "c"], "'crane' is the name of the classes 6 and 7"),
        ("names", ["a", "b", "c", "d"], "none of the classifier's 4 classes has a counterpart"),
        ([None] * 4, None, "none of the classifier's 4 classes"),
        ([0, 1, 2, True], None, "entry 3 is True"),
    ],
)
def test_a_wrong_map_of_names_is_refused(given, names, message, named):
    with pytest.raises(InputError, match=message):
        ClassMap(given, 4, named, names)


def test_names_need_a_model_that_has_them(digits_ldm):
    with pytest.raises(InputError, match="the classes of LatentDiffusion have no names here"):
        ClassMap(["zero", 1, 2, 3], 4, digits_ldm.backbone)


def test_a_model_of_1000_classes_has_imagenets(digits_ldm, monkeypatch):
    monkeypatch.setattr(digits_ldm.backbone, "num_classes", 1000)
    assert classes_of(
        "names", digits_ldm.backbone, ["Tench", "goldfish", "x", "toilet tissue"]
    ) == [
        0,
        1,
        None,
        999,
    ]


@pytest.mark.filterwarnings("ignore:class_map")
def test_images_without_a_counterpart_are_not_diffused_and_are_rejected(digits_ldm, few):
    images = digits("test").images[:40]
    labels = few.view(images).logits.argmax(1)
    lacking = int(labels[0])
    given = [None if i == lacking else i + 4 for i in range(4)]
    model = DiffGuard(
        few,
        digits_ldm.backbone,
        ClassifierFreeGuidance(),
        3,
        ["l2"],
        baselines=["msp"],
        class_map=given,
    )
    found = model(images)
    missing = labels == lacking
    assert 0 < missing.sum() < len(images)
    assert torch.equal(found.scores["l2"].isnan(), missing)
    assert torch.equal(found.nfe == 0, missing)
    assert found.scores["msp"].isfinite().all()
    full = DiffGuard(
        few, digits_ldm.backbone, ClassifierFreeGuidance(), 3, ["l2"], class_map=LAST_FOUR
    )
    expected = full(images).scores["l2"][~missing]
    torch.testing.assert_close(found.scores["l2"][~missing], expected)

    detector = Detector(model, class_names=["four", "five", "six", "seven"])
    with pytest.raises(InputError, match=r"class_map has no class for \w+: leave their images out"):
        detector.calibrate([images])
    detector.calibrate([images[~missing]])
    decisions = list(detector.predict(images))
    name = ["four", "five", "six", "seven"][lacking]
    for decision, lacks in zip(decisions, missing.tolist(), strict=True):
        note = f"the diffusion model has no class for {name!r}" if lacks else ""
        assert decision.note == note
        assert not (lacks and decision.accepted)


@pytest.mark.filterwarnings("ignore:class_map")
def test_such_images_are_left_out_of_fits_and_stages(digits_ldm, few):
    images = digits("test").images[:60]
    labels = few.view(images).logits.argmax(1)
    lacking = labels == labels[0]
    given = [None if i == int(labels[0]) else i + 4 for i in range(4)]
    model = DiffGuard(
        few,
        digits_ldm.backbone,
        ClassifierFreeGuidance(),
        3,
        ["l2"],
        path_scores={"label_pull": None, "msma": None},
        class_map=given,
    )
    (features,) = model.path_features([images]).values()
    assert len(features) == (~lacking).sum()
    assert torch.equal(model.early_scores("label_pull", [images]).isnan(), lacking)
    model.fit_path_scores([images])
    assert torch.equal(model(images).scores["msma"].isnan(), lacking)

    prediction = model.classify(images)
    reconstruction = model.reconstruct(model.invert(images, prediction), prediction)
    assert torch.equal(model.compare(images, prediction, reconstruction)["l2"].isnan(), lacking)
