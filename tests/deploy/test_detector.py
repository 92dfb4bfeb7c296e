"""A deployed detector: decisions, thresholds and the images it takes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.images import saved
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_pil_image

import diffguard_pl
from diffguard_pl import Decision, Detector, InputError
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out, photos
from diffguard_pl.scores.combination import Cascade, Fusion


@pytest.fixture(scope="module")
def detector(file) -> Detector:
    return Detector.load(file)


def test_it_accepts_known_digits_and_rejects_others(detector):
    known, strange, far = (
        detector.predict(of.images[:60]) for of in (digits("test"), held_out(), photos())
    )
    assert known.accepted.float().mean() > 0.85
    assert strange.accepted.float().mean() < 0.2
    assert far.accepted.float().mean() < 0.1
    assert known.label_names[:3] == ["6", "0", "1"]
    for decisions in (known, strange):
        assert (decisions.accepted == (decisions.scores >= decisions.threshold)).all()
        assert (decisions.accepted == (decisions.p_values > 0.05)).all()
        assert decisions.reconstructions.shape == decisions.images.shape == (60, 3, 16, 16)
    one = next(iter(known))
    assert isinstance(one, Decision)
    assert one == Decision(
        accepted=True,
        label=5,
        label_name="6",
        score=known.scores[0].item(),
        p_value=known.p_values[0].item(),
        diffused=True,
    )
    assert (known.outlier_scores == -known.scores).all()
    assert len(known) == 60


def test_an_image_gets_the_same_decision_however_it_comes(detector, tmp_path):
    images = digits("test").images[:4]
    (path, *_) = saved(images, tmp_path, "digit")
    picture = Image.open(path)
    array = np.asarray(picture)
    rounded = torch.from_numpy(array.copy()).permute(2, 0, 1)
    ways = [
        picture,
        path,
        Path(path),
        array,
        rounded,
        rounded / 255,
        Image.open(path).convert("L"),
        array[..., 0],
    ]
    found = detector.predict(ways)
    assert found.scores.max() - found.scores.min() < 1e-5
    alone = detector.predict(path)
    assert abs(alone.scores[0] - found.scores[0]) < 1e-5
    assert detector(rounded[None] / 255)[0] == pytest.approx(-alone.scores[0].item(), abs=1e-5)


def test_larger_images_are_brought_to_the_input_size(detector):
    large = digits("test").images[:1].repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    wide = torch.nn.functional.pad(large, (10, 10))
    assert detector.prepare(wide[0]).shape == (1, 3, 16, 16)
    assert detector.prepare([large[0], wide[0]]).shape == (2, 3, 16, 16)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ("nothere.png", "nothere.png: file not found"),
        ([], "images: .* at least one"),
        (None, "image 0: is a NoneType; must be a path"),
        (np.zeros((0, 0, 3), np.uint8), r"image 0: .* empty"),
        (".", r"\.: is a folder"),
        ([torch.rand(2, 8, 8)], r"image 0: is \[2, "),
        (
            [torch.rand(3, 16, 16), torch.rand(3, 16, 16) * 3],
            "image 1.* has values",
        ),
        (torch.full((1, 3, 16, 16), float("nan")), "NaN"),
    ],
)
def test_an_unusable_image_is_refused_by_name(detector, images, said):
    with pytest.raises(InputError, match=said):
        detector.predict(images)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.ones(3, 16, 16, dtype=torch.bool), "torch.bool; must be uint8"),
        (np.zeros((16, 16), dtype=np.int32), "torch.int32; must be uint8"),
        (
            np.zeros((3, 16, 16), dtype=np.uint8),
            r"array \[3, 16, 16\]; must be \[H, W\] or \[H, W, 3\]",
        ),
        (
            Image.fromarray(np.full((16, 16), 7.0, dtype=np.float32)),
            r"floating-point pixels that are not all in \[0, 1\]",
        ),
        (np.full((16, 16), 2.0), "has values from 2 to 2"),
    ],
)
def test_an_image_of_another_type_shape_or_range_is_refused(detector, image, said):
    with pytest.raises(InputError, match=said):
        detector.predict([image])


def test_grey_images_of_any_floating_type_get_the_same_scores(detector):
    grey = digits("test").images[0, 0]
    ways = [
        grey,
        grey[None],
        grey.numpy(),
        grey.double().numpy()[..., None],
        Image.fromarray(grey.numpy()),
    ]
    found = detector.predict(ways).scores
    assert (found - detector.predict(digits("test").images[:1]).scores).abs().max() < 2e-3


def test_exif_orientation_is_treated_as_in_the_calibration_images(digits_ldm, tmp_path):
    picture = to_pil_image(digits("test").images[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    upright = Detector(digits_ldm, preparation={"upright": True})
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(upright.prepare(image), upright.prepare(picture))
        assert not torch.equal(Detector(digits_ldm).prepare(image), upright.prepare(picture))


def test_batches_are_dicts_pairs_or_images(detector):
    images = digits("test").images[:6]
    expected = detector.predict(images).scores
    for data in (TensorDataset(images, torch.zeros(6)), TensorDataset(images), images):
        found = torch.cat(
            [decisions.scores for _, decisions in detector.decide(DataLoader(data, 4))]
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for batches, said in (
        ([{"pixels": images}], "batch: .*'image' not found.*pixels"),
        (["photo.png"], "batch: .*str"),
    ):
        with pytest.raises(InputError, match=said):
            detector.calibrate(batches)
    model = diffguard_pl.load("digits_ldm", discrepancies=["maps"], baselines=["knn"])
    with pytest.raises(InputError, match=r"batch: .*'label' not found.*image"):
        model.fit_baselines(DataLoader(images, 4))


def test_decisions_do_not_depend_on_the_batch_of_the_classifier(detector, monkeypatch):
    images = digits("test").images[:10].clone()
    whole, features = detector.predict(images), detector.features(images)
    monkeypatch.setattr("diffguard_pl.deploy.detector.CLASSIFIER_BATCH", 4)
    parts = detector.predict(images)
    assert parts.label_names == whole.label_names
    assert torch.equal(parts.images, whole.images)
    assert parts.reconstructions.shape == images.shape
    for name, scores in whole.all_scores.items():
        torch.testing.assert_close(parts.all_scores[name], scores, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(detector.features(images), features, atol=1e-4, rtol=1e-4)
    assert (parts.threshold, parts.score_name, parts.unguided) == (whole.threshold, "maps", None)
    images[5, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match="image 5 of the batch has NaN"):
        detector.predict(images)


def test_threads_may_share_a_detector(detector):
    images = torch.cat([digits("test").images[:2], held_out().images[:2]])
    expected = [detector.predict(image[None]).scores for image in images]
    with ThreadPoolExecutor(4) as threads:
        found = list(
            threads.map(lambda i: detector.predict(images[i][None]).scores, list(range(4)) * 3)
        )
    for i, scores in zip(list(range(4)) * 3, found, strict=True):
        torch.testing.assert_close(scores, expected[i], atol=1e-5, rtol=0)


def test_gradients_autocast_and_training_mode_of_the_caller_have_no_effect(detector):
    images = digits("test").images[:4]
    expected = detector.predict(images).scores
    batches = [{"image": images[:2]}, {"image": images[2:]}]
    both = [detector.decide(batches), detector.decide(batches)]
    for _ in zip(*both, strict=True):
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(detector.predict(images).scores, expected, atol=1e-5, rtol=0)
    detector.model.train()
    torch.testing.assert_close(detector.predict(images).scores, expected, atol=1e-5, rtol=0)


def test_a_classifier_in_training_mode_is_not_changed(detector):
    images = digits("test").images[:4]
    expected, classifier = detector.predict(images).scores, detector.model.classifier
    before = {name: values.clone() for name, values in classifier.state_dict().items()}
    classifier.model.train()
    torch.testing.assert_close(detector.predict(images).scores, expected, atol=1e-5, rtol=0)
    assert all(
        torch.equal(values, before[name]) for name, values in classifier.state_dict().items()
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"preparation": {"resise": 16}},
            "unknown setting of preparation 'resise'; choose from: image_size, resize",
        ),
        ({"preparation": {"resize": 8}}, "preparation: resize=8 .* increase resize"),
        ({"class_names": ["nought"]}, "class_names: must be 8 names"),
        (
            {"model": "digits_ldm"},
            r"model must be a DiffGuard, not 'digits_ldm'; use Detector.load",
        ),
    ],
)
def test_invalid_settings_are_refused(digits_ldm, settings, said):
    with pytest.raises(InputError, match=said):
        Detector(**{"model": digits_ldm} | settings)


def test_it_works_like_a_detector_of_pytorch_ood(digits_ldm):
    validation = DataLoader(spread(digits("val"), 60), 32)
    detector = Detector(digits_ldm, tpr=0.9)
    with pytest.raises(InputError, match="no threshold; call calibrate"):
        detector.predict(digits("test").images[:1])
    assert detector.calibrate(validation) is detector
    images = torch.cat([digits("test").images[:8], held_out().images[:8]])
    features = detector.features(images)
    assert features.shape == (16, len(detector.score_names))
    found, again = detector.predict(images), detector.predict_features(features)
    torch.testing.assert_close(found.scores, again.scores, atol=1e-5, rtol=0)
    assert found.accepted.tolist() == again.accepted.tolist()
    cached = torch.cat([detector.features(batch["image"]) for batch in validation])
    other = Detector(digits_ldm, tpr=0.9).calibrate_features(cached)
    assert other.threshold == pytest.approx(detector.threshold, abs=1e-5)
    with pytest.raises(
        InputError, match=r"features: .*\[2, 3\], must be \[N, 12\] .* maps, features"
    ):
        detector.predict_features(torch.rand(2, 3))


def test_another_tpr_from_the_same_images(file):
    detector = Detector.load(file)
    before = detector.threshold
    assert detector.with_tpr(0.8).threshold > before
    with pytest.raises(InputError, match=r"tpr: 0.999 .*at least 999"):
        detector.with_tpr(0.999)


def test_a_failed_calibration_changes_nothing(digits_ldm):
    features = torch.rand(100, len(digits_ldm.score_names), dtype=torch.float64)
    detector = Detector(digits_ldm, fusion=Fusion(["maps", "msp"])).calibrate_features(features)
    before = (
        detector.threshold,
        {name: values.tolist() for name, values in detector.reference.items()},
    )
    with pytest.raises(InputError, match="at least 19"):
        detector.calibrate_features(features[:10])
    assert (
        detector.threshold,
        {name: values.tolist() for name, values in detector.reference.items()},
    ) == before


def test_a_nan_among_the_calibration_scores_counts_as_rejected(digits_ldm, tmp_path):
    features = torch.rand(100, len(digits_ldm.score_names), dtype=torch.float64)
    features[3, 0] = float("nan")
    detector = Detector(digits_ldm).calibrate_features(features)
    again = Detector.load(detector.save(tmp_path / "d.json"), model=digits_ldm)
    assert again.threshold == detector.threshold == features[:, 0].nan_to_num(-1).sort()[0][4]
    found = again.predict_features(features[3:4].numpy())
    assert found.accepted.tolist() == [False]
    assert found.p_values[0] == pytest.approx(2 / 101)


def test_the_promise_holds_for_combined_scores_whatever_the_order_of_the_images(digits_ldm):
    """Images may come in an order that means something: one class, then the other, in turn."""
    generator, names = np.random.default_rng(0), digits_ldm.score_names
    rejected = []
    for _ in range(60):
        features = generator.normal(size=(600, len(names)))
        features[::2] += 3
        detector = Detector(
            digits_ldm, fusion=Fusion(["maps", "msp"]), cascade=Cascade("msp", 0.4, "fusion")
        )
        detector.calibrate_features(torch.tensor(features[:400]))
        rejected.append(
            (~detector.predict_features(torch.tensor(features[400:])).accepted)
            .float()
            .mean()
            .item()
        )
    assert np.mean(rejected) < 0.05 + 3 * np.std(rejected) / np.sqrt(60)


def test_a_cascade_diffuses_only_where_the_baseline_is_unsure(digits_ldm, tmp_path):
    cascade = Cascade("msp", 0.3, "fusion")
    validation = DataLoader(spread(digits("val"), 81), 64)
    detector = Detector(digits_ldm, fusion=Fusion(["maps", "msp"]), cascade=cascade).calibrate(
        validation
    )
    assert (detector.score, detector.calibrated.images) == (
        "cascade",
        41,
    )  # the other half has made the scales
    images = torch.cat([digits("test").images[:18], photos().images[:6]])
    before = digits_ldm.nfe
    found = detector.predict(images)
    assert 0 < found.diffused.sum() < 18
    assert digits_ldm.nfe - before == 30 * found.diffused.sum()
    assert found.all_scores["maps"].isnan().tolist() == (~found.diffused).tolist()
    assert not found.scores.isnan().any()
    full = detector.predict_features(detector.features(images))
    torch.testing.assert_close(found.scores, full.scores, atol=1e-3, rtol=0)
    again = Detector.load(detector.save(tmp_path / "cascade.json"), model=digits_ldm, device="cpu")
    torch.testing.assert_close(again.predict(images).scores, found.scores, atol=1e-4, rtol=0)
    assert again.threshold == detector.threshold


def test_a_cascade_decides_by_one_rule_whether_the_run_skipped_or_not(digits_ldm):
    """All validation images are diffused, so every image must be scored in the same way."""
    features = torch.tensor(
        np.random.default_rng(0).normal(size=(400, len(digits_ldm.score_names)))
    )
    plain, skipping = (
        Detector(digits_ldm, cascade=Cascade("msp", 0.4, "maps", skip=skip)).calibrate_features(
            features
        )
        for skip in (False, True)
    )
    assert plain.threshold == skipping.threshold
    unknown = features[:1].clone()
    unknown[0, digits_ldm.score_names.index("msp")] = features[
        :, digits_ldm.score_names.index("msp")
    ].quantile(0.2)
    unknown[0, : len(digits_ldm.discrepancies.names)] = float(
        "nan"
    )  # the diffusion model has failed
    assert skipping.predict_features(unknown).accepted.tolist() == [False]


def test_a_calibration_needs_finite_scores(digits_ldm):
    detector = Detector(digits_ldm, score="maps")
    with pytest.raises(InputError, match="score maps is NaN or infinite for every image; check"):
        detector.calibrate_features(torch.full((200, len(digits_ldm.score_names)), float("nan")))


def test_a_batch_of_known_digits_is_usual_and_one_of_others_is_not(detector):
    known = detector.predict(digits("test").images[:30])
    strange = detector.predict(held_out().images[:30])
    assert detector.batch_p_value(known.scores) > 0.01
    assert detector.batch_p_value(strange.scores) < 1e-6
