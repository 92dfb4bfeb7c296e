"""The command ``diffguard-pl calibrate``."""

import json

import pytest
import torch
from helpers.images import saved

from diffguard_pl import Detector
from diffguard_pl.commands import calibrate
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.runs.store import read_scores

STEPS = ["--model.steps", "5", "--model.discrepancies", "[maps, kl]"]


@pytest.fixture(scope="module")
def detector(file) -> Detector:
    return Detector.load(file)


def test_the_detector_gives_the_scores_of_the_run(detector, file):
    """Scores in Python are those that the calibration has on record."""
    images = digits("val").images[:10]
    frame, _ = read_scores(file.parent)
    torch.testing.assert_close(
        detector.predict(images).scores,
        torch.tensor(frame["maps"][:10].to_numpy()),
        atol=2e-5,
        rtol=0,
    )


def spread_images(count: int) -> torch.Tensor:
    data = spread(digits("val"), count)
    return torch.stack([data[i]["image"] for i in range(count)])


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


def test_classes_are_named_after_their_folders(tmp_path):
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


def test_an_interrupted_calibration_is_resumed(file, tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--tpr", "1.5"], "tpr: 1.5 must be"),
        (["--tpr", "0.999"], "tpr: 0.999 needs at least 999"),
        (["--score", "dists"], "unknown score 'dists'; choose from: maps, kl, msp"),
        (["--model.oracle", "ind"], "model.oracle=ind: "),
        (["--shard", "0/2"], "shard: "),
        (["--data.class_path", "OODDataModule"], "calibration"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(args, message, tmp_path):
    if "OODDataModule" in args:
        source = {"class_path": "ImageDirectory", "init_args": {"root": str(tmp_path)}}
        saved(digits("test").images[:2], tmp_path, "a")
        args = [
            *(*args, "--data.image_size", "16"),
            *("--data.ind", json.dumps({"a": source})),
            *("--data.ood", json.dumps({"far": {"b": source}})),
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
    assert message in str(ended.value)


def test_a_precision_that_detectors_lack_is_refused(tmp_path):
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


def test_calibration_images_that_are_all_unreadable_are_reported(tmp_path):
    (tmp_path / "bad").mkdir()
    for i in range(30):
        (tmp_path / "bad" / f"{i}.png").write_text("x")
    source = {"class_path": "ImageDirectory", "init_args": {"root": str(tmp_path / "bad")}}
    settings = [
        *("--data.class_path", "OODDataModule", "--data.num_workers", "0"),
        *("--data.image_size", "16", "--data.resize", "16"),
        *("--data.ind", json.dumps({"a": source})),
        *("--data.ood", json.dumps({"far": {"b": source}})),
        *("--data.calibration", json.dumps(source)),
    ]
    with pytest.raises(SystemExit, match=r"calibration: .*30 images.*0\.png.*not an image"):
        calibrate.main(
            [
                "--config",
                "digits_ldm",
                *STEPS,
                *settings,
                "--trainer.default_root_dir",
                str(tmp_path / "run"),
            ]
        )


def test_an_existing_detector_file_is_not_overwritten(file, tmp_path):
    (tmp_path / "d.json").write_text("mine")
    for out, message in (
        (tmp_path / "d.json", "exists already"),
        ("/proc/nothing/d.json", "cannot be written"),
    ):
        with pytest.raises(SystemExit, match=message):
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


def test_a_detector_file_that_appears_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    out = tmp_path / "d.json"

    def calibrate_features(self, features):
        out.write_text("another's")
        return self

    monkeypatch.setattr(Detector, "calibrate_features", calibrate_features)
    settings = [*STEPS, "--data.limit", "20", "--trainer.default_root_dir", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match=r"d.json: .*another name.* --resume .*run"):
        calibrate.main(["--config", "digits_ldm", *settings, "--out", str(out)])
    assert out.read_text() == "another's"
