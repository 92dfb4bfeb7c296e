"""A detector to deploy: calibrated by the command, read in Python, asked by the command."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import to_pil_image

import diffguard_pl
from diffguard_pl import Decision, Detector, InputError, calibrate, score
from diffguard_pl.calibration import threshold
from diffguard_pl.combine import Cascade, Fusion
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out, photos
from diffguard_pl.scores import read

STEPS = ["--model.steps", "5", "--model.discrepancies", "[maps, kl]"]


def saved(images: torch.Tensor, folder: Path, name: str) -> list[str]:
    """Images as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        to_pil_image(image).save(path)
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """What the command writes for the digits."""
    folder = tmp_path_factory.mktemp("calibrated")
    calibrate.main(["--config", "digits_ldm", *STEPS, "--tpr", "0.95", "--trainer.default_root_dir", str(folder)])
    return folder / "detector.json"


@pytest.fixture(scope="module")
def detector(file) -> Detector:
    return Detector.load(file)


@pytest.fixture
def asked(file, capsys):
    """Runs the command; returns its exit status, its lines and what it said."""

    def ask(*args: str) -> tuple[int, list[dict], str]:
        capsys.readouterr()
        try:
            score.main(["--detector", str(file), *args])
            status = 0
        except SystemExit as exit_:
            if isinstance(exit_.code, str):
                return 1, [], exit_.code
            status = exit_.code or 0
        said = capsys.readouterr()
        return status, [json.loads(line) for line in said.out.splitlines()], said.err

    return ask


def test_the_file_says_all_that_is_needed(file):
    content = json.loads(file.read_text())
    frame, _ = read(file.parent)
    assert len(frame) == len(content["calibration"]) == 215
    assert content["calibration"] == sorted(frame["maps"])
    assert content["threshold"]["value"] == threshold(frame["maps"].to_numpy(), 0.95).value
    assert (content["threshold"]["tpr"], content["score"]) == (0.95, "maps")
    assert content["threshold"]["low"] < content["threshold"]["value"] < content["threshold"]["high"]
    assert set(content["weights"]) == {"classifier", "backbone"}
    assert content["class_names"] == list("01235678")
    assert content["preparation"] == {"image_size": 16, "resize": 16, "interpolation": "bilinear"}
    assert content["about"]["images"] == {"scored": 215, "left_out": 0}
    assert content["about"]["accuracy"] > 0.99
    assert "torch" in content["about"]["versions"]
    assert file.stat().st_size < 30_000


def test_it_accepts_known_digits_and_rejects_others(detector):
    known, strange, far = (detector.predict(of.images[:60]) for of in (digits("test"), held_out(), photos()))
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
    assert one == (True, 5, "6", pytest.approx(known.scores[0].item()), pytest.approx(known.p_values[0].item()), True)
    assert (known.outlier_scores == -known.scores).all()
    assert len(known) == 60


def test_an_image_gets_the_same_decision_however_it_comes(detector, tmp_path):
    images = digits("test").images[:4]
    (path, *_) = saved(images, tmp_path, "digit")
    picture = Image.open(path)
    array = np.asarray(picture)
    rounded = torch.from_numpy(array.copy()).permute(2, 0, 1)
    ways = [picture, path, Path(path), array, rounded, rounded / 255, Image.open(path).convert("L"), array[..., 0]]
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
        ("nothere.png", "nothere.png: no such file"),
        ([], "images: there are none"),
        ([torch.rand(2, 8, 8)], r"image 0: is \[2, "),
        (
            [torch.rand(3, 16, 16), torch.rand(3, 16, 16) * 3],
            "image 1: has values from .* expected numbers in|image 1 of the batch has values",
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
    frame, _ = read(file.parent)
    torch.testing.assert_close(detector.predict(images).scores, torch.tensor(frame["maps"][:10].to_numpy()), atol=2e-5, rtol=0)


def test_another_tpr_from_the_same_images(file):
    detector = Detector.load(file)
    before = detector.threshold
    assert detector.with_tpr(0.8).threshold > before
    with pytest.raises(InputError, match=r"tpr=0.999 takes at least 999"):
        detector.with_tpr(0.999)


def test_it_works_like_a_detector_of_pytorch_ood(digits_ldm):
    validation = DataLoader(spread(digits("val"), 60), 32)
    detector = Detector(digits_ldm, tpr=0.9)
    with pytest.raises(InputError, match="has no threshold yet; call fit"):
        detector.predict(digits("test").images[:1])
    assert detector.fit(validation) is detector
    images = torch.cat([digits("test").images[:8], held_out().images[:8]])
    features = detector.features(images)
    assert features.shape == (16, len(detector.score_names))
    found, again = detector.predict(images), detector.predict_features(features)
    torch.testing.assert_close(found.scores, again.scores, atol=1e-5, rtol=0)
    assert found.accepted.tolist() == again.accepted.tolist()
    cached = torch.cat([detector.features(batch["image"]) for batch in validation])
    other = Detector(digits_ldm, tpr=0.9).fit_features(cached)
    assert other.threshold == pytest.approx(detector.threshold, abs=1e-5)
    with pytest.raises(InputError, match=r"features are \[2, 3\], expected \[N, 12\]: maps, features"):
        detector.predict_features(torch.rand(2, 3))


def test_a_cascade_asks_the_diffusion_model_only_where_it_is_unsure(digits_ldm, tmp_path):
    cascade = Cascade("msp", 0.3, "fusion")
    validation = DataLoader(spread(digits("val"), 81), 64)
    detector = Detector(digits_ldm, fusion=Fusion(["maps", "msp"]), cascade=cascade).fit(validation)
    assert (detector.score, detector.calibrated.images) == ("cascade", 40)  # the other half has made the scales
    images = torch.cat([digits("test").images[:60], photos().images[:20]])
    before = digits_ldm.unet_rows
    found = detector.predict(images)
    assert 0 < found.diffused.sum() < 60
    assert digits_ldm.unet_rows - before == 30 * found.diffused.sum()
    assert found.all_scores["maps"].isnan().tolist() == (~found.diffused).tolist()
    assert not found.scores.isnan().any()
    full = detector.predict_features(detector.features(images))
    torch.testing.assert_close(found.scores, full.scores, atol=1e-3, rtol=0)
    again = Detector.load(detector.save(tmp_path / "cascade.json"), model=digits_ldm, device="cpu")
    torch.testing.assert_close(again.predict(images).scores, found.scores, atol=1e-4, rtol=0)
    assert again.threshold == detector.threshold


def test_fitted_baselines_come_with_the_file(tmp_path):
    settings = ["--model.baselines", "[msp, knn, mahalanobis]", "--model.fusion.scores", "[maps, mahalanobis]"]
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
    beside = tmp_path / "d.fitted.safetensors"
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match=r"d.fitted.safetensors: is not the one that the detector file was written with"):
        Detector.load(tmp_path / "d.json")
    beside.unlink()
    with pytest.raises(InputError, match=r"d.fitted.safetensors: is missing; it belongs beside the detector file"):
        Detector.load(tmp_path / "d.json")


def test_other_weights_are_refused(file, tmp_path):
    content = json.loads(file.read_text())
    content["weights"]["backbone"] = "0" * 64
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="the weights of the backbone are not those that it was calibrated with"):
        Detector.load(tmp_path / "d.json")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: "not json", "no detector file"),
        (lambda content: json.dumps({"a": 1}), "no detector file; python -m diffguard_pl.calibrate writes one"),
        (lambda content: json.dumps(content | {"version": 99}), "of version 99; this is for version 1: calibrate again"),
        (lambda content: json.dumps({k: v for k, v in content.items() if k != "calibration"}), "damaged, or of another version"),
        (lambda content: json.dumps(content | {"model": content["model"] | {"nonsense": 1}}), "nonsense"),
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
    with pytest.raises(InputError, match=r"nothere.json: no such file; python -m diffguard_pl.calibrate writes one"):
        Detector.load("nothere.json")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--tpr", "1.5"], "tpr=1.5: expected a share above 0 and below 1"),
        (["--tpr", "0.999"], "tpr=0.999 takes at least 999 in-distribution images to set the threshold by; there are 215"),
        (["--score", "dists"], "no score 'dists'; there are: maps, kl, msp"),
        (["--model.oracle", "ind"], "a detector knows no true labels"),
        (["--shard", "0/2"], "a calibration needs all its images"),
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
        calibrate.main(["--config", "digits_ldm", *STEPS, *args, "--trainer.default_root_dir", str(tmp_path / "run")])
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
    assert Detector.load(tmp_path / "detector.json").threshold == pytest.approx(Detector.load(file).threshold, abs=1e-5)


def test_the_command_decides_on_files_and_folders(asked, tmp_path):
    known = saved(digits("test").images[:5], tmp_path / "in" / "known", "digit")
    strange = saved(photos().images[:5], tmp_path / "in", "photo")
    (tmp_path / "in" / "broken.jpg").write_text("no image")
    status, lines, said = asked(str(tmp_path / "in"), known[0], str(tmp_path / "missing.png"))
    assert status == 3
    by_path = {line["path"]: line for line in lines}
    assert len(lines) == len(by_path) == 12
    assert [line["path"] for line in lines] == [
        str(tmp_path / "in" / "broken.jpg"),
        *known,
        *strange,
        str(tmp_path / "missing.png"),
    ]
    assert by_path[str(tmp_path / "in" / "broken.jpg")] == {
        "path": str(tmp_path / "in" / "broken.jpg"),
        "error": "not an image that PIL can read",
    }
    assert by_path[str(tmp_path / "missing.png")]["error"] == "no such file"
    assert all(by_path[path]["decision"] == "reject" for path in strange)
    assert sum(by_path[path]["decision"] == "accept" for path in known) >= 4
    first = by_path[known[0]]
    assert set(first) == {"path", "decision", "label", "class", "score", "p_value", "diffused"}
    assert first["class"] == "6"
    assert "2 could not be read" in said


def test_the_exit_status_tells_of_rejected_images(asked, tmp_path):
    known = saved(digits("test").images[1:3], tmp_path, "digit")
    strange = saved(photos().images[:1], tmp_path, "photo")
    assert asked(*known, "--fail-on-ood")[0] == 0
    assert asked(*known, *strange, "--fail-on-ood")[0] == 4
    assert asked(*known, *strange)[0] == 0
    assert asked(*strange, str(tmp_path / "missing.png"), "--fail-on-ood")[0] == 4


def test_csv_pictures_and_going_on(asked, tmp_path):
    paths = saved(digits("test").images[:3], tmp_path, "digit") + saved(photos().images[:2], tmp_path, "photo")
    out = tmp_path / "scores.csv"
    assert asked(*paths[:3], "--out", str(out), "--pictures", str(tmp_path / "pictures"))[0] == 0
    assert "is there already; --resume adds to it" in asked(*paths, "--out", str(out))[2]
    out.write_text(out.read_text() + paths[3][:10])  # cut off in the middle of a line
    assert asked(*paths, "--out", str(out), "--resume", "--pictures", str(tmp_path / "pictures"))[0] == 0
    lines = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [line["path"] for line in lines] == paths
    assert [line["decision"] for line in lines[3:]] == ["reject", "reject"]
    assert len({line["picture"] for line in lines[:3]}) == 3
    drawn = [Image.open(line["picture"]) for line in lines]
    assert all(picture.width > 3 * 224 for picture in drawn)


def test_json_lines_go_on_too(asked, tmp_path):
    paths = saved(digits("test").images[:3], tmp_path, "digit")
    out = tmp_path / "scores.jsonl"
    asked(*paths[:2], "--out", str(out))
    asked(*paths, "--out", str(out), "--resume")
    assert [json.loads(line)["path"] for line in out.read_text().splitlines()] == paths
    (tmp_path / "else.jsonl").write_text("hello\n")
    assert "holds something else than scores" in asked(*paths, "--out", str(tmp_path / "else.jsonl"), "--resume")[2]


def test_paths_from_standard_input(asked, tmp_path, monkeypatch):
    paths = saved(digits("test").images[:2], tmp_path, "digit")
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(paths) + "\n"))
    assert [line["path"] for line in asked("-")[1]] == paths


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch-size", "0"], "expected at least 1 and 0"),
        (["--device", "nonsense"], "nonsense"),
        (["--tpr", "2"], "tpr=2.0: expected a share"),
        (["--out", "/proc/nothing/out.jsonl"], "could not be written"),
    ],
)
def test_mistakes_are_said_in_one_line(asked, tmp_path, args, said):
    status, _, message = asked(*saved(digits("test").images[:1], tmp_path, "digit"), *args)
    assert (status, said in message, "\n" in message.strip()) == (1, True, False)


def test_an_empty_folder(asked, tmp_path):
    assert "no images in it" in asked(str(tmp_path))[2]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_keeps_what_is_done_and_says_how_to_go_on(file, tmp_path, signum):
    paths = saved(digits("test").images[:200], tmp_path / "in", "digit")
    out = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "diffguard_pl.score", "--detector", str(file), str(tmp_path / "in"), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--batch-size", "4", "--slots", "8", "--workers", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    until = time.monotonic() + 120
    while not (out.exists() and out.read_text().count("\n") > 8) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, said
    assert f"stopped by {signal.Signals(signum).name}; --resume goes on with {out}" in said
    lines = out.read_text().splitlines()
    assert 8 < len(lines) < len(paths)


def test_calibrated_in_half_precision_it_decides_in_half_precision(tmp_path):
    arguments = ["--config", "digits_ldm", *STEPS, "--data.limit", "40", "--trainer.precision", "bf16-true"]
    calibrate.main([*arguments, "--trainer.default_root_dir", str(tmp_path)])
    detector = Detector.load(tmp_path / "detector.json")
    assert detector.precision == "bf16-true"
    assert next(detector.model.classifier.model.parameters()).dtype == torch.bfloat16
    frame, _ = read(tmp_path)
    found = detector.predict(spread_images(40)).scores
    torch.testing.assert_close(found, torch.tensor(frame["maps"].to_numpy()), atol=1e-3, rtol=0)


def spread_images(count: int) -> torch.Tensor:
    data = spread(digits("val"), count)
    return torch.stack([data[i]["image"] for i in range(count)])


def test_parts_of_ones_own(tmp_path):
    model = diffguard_pl.load("digits_ldm", steps=5, discrepancies=["maps"])
    detector = Detector(model, tpr=0.9, class_names=["nought", "one", "two", "three", "five", "six", "seven", "eight"])
    detector.fit(DataLoader(spread(digits("val"), 40), 20)).save(tmp_path / "mine.json")
    with pytest.raises(InputError, match="give the model"):
        Detector.load(tmp_path / "mine.json")
    again = Detector.load(tmp_path / "mine.json", model=model)
    assert again.predict(digits("test").images[:1]).label_names == ["six"]
    assert again.threshold == detector.threshold
