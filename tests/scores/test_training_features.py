"""Training features: computed once, kept in the cache, and required by fitted baselines."""

import numpy as np
import pytest
import pytorch_lightning as pl
from torch.utils.data import DataLoader

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.commands.evaluate import main
from diffguard_pl.datamodules.base import spread
from diffguard_pl.datamodules.digits import digits
from diffguard_pl.runs.store import read_scores


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
