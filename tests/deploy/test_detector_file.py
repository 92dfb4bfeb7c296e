"""The file of a calibrated detector."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.files import changed_detector
from safetensors.torch import load_file
from torch.utils.data import DataLoader

import diffguard_pl
from diffguard_pl import Classifier, Detector, InputError
from diffguard_pl.classifiers.resnets import SmallResNet
from diffguard_pl.commands import calibrate
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.deploy.detector_file import CHECKSUM
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.conformal import threshold

STEPS = ["--model.steps", "5", "--model.discrepancies", "[maps, kl]"]


def test_the_file_holds_all_that_a_detector_needs(file):
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


def test_a_detector_built_in_python_is_loaded_with_its_model(tmp_path):
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


def test_an_infinite_calibration_score_is_kept(digits_ldm, tmp_path):
    features = torch.rand(100, len(digits_ldm.score_names), dtype=torch.float64)
    features[3, 0], features[4, 0] = float("inf"), float("-inf")
    detector = Detector(digits_ldm).calibrate_features(features)
    again = Detector.load(detector.save(tmp_path / "d.json"), model=digits_ldm)
    assert again.calibration.tolist() == detector.calibration.tolist()
    assert again.threshold == detector.threshold


def test_fitted_baselines_are_stored_beside_the_file(tmp_path):
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


def test_an_ensemble_is_calibrated_saved_and_found_from_any_folder(tmp_path, monkeypatch):
    shipped = Path(diffguard_pl.__file__).parent / "weights" / "digits_classifier"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    state = load_file(shipped / "model.safetensors")
    for name, factor in (("a.pt", 1.0), ("b.pt", 0.5)):
        torch.save(state | {"fc.weight": state["fc.weight"] * factor}, name)
    settings = [
        "--model.classifier.checkpoint", "[a.pt, b.pt]", "--model.baselines", "[ensemble, msp]",
        "--model.cascade.baseline", "ensemble", "--model.steps", "2", "--data.limit", "40",
        "--model.discrepancies", "[maps]", "--out", "d.json", "--trainer.default_root_dir", "run",
    ]  # fmt: skip
    calibrate.main(["--config", "digits_ldm", *settings])
    frame, _ = read_scores(tmp_path / "here" / "run")
    assert frame["ensemble"].tolist() == pytest.approx(frame["msp"].tolist())

    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    detector = Detector.load("../here/d.json")
    assert detector.model.classifier.members == 2
    p = [
        Classifier(SmallResNet(), f"../here/{name}.pt", None, 16, [0.5] * 3, [0.5] * 3)
        for name in "ab"
    ]
    images = digits("val").images[:20]
    expected = sum(member(images).softmax(1) for member in p).amax(1) / 2
    scores = detector.model.baselines(detector.model.classifier.view(images), images)
    torch.testing.assert_close(scores["ensemble"], expected)

    torch.save(state, "../here/b.pt")
    with pytest.raises(InputError, match=r"weights of the classifier differ .* calibrate again"):
        Detector.load("../here/d.json")


def test_only_settings_without_effect_on_scores_may_be_changed(file):
    assert Detector.load(file, slots=8).model.slots == 8
    with pytest.raises(
        InputError, match="unknown setting that may be changed 'steps'; choose from: slots, compile"
    ):
        Detector.load(file, steps=9)
    with pytest.raises(InputError, match="slots: cannot be changed together with model"):
        Detector.load(file, model=diffguard_pl.load("digits_ldm", steps=5), slots=8)


def test_other_weights_are_refused(file, tmp_path):
    changed_detector(
        file, tmp_path / "d.json", lambda content: content["weights"].update(backbone="0" * 64)
    )
    with pytest.raises(InputError, match=r"the weights of the backbone differ .* calibrate again"):
        Detector.load(tmp_path / "d.json")


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


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not json", "is not a detector file"),
        ('{"a": 1}', "is not a detector file; write one with diffguard-pl calibrate"),
        ("[" * 100_000, "is not a detector file"),
        ("[]", "is not a detector file"),
    ],
    ids=range(4),
)
def test_a_foreign_file_is_refused(content, said, tmp_path):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(InputError, match=said):
        Detector.load(tmp_path / "d.json")


def put(name: str, value: object) -> Callable:
    """Return a change that sets an entry, given by its dotted name."""

    def change(content: dict) -> None:
        *parents, last = name.split(".")
        for parent in parents:
            content = content[parent]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("version", 99), "version: must be 1, not 99; calibrate again"),
        (put("version", "9" * 100_000), "version: .*calibrate again"),
        (lambda content: content.pop("calibration"), "calibration: is missing; .*calibrate again"),
        (put("model.nonsense", 1), "model: .*nonsense"),
        (put("model.steps", "many" * 30_000), "model: .*steps"),
        (put("model.backbone", []), "model: .*backbone"),
        (put("model", None), r"was not made from a config; give the model: Detector.load\(file, m"),
        (put("tf32", ""), r'tf32: must be true or false, not ""; .*calibrate'),
        (put("tf32", "x" * 100_000), "tf32: must be true or false"),
        (put("precision", "33-true"), ".*precision"),
        (put("precision", None), "precision: must be"),
        (put("score", "mapz"), "unknown score 'mapz'"),
        (put("threshold", []), "threshold: must be"),
        (put("threshold.tpr", "0.95"), "threshold.tpr: must be"),
        (put("threshold.tpr", 7), "tpr"),
        (put("preparation.resize", 16.5), "preparation.resize: must be"),
        (put("preparation.blur", 1), ".*blur"),
        (put("class_names", [["a"]]), "class_names: must be"),
        (put("class_names", ["a"]), "class_names: must be 8"),
        (put("weights", {"classifier": 3}), "weights: must be"),
        (put("fitted", {"file": "x"}), "fitted: must be"),
        (put("fitted", {"file": "../x", "sha256": "0"}), "fitted: "),
        (put("combination", {"fusion": {"score": 3}}), "combination: "),
        (put("calibration", [0.5, "0.7"]), "calibration: must be"),
        (put("reference", {"maps": [[1]]}), "reference: must be"),
        (put("model.classifier.init_args.checkpoint", "/" + "x" * 5000), "model: "),
        (put("callibration", []), "unknown entry 'callibration'"),
    ],
    ids=range(27),
)
def test_a_damaged_entry_is_named_in_a_short_line(file, tmp_path, change, said):
    copy = changed_detector(file, tmp_path / "d.json", change)
    with pytest.raises(InputError, match=f"d.json: {said}") as error:
        Detector.load(copy)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1500


def test_a_change_that_no_entry_shows_is_found_by_the_checksum(file, tmp_path):
    text = file.read_text()
    content = json.loads(text)
    (tmp_path / "d.json").write_text(json.dumps(content, sort_keys=True))  # as another program may
    assert Detector.load(tmp_path / "d.json").threshold == content["threshold"]["value"]

    content.pop(CHECKSUM)
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"d.json: {CHECKSUM}: is missing"):
        Detector.load(tmp_path / "d.json")

    position = text.index(str(content["calibration"][100])) + 4
    damaged = f"{text[:position]}{(int(text[position]) + 1) % 10}{text[position + 1 :]}"
    (tmp_path / "d.json").write_text(damaged)
    with pytest.raises(InputError, match=r"d.json: is damaged.*checksum|d.json: .*sha256"):
        Detector.load(tmp_path / "d.json")


def test_a_missing_file_is_reported_with_the_remedy():
    with pytest.raises(
        InputError, match=r"nothere.json: no such file; .*diffguard-pl calibrate.* digits_ldm"
    ):
        Detector.load("nothere.json")


def test_a_file_with_the_import_paths_of_earlier_versions_is_read(file, tmp_path):
    content = file.read_text()
    for now, then in (
        ("classifiers.resnets.SmallResNet", "smallnet.SmallResNet"),
        ("diffusion.classifier_free_guidance.", "diffusion.guidance."),
    ):
        assert now in content
        content = content.replace(now, then)
    (tmp_path / "d.json").write_text(content)
    assert Detector.load(tmp_path / "d.json").threshold == Detector.load(file).threshold


def test_a_threshold_that_its_scores_do_not_give_is_refused(file, tmp_path):
    def lower(content: dict) -> None:
        content["threshold"]["value"] -= 0.01

    changed_detector(file, tmp_path / "d.json", lower)
    with pytest.raises(InputError, match=r"d.json: is damaged"):
        Detector.load(tmp_path / "d.json")


def test_a_loaded_detector_is_saved_as_it_was(file, tmp_path):
    before = json.loads(file.read_text())
    Detector.load(file).save(tmp_path / "again.json")
    after = json.loads((tmp_path / "again.json").read_text())
    assert after.pop("about") == before.pop("about")
    for content in (before, after):
        content.pop(CHECKSUM)  # the time is another one
    for content in (before, after):
        for name in ("low", "high", "rejects_low", "rejects_high"):
            content["threshold"][name] = pytest.approx(content["threshold"][name])
    assert after == before
