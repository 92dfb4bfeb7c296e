"""A detector to deploy: calibrated by the command, read in Python, asked by the command."""

import json
import shutil
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
from diffguard_pl.commands import calibrate
from diffguard_pl.datamodules import ClassFolders, ImageDirectory, OODDataModule
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out, photos
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.combination import Cascade, Fusion
from diffguard_pl.scores.conformal import threshold
from diffguard_pl.scores.training_features import fit_baselines

STEPS = ["--model.steps", "5", "--model.discrepancies", "[maps, kl]"]


@pytest.fixture(scope="module")
def detector(file) -> Detector:
    return Detector.load(file)


def test_the_file_says_all_that_is_needed(file):
    content = json.loads(file.read_text())
    frame, _ = read_scores(file.parent)
    assert len(frame) == len(content["calibration"]) == 215
    assert content["calibration"] == sorted(frame["maps"])
    assert content["threshold"]["value"] == threshold(frame["maps"].to_numpy(), 0.95).value
    assert (content["threshold"]["tpr"], content["score"]) == (0.95, "maps")
    assert (
        content["threshold"]["low"] < content["threshold"]["value"] < content["threshold"]["high"]
    )
    assert set(content["weights"]) == {"classifier", "backbone"}
    assert content["class_names"] == list("01235678")
    assert content["preparation"] == {
        "image_size": 16,
        "resize": 16,
        "interpolation": "bilinear",
        "upright": False,
    }
    assert content["about"]["images"] == {"scored": 215, "left_out": 0}
    assert content["about"]["accuracy"] > 0.99
    assert "torch" in content["about"]["versions"]
    assert file.stat().st_size < 30_000


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


def test_larger_pictures_are_prepared_as_the_calibration_images_were(detector):
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
def test_what_is_no_image(detector, images, said):
    with pytest.raises(InputError, match=said):
        detector.predict(images)


def test_it_is_the_detector_of_the_run(detector, file):
    """Scores in Python are those that the calibration has on record."""
    images = digits("val").images[:10]
    frame, _ = read_scores(file.parent)
    torch.testing.assert_close(
        detector.predict(images).scores,
        torch.tensor(frame["maps"][:10].to_numpy()),
        atol=2e-5,
        rtol=0,
    )


def test_another_tpr_from_the_same_images(file):
    detector = Detector.load(file)
    before = detector.threshold
    assert detector.with_tpr(0.8).threshold > before
    with pytest.raises(InputError, match=r"tpr: 0.999 .*at least 999"):
        detector.with_tpr(0.999)


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


def test_a_cascade_asks_the_diffusion_model_only_where_it_is_unsure(digits_ldm, tmp_path):
    cascade = Cascade("msp", 0.3, "fusion")
    validation = DataLoader(spread(digits("val"), 81), 64)
    detector = Detector(digits_ldm, fusion=Fusion(["maps", "msp"]), cascade=cascade).calibrate(
        validation
    )
    assert (detector.score, detector.calibrated.images) == (
        "cascade",
        41,
    )  # the other half has made the scales
    images = torch.cat([digits("test").images[:60], photos().images[:20]])
    before = digits_ldm.nfe
    found = detector.predict(images)
    assert 0 < found.diffused.sum() < 60
    assert digits_ldm.nfe - before == 30 * found.diffused.sum()
    assert found.all_scores["maps"].isnan().tolist() == (~found.diffused).tolist()
    assert not found.scores.isnan().any()
    full = detector.predict_features(detector.features(images))
    torch.testing.assert_close(found.scores, full.scores, atol=1e-3, rtol=0)
    again = Detector.load(detector.save(tmp_path / "cascade.json"), model=digits_ldm, device="cpu")
    torch.testing.assert_close(again.predict(images).scores, found.scores, atol=1e-4, rtol=0)
    assert again.threshold == detector.threshold


def test_fitted_baselines_come_with_the_file(tmp_path):
    settings = [
        "--model.baselines",
        "[msp, knn, mahalanobis]",
        "--model.fusion.scores",
        "[maps, mahalanobis]",
    ]
    calibrate.main(
        [
            "--config",
            "digits_ldm",
            *STEPS,
            *settings,
            "--out",
            str(tmp_path / "d.json"),
            "--trainer.default_root_dir",
            str(tmp_path / "run"),
        ]
    )
    detector = Detector.load(tmp_path / "d.json")
    assert detector.score == "fusion"
    found = detector.predict(torch.cat([digits("test").images[:40], held_out().images[:40]]))
    assert found.accepted[:40].float().mean() > 0.85
    assert found.accepted[40:].float().mean() < 0.15
    beside = tmp_path / "d.json.fitted.safetensors"
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(
        InputError,
        match=r"d.json.fitted.safetensors: does not belong .* calibrate again",
    ):
        Detector.load(tmp_path / "d.json")
    beside.unlink()
    with pytest.raises(
        InputError,
        match=r"d.json.fitted.safetensors: not found; .* beside the detector file",
    ):
        Detector.load(tmp_path / "d.json")


def test_other_weights_are_refused(file, tmp_path):
    content = json.loads(file.read_text())
    content["weights"]["backbone"] = "0" * 64
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"the weights of the backbone differ .* calibrate again"):
        Detector.load(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: "not json", "is not a detector file"),
        (
            lambda content: json.dumps({"a": 1}),
            "is not a detector file; write one with diffguard-pl calibrate",
        ),
        (
            lambda content: json.dumps(content | {"version": 99}),
            "version 99 .* must be 1; calibrate again",
        ),
        (
            lambda content: json.dumps({k: v for k, v in content.items() if k != "calibration"}),
            "is damaged, .* calibrate again",
        ),
        (
            lambda content: json.dumps(content | {"model": content["model"] | {"nonsense": 1}}),
            "nonsense",
        ),
        (
            lambda content: json.dumps(content | {"model": None}),
            r"was not made from a config; give the model: Detector.load\(file, model",
        ),
    ],
)
def test_files_that_are_none(file, tmp_path, change, said):
    (tmp_path / "d.json").write_text(change(json.loads(file.read_text())))
    with pytest.raises(InputError, match=said):
        Detector.load(tmp_path / "d.json")


def test_a_detector_file_that_is_not_there():
    with pytest.raises(
        InputError, match=r"nothere.json: no such file; .*diffguard-pl calibrate.* digits_ldm"
    ):
        Detector.load("nothere.json")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tpr", "1.5"], "tpr: 1.5 must be above 0 and below 1"),
        (
            ["--tpr", "0.999"],
            "tpr: 0.999 needs at least 999 in-distribution validation images, not 215",
        ),
        (["--score", "dists"], "unknown score 'dists'; choose from: maps, kl, msp"),
        (["--model.oracle", "ind"], "model.oracle=ind: "),
        (["--shard", "0/2"], "shard: "),
        (["--data.class_path", "OODDataModule"], "calibration"),
    ],
)
def test_what_cannot_be_calibrated(args, said, tmp_path):
    if "OODDataModule" in args:
        source = {"class_path": "ImageDirectory", "init_args": {"root": str(tmp_path)}}
        saved(digits("test").images[:2], tmp_path, "a")
        args = [
            *args,
            "--data.image_size",
            "16",
            "--data.ind",
            json.dumps({"a": source}),
            "--data.ood",
            json.dumps({"far": {"b": source}}),
        ]
    with pytest.raises(SystemExit) as ended:
        calibrate.main(
            [
                "--config",
                "digits_ldm",
                *STEPS,
                *args,
                "--trainer.default_root_dir",
                str(tmp_path / "run"),
            ]
        )
    assert said in str(ended.value)


def test_a_calibration_goes_on_where_it_was_interrupted(file, tmp_path, capsys):
    arguments = ["--config", "digits_ldm", *STEPS, "--data.batch_size", "16", "--scores.every", "0"]
    calibrate.main([*arguments, "--trainer.default_root_dir", str(tmp_path)])
    for part in sorted((tmp_path / "scores").glob("*.parquet"))[2:7]:
        part.unlink()
    (tmp_path / "detector.json").unlink()
    capsys.readouterr()
    calibrate.main(["--resume", str(tmp_path)])
    assert "images have results already" in capsys.readouterr().out
    assert Detector.load(tmp_path / "detector.json").threshold == pytest.approx(
        Detector.load(file).threshold, abs=1e-5
    )


def test_calibrated_in_half_precision_it_decides_in_half_precision(tmp_path):
    arguments = [
        "--config",
        "digits_ldm",
        *STEPS,
        "--data.limit",
        "40",
        "--trainer.precision",
        "bf16-true",
    ]
    calibrate.main([*arguments, "--trainer.default_root_dir", str(tmp_path)])
    detector = Detector.load(tmp_path / "detector.json")
    assert detector.precision == "bf16-true"
    assert next(detector.model.classifier.model.parameters()).dtype == torch.bfloat16
    frame, _ = read_scores(tmp_path)
    found = detector.predict(spread_images(40)).scores
    torch.testing.assert_close(found, torch.tensor(frame["maps"].to_numpy()), atol=1e-3, rtol=0)


def spread_images(count: int) -> torch.Tensor:
    data = spread(digits("val"), count)
    return torch.stack([data[i]["image"] for i in range(count)])


def test_parts_of_ones_own(tmp_path):
    model = diffguard_pl.load("digits_ldm", steps=5, discrepancies=["maps"])
    detector = Detector(
        model,
        tpr=0.9,
        class_names=["nought", "one", "two", "three", "five", "six", "seven", "eight"],
    )
    detector.calibrate(DataLoader(spread(digits("val"), 40), 20)).save(tmp_path / "mine.json")
    with pytest.raises(InputError, match="give the model"):
        Detector.load(tmp_path / "mine.json")
    again = Detector.load(tmp_path / "mine.json", model=model)
    assert again.predict(digits("test").images[:1]).label_names == ["six"]
    assert again.threshold == detector.threshold


# what a review found


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


def test_exif_orientation_is_treated_as_in_the_calibration_images(digits_ldm, tmp_path):
    picture = to_pil_image(digits("test").images[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    upright = Detector(digits_ldm, preparation={"upright": True})
    for image in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert torch.equal(upright.prepare(image), upright.prepare(picture))
        assert not torch.equal(Detector(digits_ldm).prepare(image), upright.prepare(picture))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 6}, "another schedule"),
        ({"guidance__scale": 30}, "another guidance"),
        ({"skip_last_steps": 1}, "another detector"),
        ({"discrepancies": ["kl", "maps"]}, "another scores"),
    ],
)
def test_a_model_of_other_settings_is_refused(file, settings, said):
    other = diffguard_pl.load(
        "digits_ldm", **({"steps": 5, "discrepancies": ["maps", "kl"]} | settings)
    )
    with pytest.raises(InputError, match=f"was calibrated with {said}"):
        Detector.load(file, model=other)


def test_settings_that_may_be_changed(file):
    assert Detector.load(file, slots=8).model.slots == 8
    with pytest.raises(
        InputError, match="unknown setting that may be changed 'steps'; choose from: slots, compile"
    ):
        Detector.load(file, steps=9)
    with pytest.raises(InputError, match="slots: cannot be changed together with model"):
        Detector.load(file, model=diffguard_pl.load("digits_ldm", steps=5), slots=8)


def test_what_the_caller_has_set_stays_as_it_was_and_changes_nothing(detector):
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


def test_a_nan_among_the_calibration_scores_counts_as_rejected(digits_ldm, tmp_path):
    features = torch.rand(100, len(digits_ldm.score_names), dtype=torch.float64)
    features[3, 0] = float("nan")
    detector = Detector(digits_ldm).calibrate_features(features)
    again = Detector.load(detector.save(tmp_path / "d.json"), model=digits_ldm)
    assert again.threshold == detector.threshold == features[:, 0].nan_to_num(-1).sort()[0][4]
    found = again.predict_features(features[3:4].numpy())
    assert found.accepted.tolist() == [False]
    assert found.p_values[0] == pytest.approx(2 / 101)


def test_a_failed_fit_changes_nothing(digits_ldm):
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


def test_checkpoints_are_found_from_any_folder_or_beside_the_file(tmp_path, monkeypatch):
    weights = Path(diffguard_pl.__file__).parent / "weights"
    shutil.copytree(weights / "digits_classifier", tmp_path / "here" / "clf")
    monkeypatch.chdir(tmp_path / "here")
    own = ["--model.classifier.checkpoint", "./clf", "--data.limit", "30"]
    calibrate.main(
        [
            "--config",
            "digits_ldm",
            *STEPS,
            *own,
            "--out",
            "d.json",
            "--trainer.default_root_dir",
            "run",
        ]
    )
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    assert Detector.load("../here/d.json").threshold
    (tmp_path / "here").rename(tmp_path / "moved")  # with the weights beside the file
    assert Detector.load("../moved/d.json").threshold


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
def test_what_is_no_picture_is_refused_by_name(detector, image, said):
    with pytest.raises(InputError, match=said):
        detector.predict([image])


def test_floats_and_greys_are_what_they_say(detector):
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


def test_a_detector_file_is_not_written_over(file, tmp_path):
    (tmp_path / "d.json").write_text("mine")
    for out, said in (
        (tmp_path / "d.json", "exists already; remove it"),
        ("/proc/nothing/d.json", "cannot be written"),
    ):
        with pytest.raises(SystemExit, match=said):
            calibrate.main(
                [
                    "--config",
                    "digits_ldm",
                    *STEPS,
                    "--out",
                    str(out),
                    "--trainer.default_root_dir",
                    str(tmp_path / "run"),
                ]
            )
    assert (tmp_path / "d.json").read_text() == "mine"


def test_a_precision_that_cannot_be_deployed(tmp_path):
    with pytest.raises(SystemExit, match="unknown precision '64-true'; choose from: 32-true"):
        calibrate.main(
            [
                "--config",
                "digits_ldm",
                *STEPS,
                "--trainer.precision",
                "64-true",
                "--trainer.default_root_dir",
                str(tmp_path),
            ]
        )


def test_images_that_figures_are_of_are_not_calibrated_on(tmp_path):
    saved(digits("test").images[:4], tmp_path / "images", "a")
    source = ImageDirectory(str(tmp_path / "images"))
    data = OODDataModule(
        {"a": source}, {"far": {"b": source}}, image_size=16, resize=16, calibration=source
    )
    data.include_calibration()
    with pytest.raises(
        InputError,
        match=r"data.calibration: shares 4 images .* such as .*a0.png",
    ):
        data.datasets()


def test_none_of_the_calibration_images_can_be_read(tmp_path):
    (tmp_path / "bad").mkdir()
    for i in range(30):
        (tmp_path / "bad" / f"{i}.png").write_text("x")
    source = {"class_path": "ImageDirectory", "init_args": {"root": str(tmp_path / "bad")}}
    own = [
        "--data.class_path",
        "OODDataModule",
        "--data.image_size",
        "16",
        "--data.resize",
        "16",
        "--data.num_workers",
        "0",
    ]
    own += [
        "--data.ind",
        json.dumps({"a": source}),
        "--data.ood",
        json.dumps({"far": {"b": source}}),
        "--data.calibration",
        json.dumps(source),
    ]
    with pytest.raises(
        SystemExit,
        match=r"calibration: none of its 30 images could be used; the first, 0\.png: not an image",
    ):
        calibrate.main(
            [
                "--config",
                "digits_ldm",
                *STEPS,
                *own,
                "--trainer.default_root_dir",
                str(tmp_path / "run"),
            ]
        )


# what a second review found


def test_a_cascade_decides_by_one_rule_whether_the_run_skipped_or_not(digits_ldm):
    """Validation images are all diffused; a threshold on a score that others do not have promises nothing."""
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


def test_threads_may_share_a_detector(detector):
    images = torch.cat([digits("test").images[:2], held_out().images[:2]])
    expected = [detector.predict(image[None]).scores for image in images]
    with ThreadPoolExecutor(4) as threads:
        found = list(
            threads.map(lambda i: detector.predict(images[i][None]).scores, list(range(4)) * 8)
        )
    for i, scores in zip(list(range(4)) * 8, found, strict=True):
        torch.testing.assert_close(scores, expected[i], atol=1e-5, rtol=0)


def test_any_number_of_images_is_decided_on_in_parts(detector, monkeypatch):
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


def test_an_infinite_calibration_score_is_kept(digits_ldm, tmp_path):
    features = torch.rand(100, len(digits_ldm.score_names), dtype=torch.float64)
    features[3, 0], features[4, 0] = float("inf"), float("-inf")
    detector = Detector(digits_ldm).calibrate_features(features)
    again = Detector.load(detector.save(tmp_path / "d.json"), model=digits_ldm)
    assert again.calibration.tolist() == detector.calibration.tolist()
    assert again.threshold == detector.threshold


def test_a_detector_file_that_appears_meanwhile_is_not_written_over(tmp_path, monkeypatch):
    out = tmp_path / "d.json"

    def calibrate_features(self, features):
        out.write_text("another's")
        return self

    monkeypatch.setattr(Detector, "calibrate_features", calibrate_features)
    settings = [*STEPS, "--data.limit", "20", "--trainer.default_root_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"d.json: .*another name.* --resume .*run"):
        calibrate.main(["--config", "digits_ldm", *settings, "--out", str(out)])
    assert out.read_text() == "another's"


def test_baselines_are_not_fitted_to_images_that_others_are_for(tmp_path):
    images = digits("val").images[:4]
    for name in ("ind", "train", "calibration"):
        saved(images, tmp_path / name, name)
    ind, train, calibration = (
        ImageDirectory(str(tmp_path / name)) for name in ("ind", "train", "calibration")
    )
    ood = {"near": {"other": held_out()}}
    settings = {"image_size": 16, "resize": None, "num_workers": 0}
    assert (
        OODDataModule(
            {"ind": ind}, ood, train=train, calibration=calibration, **settings
        ).train_dataloader()
        is not None
    )
    data = OODDataModule({"ind": ind}, ood, train=calibration, calibration=calibration, **settings)
    assert data.train_dataloader() is not None, "nothing is calibrated in this run"
    data.include_calibration()
    with pytest.raises(
        InputError,
        match=r"data.train: shares 4 images with .*calibration, such as .*calibration0.png",
    ):
        data.train_dataloader()
    with pytest.raises(
        InputError, match=r"data.train: shares 4 images with .*ind, such as .*ind0.png"
    ):
        OODDataModule({"ind": ind}, ood, train=ind, **settings).train_dataloader()


def test_a_classifier_that_was_set_to_train_is_neither_used_so_nor_changed(detector):
    images = digits("test").images[:4]
    expected, classifier = detector.predict(images).scores, detector.model.classifier
    before = {name: values.clone() for name, values in classifier.state_dict().items()}
    classifier.model.train()
    torch.testing.assert_close(detector.predict(images).scores, expected, atol=1e-5, rtol=0)
    assert all(
        torch.equal(values, before[name]) for name, values in classifier.state_dict().items()
    )


def test_batches_come_as_loaders_give_them(detector):
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
def test_settings_of_a_detector_that_cannot_be(digits_ldm, settings, said):
    with pytest.raises(InputError, match=said):
        Detector(**{"model": digits_ldm} | settings)


def test_classes_are_called_as_their_folders(tmp_path):
    for name, label in zip("01235678", range(8), strict=True):
        of_class = [i for i, found in enumerate(digits("val").labels) if found == label][:6]
        saved(digits("val").images[of_class], tmp_path / "val" / name, "digit")
        saved(digits("test").images[:1], tmp_path / "ind" / name, "digit")
    config = {
        "base": "digits_ldm",
        "data": {
            "class_path": "OODDataModule",
            "init_args": {
                "image_size": 16,
                "resize": None,
                "num_workers": 0,
                "ind": {
                    "mine": {
                        "class_path": "ClassFolders",
                        "init_args": {"root": str(tmp_path / "ind")},
                    }
                },
                "ood": {
                    "near": {
                        "other": {
                            "class_path": "ImageDirectory",
                            "init_args": {"root": str(tmp_path / "ind")},
                        }
                    }
                },
                "calibration": {
                    "class_path": "ClassFolders",
                    "init_args": {"root": str(tmp_path / "val")},
                },
            },
        },
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(config))
    arguments = ["--config", str(tmp_path / "mine.yaml"), *STEPS, "--out", str(tmp_path / "d.json")]
    calibrate.main([*arguments, "--trainer.default_root_dir", str(tmp_path / "run")])
    assert Detector.load(tmp_path / "d.json").predict(digits("test").images[:1]).label_names == [
        "6"
    ]


def test_kept_features_are_of_the_images_as_they_are_prepared_and_say_what_they_lack(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    paths = saved(digits("train").images[:30], tmp_path / "train" / "0", "digit")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(paths[0]).save(paths[0], exif=exif)

    def bank(upright: bool) -> torch.Tensor:
        source = ClassFolders(str(tmp_path / "train"), upright=upright)
        data = OODDataModule(
            {"ind": digits("test")},
            {"near": {"other": held_out()}},
            16,
            None,
            num_workers=0,
            train=source,
        )
        model = diffguard_pl.load("digits_ldm", discrepancies=["maps"], baselines={"knn": {"K": 5}})
        fit_baselines(
            model.baselines,
            model.classifier,
            data.train_dataloader(),
            data.train_contents(),
            "32-true",
            True,
            lambda: None,
        )
        return model.baselines.knn_bank

    plain, turned = bank(False), bank(True)
    assert len(list((tmp_path / "cache" / "features").glob("*.safetensors"))) == 2
    assert (plain != turned).any(dim=1).sum() == 1
    shutil.rmtree(tmp_path / "cache")
    Path(paths[1]).write_text("no image")
    with pytest.warns(
        UserWarning,
        match=r"without some training images \(1 .*digit1.png: not an",
    ):
        assert len(bank(False)) == 29
    with pytest.warns(
        UserWarning,
        match="lacks 1 of 30 training images.*remove",
    ):
        assert len(bank(False)) == 29
