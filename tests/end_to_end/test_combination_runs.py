"""Runs with a fusion and a cascade: table, page, curve, a cascade that skips, and resuming."""

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
from diffguard_pl.report.results import read_results, with_combined_scores
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.combination import Fusion
from diffguard_pl.stages import Gates

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
        "cascade": {
            "baseline": "msp",
            "budget": 0.4,
            "then": "fusion",
            "skip": False,
            "middle": None,
            "middle_budget": 0.5,
        },
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


def test_the_curve_goes_from_the_baseline_to_the_other_score(whole):
    curve = pd.read_csv(whole / "cascade.csv")
    table = pd.read_csv(whole / "metrics.csv").set_index(["dataset", "score"])
    near = curve[curve["dataset"] == "digits_4_9"].set_index("budget")
    assert near.loc[[0, 1], ["diffused", "nfe"]].to_numpy().tolist() == [[0, 0], [1, 1]]
    for budget, score in ((0, "msp"), (1, "fusion"), (0.4, "cascade")):
        for metric in ("auroc", "fpr95"):
            assert near.loc[budget, metric] == pytest.approx(
                table.loc[("digits_4_9", score), metric], abs=1e-9
            )
    assert near["diffused"].is_monotonic_increasing
    # LDM: every image takes the same NFE.
    assert near["nfe"].tolist() == pytest.approx(near["diffused"].tolist())
    assert (near["auroc_low"] <= near["auroc"] + 1e-9).all()


def test_a_cascade_that_skips_diffuses_only_unsure_images_and_decides_the_same(whole, tmp_path):
    skip = ["--model.cascade.skip", "true", "--page.enabled", "false"]
    main([*QUICK, *COMBINED, *skip, "--trainer.default_root_dir", str(tmp_path / "skipped")])
    frame, _ = read_scores(tmp_path / "skipped")
    before, _ = read_scores(whole)
    sent = frame["maps"].notna()
    calibration = frame["dataset"] == "calibration"
    assert sent[calibration].all()
    assert 0.1 < sent[~calibration].mean() < 0.6
    assert (frame["nfe"] > 0).equals(sent)
    assert frame.loc[~sent, "stop_index"].isna().all()
    np.testing.assert_allclose(frame["maps"][sent], before["maps"][sent], atol=2e-5)
    np.testing.assert_allclose(frame["msp"], before["msp"], atol=1e-6)
    # One knows which images were diffused, the other decides by the baseline.
    both = [
        with_combined_scores(*read_scores(folder))[0]["cascade"]
        for folder in (tmp_path / "skipped", whole)
    ]
    np.testing.assert_allclose(*both, atol=1e-3)
    record = json.loads((tmp_path / "skipped" / "run.json").read_text())
    assert record["sessions"][0]["throughput"]["useful_nfe"] == frame["nfe"].sum()
    results = read_results(tmp_path / "skipped")
    assert results.header.scores == ["cascade", "msp", "max_logit", "energy"]
    assert results.cascade_curve == []


def test_a_cascade_of_three_stages_spends_on_each_image_what_it_needs(tmp_path):
    three_stages = [
        *("--model.path_scores", "{label_pull: {times: [0.2]}}"),
        *("--model.cascade", "{budget: 0.6, middle: label_pull, middle_budget: 0.4, skip: true}"),
        *("--page.enabled", "false", "--trainer.default_root_dir", str(tmp_path)),
    ]
    main([*QUICK, *three_stages])
    frame, _ = read_scores(tmp_path)
    diffused, reconstructed = frame["label_pull"].notna(), frame["maps"].notna()
    assert not (reconstructed & ~diffused).any()
    calibration = frame["dataset"] == "calibration"
    assert reconstructed[calibration].all()

    # Two inversion steps, the second with an evaluation more; 5 steps back with two each.
    stage = diffused.astype(int) + reconstructed
    assert stage[~calibration].value_counts().min() >= 4
    assert (frame["nfe"] == stage.map({0: 0, 1: 3, 2: 5 + 1 + 10})).all()
    assert frame["stop_index"].notna().equals(reconstructed)
    cascade = with_combined_scores(*read_scores(tmp_path))[0]["cascade"]
    assert cascade[~calibration].notna().all()


def test_the_nfe_of_images_add_up_to_the_run(whole):
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


def test_a_combination_with_plain_loaders(tmp_path):
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
        match=r"fusion.*calibration",
    ):
        trainer.test(module, loaders, verbose=False)


def test_the_tuning_split_cannot_calibrate():
    data = load_data(["digits_ldm"], ["--data.split=tuning"])
    data.include_calibration()
    with pytest.raises(InputError, match=r"data.split=tuning: cannot calibrate.*set it to test"):
        data.datasets()


def test_scores_of_a_skipped_image_are_nan_and_its_label_is_known(digits_ldm):
    images = torch.cat([digits("test").images[:6], held_out().images[:6]])
    stream = digits_ldm.stream()
    kept = torch.tensor([True, False] * 6)
    stream.push(images, tag="mixed", gates=Gates(lambda prediction: kept))
    nothing = Gates(lambda prediction: torch.zeros(2, dtype=torch.bool))
    stream.push(images[:2], tag="none", gates=nothing)
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
