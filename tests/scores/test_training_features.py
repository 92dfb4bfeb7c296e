"""Training features: computed once, kept in the cache, and required by fitted baselines."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers.images import saved
from PIL import Image
from torch.utils.data import DataLoader

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.commands.evaluate import main
from diffguard_pl.datamodules import ClassFolders, OODDataModule
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits, held_out
from diffguard_pl.runs.store import read_scores
from diffguard_pl.scores.baselines.collection import Baselines
from diffguard_pl.scores.training_features import fit_baselines


def test_features_are_computed_once_for_several_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    arguments = [
        *["--data.batch_size", "16", "--model.slots", "16"],
        *["--model.steps", "5", "--pictures.count", "2"],
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


def test_fitted_baselines_require_training_images(tmp_path):
    module = DiffGuardModule(**vars_of("digits_ldm"), baselines=["knn"])
    loader = DataLoader(spread(digits("test"), 4), 4)
    trainer = pl.Trainer(
        logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu"
    )
    with pytest.raises(InputError, match=r"baselines: knn must be fitted .*set data.train"):
        trainer.test(module, {"a": loader, "b": loader}, verbose=False)
    module.diffguard.fit_baselines(DataLoader(digits("train"), 64))
    trainer.test(module, {"a": loader, "b": loader}, verbose=False)
    assert [row.score for row in module.results][-1] == "knn"


def test_training_labels_in_another_order_are_warned_of(digits_ldm):
    train = spread(digits("train"), 64)
    shifted = [item | {"label": (item["label"] + 1) % 8} for item in train]
    baselines = Baselines(["knn"], digits_ldm.classifier)
    with pytest.warns(UserWarning, match=r"data.train: .* of 64 labelled .*order"):
        fit_baselines(
            baselines, digits_ldm.classifier, DataLoader(shifted, 64), None, "32", True, int
        )


def vars_of(config: str) -> dict:
    """The parts of a config's model, as a user would compose them."""
    model = diffguard_pl.load(config, steps=5)
    return {
        "classifier": model.classifier,
        "backbone": model.backbone,
        "guidance": model.guidance,
        "steps": 5,
        "discrepancies": ["maps", "kl"],
    }


def test_kept_features_depend_on_the_preparation_and_report_unreadable_images(
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
