"""Path scores in a run and in a detector: fitted once, refused where they do not fit."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers.dense import SIDE, DenseBackbone, dense_diffguard
from torch.utils.data import DataLoader

import diffguard_pl
from diffguard_pl import Detector, DiffGuardModule, InputError
from diffguard_pl.commands.evaluate import main
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.diffusion.classifier_guidance import ClassifierGuidance
from diffguard_pl.diffusion.path import Path
from diffguard_pl.evaluation.path_fit import fit_path_scores
from diffguard_pl.runs.record import read_record
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.combination import Cascade, Combination
from diffguard_pl.scores.path.base import PathScore
from diffguard_pl.scores.path.collection import PathScores
from diffguard_pl.scores.path.names import PATH_SCORES
from diffguard_pl.stages import Gates

TIMESTEPS = torch.arange(1, 1000, 100)


class Deepest(PathScore):
    """The norm of the noise at the last of three steps."""

    name = "deepest"

    @property
    def path_steps(self) -> int:
        return 3

    def features(self, path: Path) -> torch.Tensor:
        return path.inversion("eps2")[:, 2:3]

    def score(self, features, fitted) -> torch.Tensor:
        return -features[:, 0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["diffpaths"], "path score 'diffpaths'"),
        (["msma", "msma"], "each once"),
        ("msma", "must be a list of names"),
        ({"msma": {"step": 2}}, "hyper-parameter of path score msma 'step'"),
        ({"msma": {"steps": 9}}, "msma: steps=9 must be 1 to 8"),
        ({"diffpath": {"steps": 1}}, "diffpath: steps=1 must be 2 to 8"),
        ({"label_pull": {"times": 0.1}}, "label_pull: times=0.1 must be a list of numbers"),
        ({"label_pull": {"times": []}}, r"label_pull: times=\[\] must be a list"),
        ({"label_pull": {"times": [0.1, 2]}}, r"times=\[0.1, 2\] must be a list .* from 0 to 1"),
        ({"label_pull": {"times": [0.9]}}, r"times=\[0.9\] must be at most 0.702"),
        ({"label_pull": {"steps": [1]}}, "hyper-parameter of path score label_pull 'steps'"),
        ({"label_pull": {"at": "start"}}, "at of path score label_pull 'start'"),
        (["diffguard_pl.errors.InputError"], "must be a subclass of"),
    ],
)
def test_wrong_settings_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        PathScores(names, TIMESTEPS, 8, 1000)


def test_every_score_is_built_by_its_name():
    scores = PathScores(list(PATH_SCORES), TIMESTEPS, 8, 1000)
    assert scores.names == list(PATH_SCORES)
    assert scores.hyperparameters["label_pull"]["steps"] == (1,)
    assert (scores.path_steps, scores.pull_steps) == (8, [1])


def test_without_reconstruction_nothing_else_is_computed():
    with pytest.raises(InputError, match=r"compare_to=none: .* set discrepancies to \[\]"):
        dense_diffguard(discrepancies=["l2"], path_scores=["label_pull"])
    with pytest.raises(InputError, match="compare_to=none: needs path_scores"):
        dense_diffguard()
    with pytest.raises(InputError, match="discrepancies: must be one or more names; or set comp"):
        dense_diffguard(compare_to="input")
    model = dense_diffguard(path_scores=["label_pull"])
    detection = model(torch.rand(3, 3, SIDE, SIDE, dtype=torch.double))
    assert detection.reconstructions is None
    assert [*detection.scores] == ["label_pull", *model.baselines.names]
    assert detection.nfe.tolist() == [3] * 3
    assert detection.stop_index.tolist() == [1] * 3


def test_batches_without_images_and_images_that_the_gate_stops_are_no_trouble():
    model = dense_diffguard(path_scores=["msma"], slots=4)
    model.fit_path_scores([torch.rand(40, 3, SIDE, SIDE, dtype=torch.double)])
    stream = model.stream()
    found = stream.push_nothing("empty")
    images = torch.rand(3, 3, SIDE, SIDE, dtype=torch.double)
    found += stream.push(images, tag="none", gates=Gates(lambda _: torch.zeros(3, dtype=bool)))
    found += stream.push_nothing("empty")
    found += stream.drain()
    assert [tag for tag, _ in found] == ["empty", "none", "empty"]
    assert found[1][1].scores["msma"].isnan().all()
    assert found[1][1].nfe.tolist() == [0] * 3


def test_a_fit_takes_as_many_images_as_it_is_told():
    model = dense_diffguard(path_scores=["msma"], path_fit_images=40)
    batches = [torch.rand(16, 3, SIDE, SIDE, dtype=torch.double) for _ in range(9)]
    assert len(model.path_features(iter(batches))["msma"]) == 48  # in whole batches
    with pytest.raises(InputError, match="path_fit_images=0: must be at least 1"):
        dense_diffguard(path_scores=["msma"], path_fit_images=0)


def test_a_fit_evaluates_only_what_is_fitted():
    settings = {"msma": {"steps": 3}, "lmd": None, "gepc": None}
    model = dense_diffguard(path_scores=settings)
    images = torch.rand(40, 3, SIDE, SIDE, dtype=torch.double)
    features = model.path_features([images])
    assert [*features] == ["msma", "gepc"]
    assert model.nfe == 40 * (3 + 8)
    model.path_scores.fit_features(features)
    assert [*model(images[:1]).scores][:3] == ["msma", "lmd", "gepc"]


def test_a_conditional_model_without_a_label_for_no_class_has_no_measured_scores():
    backbone = DenseBackbone()
    backbone.null_label = None
    settings = {"backbone": backbone, "guidance": ClassifierGuidance(cutouts=0)}
    for name in ("gepc", "diffnb"):
        with pytest.raises(InputError, match=f"path_scores: {name}: .*leave it out"):
            dense_diffguard(path_scores=[name], **settings)
    dense_diffguard(path_scores=["msma"], **settings)


def test_a_middle_stage_needs_an_early_path_score():
    for path_scores, middle, message in (
        ([], "label_pull", "needs a path score .* set model.path_scores"),
        (["label_pull"], "msma", "path score for model.cascade.middle 'msma'"),
    ):
        cascade = Cascade("msp", middle=middle)
        with pytest.raises(InputError, match=message):
            Combination.checked(None, cascade, ["maps", *path_scores], ["msp"], path_scores)
    cascade = Cascade("msp", then="label_pull", middle="label_pull")
    with pytest.raises(InputError, match=r"score for model.cascade.then 'label_pull'"):
        Combination.checked(None, cascade, ["maps", "label_pull"], ["msp"], ["label_pull"])


def test_a_score_of_your_own_by_its_import_path():
    model = dense_diffguard(path_scores=[f"{__name__}.Deepest"])
    detection = model(torch.rand(2, 3, SIDE, SIDE, dtype=torch.double))
    expected = -detection.path.inversion("eps2")[:, 2]
    torch.testing.assert_close(detection.scores["deepest"], expected.float())


def test_an_image_without_a_label_has_no_path_score(monkeypatch):
    model = dense_diffguard(path_scores=["label_pull"])
    images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.double)
    forward = model.classifier.model.forward
    monkeypatch.setattr(
        model.classifier.model,
        "forward",
        lambda x: forward(x) + torch.tensor([[torch.nan], [0.0]]),
    )
    assert model(images).scores["label_pull"].isnan().tolist() == [True, False]


def test_an_image_that_stops_before_the_steps_of_a_score_has_none_and_few_images_do_not_fit():
    settings = {"early_stop": {"psnr": 58.0}, "path_scores": {"msma": {"steps": 8}}}
    model = diffguard_pl.load("digits_gdm", **settings)
    model.fit_path_scores([digits("train").images[:31]])
    detection = model(digits("test").images[:2])
    assert (detection.stop_index < 7).all()
    assert detection.scores["msma"].isnan().all()
    with pytest.raises(InputError, match=r"msma: 20 of 20 images to fit to .* at least 30"):
        model.fit_path_scores([digits("train").images[:20]])


def test_a_run_fits_to_some_training_images_once(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    arguments = [
        *("--config", "pull/digits_ldm", "--data.limit", "8", "--page.enabled", "false"),
        *("--model.path_scores", "{msma: {steps: 2}, label_pull: null}"),
        *("--model.path_fit_images", "40"),
    ]
    written = []
    for name in "ab":
        main([*arguments, "--trainer.default_root_dir", str(tmp_path / name)])
        (kept,) = (tmp_path / "cache" / "features").glob("*.safetensors")
        written.append(kept.stat().st_mtime_ns)
    assert written[0] == written[1]
    frames = [read_scores(tmp_path / name)[0] for name in "ab"]
    assert (frames[0]["nfe"] == 3).all()
    # what the fit evaluates is no cost of an image
    (session,) = read_record(tmp_path / "a")["sessions"]
    assert session["throughput"]["nfe"] == 3 * len(frames[0])
    np.testing.assert_array_equal(frames[0]["msma"], frames[1]["msma"])

    # The same as with evenly spaced images by hand.
    model = diffguard_pl.load(
        "pull/digits_ldm", path_scores={"msma": {"steps": 2}, "label_pull": None}
    )
    model.fit_path_scores(DataLoader(spread(digits("train"), 40), 16))
    some = spread(digits("test"), 8)
    images = torch.stack([some[i]["image"] for i in range(8)])
    of_digits = frames[0][frames[0]["dataset"] == "digits"]
    for name in ("msma", "label_pull"):
        np.testing.assert_allclose(of_digits[name], model(images).scores[name], rtol=1e-4)


def test_what_features_depend_on_is_in_the_key_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    code = (
        "import torch\n"
        "from diffguard_pl.scores.path.density import Z_SCORE, fit_z_score, z_score\n"
        "from diffguard_pl.scores.path.base import PathScore\n"
        "class Mean(PathScore):\n"
        "    name, path_steps, tensors = 'mean', 1, Z_SCORE\n"
        "    def features(self, path): return path.inversion('eps')[:, :1]\n"
        "    def fit(self, features): return fit_z_score(features, self.name)\n"
        "    def score(self, features, fitted): return -z_score(features, fitted)[:, 0]\n"
    )
    source = tmp_path / "score_of_a_user.py"
    source.write_text(code)
    data = diffguard_pl.config.load_data(["digits_ldm"])

    def kept_after_a_fit(**settings) -> int:
        scores = ["score_of_a_user.Mean"]
        model = diffguard_pl.load("pull/digits_ldm", path_scores=scores, **settings)
        model.path_fit_images = 32
        fit_path_scores(model, data, "32-true", True, lambda: None)
        return len(list((tmp_path / "cache" / "features").glob("*.safetensors")))

    assert kept_after_a_fit() == 1
    assert kept_after_a_fit() == 1
    assert kept_after_a_fit(backbone__init_args__antialias=False) == 2
    source.write_text(code + "# changed\n")
    assert kept_after_a_fit() == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance__interval": [0.3, 1.0]}, r"time 0.101 .* set times to any of 0.3"),
        ({"skip_last_steps": 2}, r"time 0.101 is not guided"),
        ({"skip_first_steps": 9, "early_stop_steps": 1}, r"set times to any of 0.001,"),
    ],
)
def test_the_pull_at_a_denoising_step_that_is_not_guided_is_refused(settings, message):
    scores = {"label_pull": {"at": "denoising"}}
    with pytest.raises(InputError, match=f"path_scores: label_pull: .*{message}"):
        diffguard_pl.load("digits_ldm", path_scores=scores, **settings)


def test_without_training_images_a_run_says_what_to_do():
    model = diffguard_pl.load("pull/digits_ldm")
    module = DiffGuardModule(
        classifier=model.classifier,
        backbone=model.backbone,
        guidance=model.guidance,
        steps=5,
        discrepancies=[],
        compare_to="none",
        path_scores=["msma"],
    )
    loader = DataLoader(spread(digits("test"), 4), 4)
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    with pytest.raises(InputError, match=r"path_scores: msma must be fitted .*set data.train"):
        trainer.test(module, {"a": loader, "b": loader}, verbose=False)


def test_a_detector_of_the_label_pull_keeps_what_was_fitted(tmp_path):
    model = diffguard_pl.load("pull/digits_ldm", path_scores={"label_pull": {"sides": "two"}})
    detector = Detector(model, tpr=0.9).fit_path_scores([digits("train").images[:60]])
    detector.calibrate([digits("val").images[:60]])
    again = Detector.load(
        detector.save(tmp_path / "d.json"),
        diffguard_pl.load("pull/digits_ldm", path_scores={"label_pull": {"sides": "two"}}),
    )
    images = torch.cat([digits("test").images[:20], held_out().images[:20]])
    decisions = again.predict(images)
    assert decisions.score_name == "label_pull"
    assert decisions.reconstructions is None
    assert torch.equal(decisions.scores, detector.predict(images).scores)
    assert decisions.accepted[:20].float().mean() > 0.7
    other = diffguard_pl.load("pull/digits_ldm", path_scores={"label_pull": {"times": [0.2]}})
    with pytest.raises(InputError, match="calibrated with another path_scores"):
        Detector.load(tmp_path / "d.json", other)
