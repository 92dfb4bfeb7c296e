"""Fusion and cascade: what they compute, in a run, in a cascade that skips, and from the run's folder."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.commands.evaluate import main
from diffguard_pl.config import load_data
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.metrics.table import ScoreTable
from diffguard_pl.report.results import read_results
from diffguard_pl.runs.store import read as read_scores
from diffguard_pl.scores.combination import SURE, Cascade, Combination, Fusion
from diffguard_pl.scores.conformal import scale

QUICK = [
    "--data.batch_size",
    "16",
    "--data.limit",
    "32",
    "--model.slots",
    "16",
    "--model.steps",
    "5",
    "--pictures.count",
    "2",
]
COMBINED = [
    "--model.fusion.scores",
    "[maps, msp]",
    "--model.cascade.budget",
    "0.4",
    "--model.cascade.then",
    "fusion",
]


def some(seed: int, size: int = 400) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        "maps": generator.normal(size=size),
        "msp": generator.beta(9, 1, size=size),
        "knn": -generator.chisquare(3, size=size),
    }


def test_fusion_is_the_mean_of_the_scaled_scores():
    reference, scores = some(0), some(1)
    for by in ("rank", "zscore"):
        parts = [scale(reference[name], scores[name], by) for name in ("maps", "knn")]
        np.testing.assert_allclose(
            Fusion(["maps", "knn"], by)(reference, scores), (parts[0] + parts[1]) / 2
        )
        np.testing.assert_allclose(
            Fusion(["maps", "knn"], by, [3, 1])(reference, scores), (3 * parts[0] + parts[1]) / 4
        )


def test_a_score_of_another_scale_counts_the_same():
    reference, scores = some(0), some(1)
    times = [{**of, "maps": of["maps"] * 1e6 - 5} for of in (reference, scores)]
    for by in ("rank", "zscore"):
        np.testing.assert_allclose(
            Fusion(["maps", "msp"], by)(*times),
            Fusion(["maps", "msp"], by)(reference, scores),
            atol=1e-9,
        )


@pytest.mark.parametrize("budget", [0.05, 0.2, 0.5, 0.9])
def test_the_budget_is_the_share_of_in_distribution_images_that_is_diffused(budget):
    reference, scores = some(0, 4000), some(1, 4000)
    cascade = Cascade("msp", budget, "maps")
    sent = cascade.unsure(reference["msp"], scores["msp"])
    assert abs(sent.mean() - budget) < 0.03
    rejected = scale(reference["msp"], scores["msp"]) < SURE * (1 - budget)
    assert not (sent & rejected).any()
    assert rejected.mean() < SURE + 0.01


def test_a_cascade_asks_for_the_other_score_only_where_the_first_is_not_sure():
    reference, scores = some(0), some(1)
    cascade = Cascade("msp", 0.3, "maps")
    sent = cascade.unsure(reference["msp"], scores["msp"])
    hidden = scores | {"maps": np.where(sent, scores["maps"], np.nan)}
    found = cascade(reference, hidden)
    np.testing.assert_array_equal(found, cascade(reference, scores))
    np.testing.assert_array_equal(found[~sent], scale(reference["msp"], scores["msp"])[~sent])
    np.testing.assert_array_equal(found[sent], scale(reference["maps"], scores["maps"])[sent])


def test_a_cascade_with_all_or_nothing_is_one_of_the_two_scores():
    reference, scores = some(0), some(1)
    for budget, name in ((0.0, "msp"), (1.0, "maps")):
        np.testing.assert_array_equal(
            Cascade("msp", budget, "maps")(reference, scores), scale(reference[name], scores[name])
        )


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Fusion(["maps"]), "fusion.scores=.*: expected two names or more, each once"),
        (lambda: Fusion(["maps", "maps"]), "each once"),
        (
            lambda: Fusion(["maps", "msp"], "mean"),
            "unknown fusion.by 'mean'; choose from: rank, zscore",
        ),
        (lambda: Fusion(["maps", "msp"], weights=[1]), "expected 2, one a score"),
        (lambda: Fusion(["maps", "msp"], weights=[0, 0]), "not all 0"),
        (lambda: Fusion(["maps", "msp"], weights=[2, -1]), "none below 0"),
        (lambda: Fusion(["maps", "msp"], weights=[float("nan"), 1]), "none below 0"),
        (lambda: Cascade("msp", 1.2), "cascade.budget=1.2: expected a share of the images"),
        (
            lambda: checked(Fusion(["maps", "odin"])),
            "unknown score for model.fusion.scores 'odin'; choose from: maps, kl, msp, energy",
        ),
        (
            lambda: checked(None, Cascade("maps")),
            "unknown baseline for model.cascade.baseline 'maps'; choose from: msp, energy",
        ),
        (
            lambda: checked(None, Cascade("msp", then="fusion")),
            "unknown score for model.cascade.then 'fusion'; choose from: maps, kl",
        ),
    ],
)
def test_settings_that_make_no_sense(make, said):
    with pytest.raises(InputError, match=said):
        make()


def checked(fusion: Fusion | None = None, cascade: Cascade | None = None) -> Combination:
    return Combination.checked(fusion, cascade, ["maps", "kl"], ["msp", "energy"])


def test_combined_scores_stand_between_discrepancies_and_baselines():
    combination = checked(Fusion(["maps", "msp"]), Cascade())
    scores = ["maps", "kl", "msp", "energy"]
    assert combination.table_scores(scores) == ["maps", "kl", "fusion", "cascade", "msp", "energy"]
    assert combination.cascade is not None
    assert combination.cascade.then == "maps"
    assert checked(None, Cascade(skip=True)).table_scores(scores) == ["cascade", "msp", "energy"]
    assert checked().table_scores(scores) == scores


def test_the_calibration_set_makes_the_scale_and_is_no_set_of_the_table():
    of, names = some(0, 30), ["maps", "msp", "knn"]
    values = np.stack([of[name] for name in names], axis=1)
    members = np.repeat([0, 1, 2], 10)
    table = ScoreTable(
        names,
        ["ind", "calibration", "svhn"],
        {"svhn": "far", "calibration": "calibration"},
        values,
        members,
    )
    combination = Combination.checked(Fusion(["maps", "msp"]), None, ["maps"], ["msp", "knn"])
    found = combination.of_table(table)
    assert (found.scores, found.datasets, found.groups) == (
        ["maps", "fusion", "msp", "knn"],
        ["ind", "svhn"],
        {"svhn": "far"},
    )
    assert found.members.tolist() == [0] * 10 + [1] * 10
    reference = {name: of[name][10:20] for name in names}
    expected = Fusion(["maps", "msp"])(reference, of)
    np.testing.assert_array_equal(found.values[:, 1], np.delete(expected, range(10, 20)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with all of it, in which every image is diffused."""
    folder = tmp_path_factory.mktemp("whole")
    main([*QUICK, *COMBINED, "--scores.every", "0", "--trainer.default_root_dir", str(folder)])
    return folder


def test_a_run_has_both_in_its_table_its_page_and_a_curve(whole):
    table = pd.read_csv(whole / "metrics.csv")
    assert {"maps", "fusion", "cascade", "msp"} <= set(table["score"])
    assert "calibration" not in set(table["dataset"])
    results = read_results(whole)
    assert results.header.scores.index("fusion") > results.header.scores.index("l2")
    frame, header = read_scores(whole)
    assert header.datasets == ["digits", "calibration", "digits_4_9", "photos", "letters"]
    assert (frame["dataset"] == "calibration").sum() == 32
    assert header.combination == {
        "fusion": {"scores": ["maps", "msp"], "by": "rank", "weights": None},
        "cascade": {"baseline": "msp", "budget": 0.4, "then": "fusion", "skip": False},
        "baselines": ["msp", "max_logit", "energy"],
    }
    for row in results.results:  # what the run has written is what is read from its folder
        line = table[
            (table["group"] == row.group)
            & (table["dataset"] == row.dataset)
            & (table["score"] == row.score)
        ].iloc[0]
        assert line["auroc"] == pytest.approx(row.metrics.auroc, abs=1e-12)
    page = (whole / "report.html").read_text()
    assert 'id="cascade"' in page
    assert (whole / "cascade.png").exists()
    assert not (whole / "pictures" / "calibration").exists()


def test_the_curve_goes_from_the_baseline_to_the_other_score_with_the_rows_saved(whole):
    curve = pd.read_csv(whole / "cascade.csv")
    table = pd.read_csv(whole / "metrics.csv").set_index(["dataset", "score"])
    near = curve[curve["dataset"] == "digits_4_9"].set_index("budget")
    assert (
        near.loc[0, "diffused"],
        near.loc[0, "nfe"],
        near.loc[1, "diffused"],
        near.loc[1, "nfe"],
    ) == (
        0,
        0,
        1,
        1,
    )
    for budget, score in ((0, "msp"), (1, "fusion"), (0.4, "cascade")):
        for figure in ("auroc", "fpr95"):
            assert near.loc[budget, figure] == pytest.approx(
                table.loc[("digits_4_9", score), figure], abs=1e-9
            )
    assert near["diffused"].is_monotonic_increasing
    assert near["nfe"].tolist() == pytest.approx(
        near["diffused"].tolist()
    )  # LDM: every image takes as many
    assert (near["auroc_low"] <= near["auroc"] + 1e-9).all()


def test_a_cascade_that_skips_spends_rows_on_unsure_images_alone_and_decides_the_same(
    whole, tmp_path
):
    skip = ["--model.cascade.skip", "true", "--page.enabled", "false"]
    main([*QUICK, *COMBINED, *skip, "--trainer.default_root_dir", str(tmp_path / "skipped")])
    frame, header = read_scores(tmp_path / "skipped")
    before, _ = read_scores(whole)
    sent = frame["maps"].notna()
    calibration = frame["dataset"] == "calibration"
    assert sent[calibration].all()
    assert 0.1 < sent[~calibration].mean() < 0.6
    assert (frame["nfe"] > 0).equals(sent)
    assert frame.loc[~sent, "stop_index"].isna().all()
    np.testing.assert_allclose(frame["maps"][sent], before["maps"][sent], atol=2e-5)
    np.testing.assert_allclose(frame["msp"], before["msp"], atol=1e-6)
    headers = (
        header,
        read_scores(whole)[1],
    )  # one knows by which images were diffused, the other by the band
    both = [
        Combination.of_header(h).of_frame(of, h)[0]["cascade"]
        for h, of in zip(headers, (frame, before), strict=True)
    ]
    np.testing.assert_allclose(*both, atol=1e-3)
    record = json.loads((tmp_path / "skipped" / "run.json").read_text())
    assert record["sessions"][0]["throughput"]["useful_nfe"] == frame["nfe"].sum()
    results = read_results(tmp_path / "skipped")
    assert results.header.scores == ["cascade", "msp", "max_logit", "energy"]
    assert results.cascade_curve == []


def test_rows_of_images_add_up(whole):
    frame, _ = read_scores(whole)
    record = json.loads((whole / "run.json").read_text())
    assert frame["nfe"].sum() == record["sessions"][0]["throughput"]["useful_nfe"]
    assert frame["nfe"].nunique() == 1


def test_a_run_with_a_combination_can_be_resumed(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "again")
    parts = sorted((tmp_path / "again" / "scores").glob("*.parquet"))
    for part in parts[2:5]:
        part.unlink()
    main(["--resume", str(tmp_path / "again"), "--page.enabled", "false"])
    (found, _), (before, _) = read_scores(tmp_path / "again"), read_scores(whole)
    pd.testing.assert_frame_equal(
        found.drop(columns="seconds"), before.drop(columns="seconds"), atol=2e-5
    )
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (tmp_path / "again", whole)]
    pd.testing.assert_frame_equal(*tables, atol=1e-6)
    assert len(parts) > 5


def test_a_combination_of_ones_own_loaders(tmp_path):
    import pytorch_lightning as pl

    model = diffguard_pl.load("digits_ldm")
    module = DiffGuardModule(
        classifier=model.classifier,
        backbone=model.backbone,
        guidance=model.guidance,
        steps=5,
        discrepancies=["maps"],
        fusion=Fusion(["maps", "msp"]),
    )
    sets = {"mine": digits("test"), "calibration": digits("val"), "strange": held_out()}
    loaders = {name: DataLoader(spread(of, 24), 12) for name, of in sets.items()}
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    trainer.test(module, loaders, verbose=False)
    assert [row.score for row in module.results if row.dataset == "strange"][-4:] == [
        "fusion",
        "msp",
        "max_logit",
        "energy",
    ]
    del loaders["calibration"]
    with pytest.raises(
        InputError,
        match="there are no in-distribution validation images to calibrate fusion on; give a test loader with the name",
    ):
        trainer.test(module, loaders, verbose=False)


def test_there_is_nothing_to_calibrate_on_in_the_tuning_split():
    data = load_data(["digits_ldm"], ["--data.split=tuning"])
    data.include_calibration()
    with pytest.raises(InputError, match=r"data.split=tuning: cannot calibrate.*set it to test"):
        data.datasets()


def test_baselines_are_fitted_on_training_images_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    arguments = [
        *QUICK,
        "--data.limit",
        "12",
        "--model.baselines",
        "[msp, knn, mahalanobis]",
        "--page.enabled",
        "false",
    ]
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "a")])
    (kept,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    before = kept.stat().st_mtime_ns
    main([*arguments, "--trainer.default_root_dir", str(tmp_path / "b")])
    assert kept.stat().st_mtime_ns == before
    frames = [read_scores(tmp_path / name)[0] for name in "ab"]
    for name in ("knn", "mahalanobis"):
        np.testing.assert_array_equal(frames[0][name], frames[1][name])
        assert (
            frames[0].groupby("dataset")[name].mean()["digits"]
            > frames[0].groupby("dataset")[name].mean()["photos"]
        )


def test_baselines_without_training_images(tmp_path):
    module = DiffGuardModule(**vars_of("digits_ldm"), baselines=["knn"])
    loader = DataLoader(spread(digits("test"), 4), 4)
    import pytorch_lightning as pl

    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    with pytest.raises(InputError, match=r"baselines: knn must be fitted .*set data.train"):
        trainer.test(module, {"a": loader, "b": loader}, verbose=False)
    module.diffguard.fit_baselines(DataLoader(digits("train"), 64))
    trainer.test(module, {"a": loader, "b": loader}, verbose=False)
    assert [row.score for row in module.results][-1] == "knn"


def vars_of(config: str) -> dict:
    """The parts of a config's detector, as a user would compose them."""
    import diffguard_pl

    detector = diffguard_pl.load(config, steps=5)
    return {
        "classifier": detector.classifier,
        "backbone": detector.backbone,
        "guidance": detector.guidance,
        "steps": 5,
        "discrepancies": ["maps", "kl"],
    }


def test_scores_of_a_skipped_image_are_nan_and_its_label_is_known(digits_ldm):
    images = torch.cat([digits("test").images[:6], held_out().images[:6]])
    stream = digits_ldm.stream()
    kept = torch.tensor([True, False] * 6)
    stream.push(images, tag="mixed", gate=lambda prediction: kept)
    stream.push(images[:2], tag="none", gate=lambda prediction: torch.zeros(2, dtype=torch.bool))
    found = dict(stream.drain())
    plain = digits_ldm(images)
    assert found["mixed"].scores["maps"].isnan().tolist() == (~kept).tolist()
    torch.testing.assert_close(
        found["mixed"].scores["maps"][kept], plain.scores["maps"][kept], atol=1e-4, rtol=0
    )
    torch.testing.assert_close(found["mixed"].scores["msp"], plain.scores["msp"])
    assert found["mixed"].stop_index[~kept].tolist() == [-1] * 6
    assert found["mixed"].nfe.tolist() == [plain.nfe[0].item(), 0] * 6
    assert found["none"].scores["maps"].isnan().all()
    assert found["none"].reconstructions.isnan().all()
    assert found["none"].prediction.predicted.tolist() == plain.prediction.predicted[:2].tolist()
