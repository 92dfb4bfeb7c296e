"""Reconstructions under true and false labels, with parts of the guidance left out."""

import pytest
import torch
from helpers.analyses import SomeImages, analysed, random_images
from helpers.streams import cheap_diffguard

from diffguard_pl import InputError
from diffguard_pl.diffusion.classifier_free_guidance import ClassifierFreeGuidance
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.evaluation.label_effect import LabelAnalysis, LabelEffectModule, false_labels

PARTS = {"scale": 5.0, "cutouts": 2, "cutout_size": 14}
WITHOUT = {
    "complete": {},
    "no x0hat": {"x0hat": False},
    "no cutouts": {"cutouts": 0},
    "neither": {"x0hat": False, "cutouts": 0},
}


def diffguard(**parts):
    guidance = ClassifierGuidance(**PARTS | parts)
    return cheap_diffguard(guidance=guidance, steps=3, compare_to="unguided")


def effects(batch_size: int = 32, **analysis) -> tuple[LabelEffectModule, SomeImages]:
    data = SomeImages(batch_size, ind=random_images(4, 0), ood=random_images(2, 1, -1))
    module = LabelEffectModule(diffguard(), LabelAnalysis(**analysis), data)
    analysed(module)
    return module, data


def test_each_row_is_what_the_method_gives_with_that_guidance_under_those_labels():
    module, data = effects()
    images, true = data.images["ind"].images, torch.arange(4)
    false = false_labels("ind", range(4), true, 8)
    assert [effect.guidance for effect in module.effects] == list(WITHOUT)
    for effect in module.effects:
        method = diffguard(**WITHOUT[effect.guidance])
        under_true, under_false = (method(images, y).scores["l2"] for y in (true, false))
        assert effect.true_mean == pytest.approx(float(under_true.mean()), rel=1e-4)
        assert effect.false_mean == pytest.approx(float(under_false.mean()), rel=1e-4)
        assert effect.true_std == pytest.approx(float(under_true.std()), rel=1e-3)
        assert effect.auroc == (under_true[:, None] > under_false).double().mean()
        assert (effect.score, effect.images) == ("l2", 4)
    assert len({effect.true_mean for effect in module.effects}) == 4


def test_the_first_images_are_kept_for_the_picture():
    module, data = effects(batch_size=1, pictures=3)
    assert [drawn.index for drawn in module.drawn] == [0, 1, 2]
    drawn = module.drawn[1]
    assert torch.equal(drawn.image, data.images["ind"].images[1])
    assert drawn.labels[0] == 1 != drawn.labels[1]
    assert list(drawn.guided) == list(WITHOUT)
    assert drawn.unguided is not None
    for (under_true, _), (under_false, _) in drawn.guided.values():
        assert not torch.equal(under_true, under_false)


def test_the_batch_does_not_matter():
    for a, b in zip(effects(1)[0].effects, effects(3)[0].effects, strict=True):
        assert a[3:] == pytest.approx(b[3:], rel=1e-3)


def test_fewer_images_are_spread_evenly():
    module, _ = effects(images=2)
    assert module.effects[0].images == 2
    assert [drawn.index for drawn in module.drawn] == [0, 2]


def test_images_without_labels_are_refused():
    data = SomeImages(ind=random_images(2, 0, -1), ood=random_images(2, 1, -1))
    module = LabelEffectModule(diffguard(), LabelAnalysis(), data)
    with pytest.raises(InputError, match=r"ind: .*labels"):
        analysed(module)


@pytest.mark.parametrize("setting", ["images", "pictures"])
def test_settings_are_at_least_one(setting):
    with pytest.raises(InputError, match=rf"analysis.{setting}=0: must be at least 1"):
        LabelAnalysis(**{setting: 0})


def test_a_false_label_is_never_the_true_one_and_the_same_in_every_batch():
    true = torch.arange(8).repeat(50)
    false = false_labels("digits", range(400), true, 8)
    assert (false != true).all()
    assert set(false.tolist()) == set(range(8))
    assert torch.equal(false_labels("digits", range(200, 400), true[200:], 8), false[200:])
    with pytest.raises(InputError, match=r"model\.classifier"):
        false_labels("digits", [0], torch.zeros(1), 1)


def test_the_parts_of_a_guidance():
    assert ClassifierGuidance(x0hat=False, cutouts=0).ablations() == {}
    assert list(ClassifierGuidance(cutouts=0).ablations()) == ["no x0hat"]
    assert ClassifierFreeGuidance(3.0).ablations() == {}
    masked = ClassifierFreeGuidance(3.0, cam_cut=0.3)
    (without,) = masked.ablations().values()
    assert (without.cam_cut, without.scale, masked.cam_cut) == (None, 3.0, 0.3)
