"""The LightningModule: what a test leaves behind, and what it does with any data module."""

import copy
import math

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.datamodules.base import ImageSet
from diffguard_pl.dtypes import allow_tf32


def images(count: int, nan: bool = False) -> ImageSet:
    pixels = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    if nan:
        pixels[-1] = float("nan")
    return ImageSet(pixels, [0] * count, [f"{i}.png" for i in range(count)])


def loaders(nan: bool = False) -> dict[str, DataLoader]:
    return {"ind": DataLoader(images(3), 2), "ood": DataLoader(images(3, nan), 2)}


def module(digits_ldm, **settings) -> DiffGuardModule:
    networks = {
        "classifier": digits_ldm.classifier,
        "backbone": digits_ldm.backbone,
        "guidance": digits_ldm.guidance,
    }
    return DiffGuardModule(**{"steps": 2, "discrepancies": ["l2"]} | networks | settings)


def trainer(tmp_path, *callbacks: pl.Callback) -> pl.Trainer:
    quiet = dict.fromkeys(
        ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False
    )
    return pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=tmp_path, **quiet
    )


def tf32_switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.fixture
def tf32_off():
    with allow_tf32(False):
        yield


@pytest.mark.parametrize("nan", [False, True], ids=["finished", "failed"])
def test_tf32_is_on_during_a_step_and_restored_after_the_test(nan, digits_ldm, tf32_off, tmp_path):
    tested, seen = module(digits_ldm, tf32=True), set()
    tested.between_steps.append(lambda: seen.add(tf32_switches()))
    if nan:
        with pytest.raises(InputError, match="NaN"):
            trainer(tmp_path).test(tested, loaders(nan), verbose=False)
    else:
        trainer(tmp_path).test(tested, loaders(), verbose=False)
    assert seen == {(True, True)}
    assert tf32_switches() == (False, False)


class Foreign(LightningDataModule):
    """A data module that knows nothing of this package but the names of groups."""

    def __init__(self):
        super().__init__()
        self.groups = {"ood": "near"}

    def test_dataloader(self) -> dict[str, DataLoader]:
        return loaders()


def test_a_foreign_data_module_is_tested_like_plain_loaders(digits_ldm, tmp_path):
    plain, foreign = module(digits_ldm), module(digits_ldm)
    expected = trainer(tmp_path).test(plain, loaders(), verbose=False)
    found = trainer(tmp_path).test(foreign, datamodule=Foreign(), verbose=False)
    assert found == expected
    assert {row.group for row in foreign.results} == {"near"}
    assert {row.group for row in plain.results} == {"ood"}


def test_training_images_of_a_foreign_data_module_fit_the_baselines(digits_ldm, tmp_path):
    class WithTraining(Foreign):
        def train_dataloader(self) -> DataLoader:
            labelled = images(24)
            labelled.labels = [i % 8 for i in range(24)]
            return DataLoader(labelled, 8)

    settings = {"baselines": ["mahalanobis"]}
    with pytest.raises(InputError, match=r"mahalanobis.*data\.train"):
        trainer(tmp_path).test(module(digits_ldm, **settings), datamodule=Foreign(), verbose=False)
    fitted = module(digits_ldm, **settings)
    trainer(tmp_path).test(fitted, datamodule=WithTraining(), verbose=False)
    assert fitted.diffguard.baselines.fitted


def test_a_combination_without_calibration_images_names_both_remedies(digits_ldm, tmp_path):
    from diffguard_pl.scores.combination import Fusion

    tested = module(digits_ldm, fusion=Fusion(["l2", "msp"]))
    with pytest.raises(InputError, match=r"data\.calibration.*test loader.*'calibration'"):
        trainer(tmp_path).test(tested, loaders(), verbose=False)


class Keeper(pl.Callback):
    """Keeps the results, as callbacks write them."""

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.results = pl_module.results


def test_scores_that_are_never_finite_end_with_an_error_after_the_results(digits_ldm, tmp_path):
    backbone, keeper = copy.deepcopy(digits_ldm.backbone), Keeper()
    next(backbone.unet.parameters()).data.fill_(float("nan"))
    tested = module(digits_ldm, backbone=backbone, baselines=["msp"])
    with pytest.raises(InputError, match=r"score l2 is NaN .*ind, ood; check the checkpoints"):
        trainer(tmp_path, keeper).test(tested, loaders(), verbose=False)
    # the baseline has its results
    by_score = {row.score: row.metrics.auroc for row in keeper.results}
    assert math.isnan(by_score["l2"])
    assert not math.isnan(by_score["msp"])
