"""The command, as a newcomer types it."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.results import scores_of
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.commands.cli import make_new_folder
from diffguard_pl.commands.errors import one_line_errors
from diffguard_pl.commands.evaluate import main
from diffguard_pl.config import config_names, find_config

QUICK = ["--data.limit", "12", "--data.batch_size", "8"]


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "diffguard_pl.test", *args]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize(
    ("args", "config"), [([], "digits_ldm"), (["--config", "digits_gdm.yaml"], "digits_gdm")]
)
def test_the_demo_prints_a_table_and_leaves_scores_and_pictures(args, config, tmp_path):
    done = run(*args, *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / config).iterdir()
    for name in (
        "digits_4_9",
        "photos",
        "letters",
        "AUROC",
        "FPR@95",
        "AUPR-in",
        "AUPR-out",
        "msp",
        "classifier accuracy",
    ):
        assert name in done.stdout
    for name in ("scores", "metrics.csv", "pictures.png", "report.html"):
        assert str(folder.relative_to(tmp_path) / name) in done.stdout
    rows = scores_of(folder)
    assert [row["dataset"] for row in rows] == [
        name for name in ("digits", "digits_4_9", "photos", "letters") for _ in range(12)
    ]
    assert all(row["msp"] <= 1 and row["path"] and row["stop_index"] is not None for row in rows)
    assert Image.open(folder / "pictures.png").width > 600
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["data"]["init_args"]["limit"] == 12
    command = json.loads((folder / "run.json").read_text())["sessions"][0]["command"]
    assert command[:3] == ["python", "-m", "diffguard_pl.test"]
    assert "--data.limit" in command
    assert "48/48" in done.stdout
    assert "images/s" in done.stdout
    assert done.stdout.splitlines()[-1].split() == [
        "report:",
        str(folder.relative_to(tmp_path) / "report.html"),
    ]
    assert not set("\x1b\r\b") & set(done.stdout + done.stderr)  # in the log file of a job


def test_progress_in_a_log_file_is_a_line_now_and_then(tmp_path):
    done = run(
        *QUICK,
        "--model.slots",
        "4",
        "--progress.every",
        "0",
        "--page.enabled",
        "false",
        "--model.steps",
        "5",
        cwd=tmp_path,
    )
    lines = [line for line in done.stdout.splitlines() if "images/s" in line]
    told = [
        re.fullmatch(r"(?:\w+: )?(\d+)/48 images, [\d.]+ images/s, \d+:\d\d left", line)
        for line in lines
    ]
    counts = [int(found[1]) for found in told if found]
    assert [count for count, _ in itertools.groupby(counts)] == [8, 12, 20, 24, 32, 36, 44, 48]
    assert len(counts) > 20  # in the middle of a batch, too: it may take minutes
    assert next(line for line in lines if "20/48" in line).startswith("digits_4_9: ")
    assert lines[-1].startswith("48/48 ")


def test_progress_in_a_terminal_is_a_bar(tmp_path):
    import pty

    own, theirs = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "diffguard_pl.test",
        *QUICK,
        "--page.enabled",
        "false",
        "--model.steps",
        "5",
    ]
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while chunk := os.read(own, 4096):
                said += chunk
    assert process.returncode == 0, said.decode()
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", said.decode())
    assert re.search(r"letters .*━.* 48/48 .*images/s, 0:00 left", text)


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path):
    names = [make_new_folder(str(tmp_path / "runs" / "now")) for _ in range(3)]
    assert [Path(name).name for name in names] == ["now", "now-2", "now-3"]


def test_later_configs_and_the_command_line_override(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {steps: 5, discrepancies: [l2]}\n")
    done = run(
        "--config",
        "digits_ldm",
        "--config",
        "mine.yaml",
        "--model.guidance.scale",
        "5",
        "--print_config",
        cwd=tmp_path,
    )
    settings = yaml.safe_load(done.stdout)
    assert settings["model"]["steps"] == 5
    assert settings["model"]["discrepancies"] == ["l2"]
    assert settings["model"]["guidance"]["init_args"]["scale"] == 5
    assert settings["model"]["backbone"]["init_args"]["checkpoint"] == "digits_ldm"


def test_help_lists_the_settings(tmp_path):
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--model.steps" in done.stdout
    assert "--trainer.devices" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (
            ["--config", "digits"],
            r"unknown config 'digits'; choose from: .*digits_gdm, digits_ldm",
        ),
        (
            ["--model.guidnce.scale", "5"],
            r"unknown setting model.guidnce; did you mean model.guidance\? choose from: backbone",
        ),
        (
            ["--model.guidance.scal", "5"],
            r"unknown setting scal; did you mean scale\? choose from: cam_cut",
        ),
        (["--model.guidance", "ClassiferGuidance"], r"did you mean ClassifierGuidance\?"),
        (["--data.bath_size", "5"], r"unknown setting bath_size; did you mean batch_size\?"),
        (
            ["--model.guidance.scale", "5", "--config", "digits_ldm"],
            r"model.guidance: .* give --config before",
        ),
        (["--model.steps", "ten"], r"model.steps.*int.*ten"),
        (
            ["--model.discrepancies", "[dist]"],
            r"unknown discrepancy 'dist'; choose from: dists, lpips",
        ),
        (["--model.steps", "2000"], r"steps=2000"),
        (
            ["--model.backbone.checkpoint", "nowhere.ckpt"],
            r"checkpoint 'nowhere.ckpt': file not found",
        ),
        (
            ["--model.backbone.input_size", "20"],
            r"input_size=20 cannot be padded evenly to image_size=16",
        ),
        (
            ["--model.early_stop", "{psnr: 50}"],
            r"early_stop: does not support LatentDiffusion",
        ),
        (["--model.oracle", "both"], r"unknown oracle 'both'; choose from: none, ind, all"),
        (["--trainer.accelerator", "abacus"], r"abacus"),
    ],
)
def test_a_mistake_is_answered_in_one_line(args, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["diffguard-test", *args])
    with pytest.raises(SystemExit) as exit_:
        main()
    message = exit_.value.code if isinstance(exit_.value.code, str) else capsys.readouterr().err
    assert exit_.value.code
    (line,) = [line for line in message.splitlines() if line]
    assert re.search(said, line)


def test_a_mistake_ends_the_process_with_that_line_and_no_traceback(tmp_path):
    done = run("--model.steps", "2000", cwd=tmp_path)
    assert done.returncode == 1
    assert "error: steps=2000: expected 1 to 1000" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_a_run_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(
        "sys.argv",
        ["diffguard-test", *QUICK, "--trainer.default_root_dir", str(tmp_path / "file" / "run")],
    )
    with pytest.raises(SystemExit, match=r"error: .*file/run"):
        main()


def test_every_shipped_config_is_found_by_name_with_and_without_suffix():
    assert {"digits_ldm", "digits_gdm"} <= set(config_names())
    for name in config_names():
        assert find_config(name) == find_config(f"{name}.yaml")
        yaml.safe_load(find_config(name).read_text())


def test_a_detector_from_a_config_with_other_settings():
    detector = diffguard_pl.load("digits_ldm", steps=5, guidance__scale=7, discrepancies=["l2"])
    assert len(detector.schedule) == 5
    assert detector.guidance.scale == 7
    with pytest.raises(InputError, match=r"config digits_ldm: .*stepps"):
        diffguard_pl.load("digits_ldm", stepps=5)


class Pictures(Dataset):
    """Five grey pictures, the fourth of them broken."""

    def __init__(self, broken: bool):
        self.broken = broken

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        value = float("nan") if self.broken and index == 3 else 0.5
        return {
            "image": torch.full((3, 16, 16), value),
            "label": -1,
            "index": index,
            "path": f"folder/{index}.png",
        }


@pytest.fixture(scope="module")
def settings() -> dict:
    detector = diffguard_pl.load("digits_ldm", steps=5, discrepancies=["l2"])
    return {
        "classifier": detector.classifier,
        "backbone": detector.backbone,
        "guidance": detector.guidance,
        "steps": 5,
    }


def trainer(tmp_path: Path, callbacks: list) -> object:
    import pytorch_lightning as pl

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, default_root_dir=tmp_path, **quiet
    )


def test_an_image_with_nan_is_named_and_what_was_scored_is_kept(settings, tmp_path):
    from diffguard_pl.callbacks import ScoreWriter

    loaders = {"good": DataLoader(Pictures(False), 2), "bad": DataLoader(Pictures(True), 2)}
    with pytest.raises(InputError, match=r"bad image 3 folder/3.png: has NaN"):
        trainer(tmp_path, [ScoreWriter()]).test(
            DiffGuardModule(discrepancies=["l2"], **settings), loaders
        )
    assert len(scores_of(tmp_path)) == 7


def test_an_image_with_nan_is_named_in_a_batch_that_is_watched(settings, tmp_path):
    from diffguard_pl.callbacks import TrajectoryLogger

    loaders = {"bad": DataLoader(Pictures(True), 5), "good": DataLoader(Pictures(False), 5)}
    with pytest.raises(InputError, match=r"bad image 3 folder/3.png: has NaN"):
        trainer(tmp_path, [TrajectoryLogger(2)]).test(
            DiffGuardModule(discrepancies=["l2"], **settings), loaders
        )


class Boastful(IterableDataset):
    """Says that it has 12 pictures, and has 7."""

    def __len__(self) -> int:
        return 12

    def __iter__(self):
        return iter([{"image": torch.rand(3, 16, 16), "label": -1, "index": i} for i in range(7)])


def test_a_loader_that_ends_before_its_time_is_said(settings, tmp_path):
    loaders = {"good": DataLoader(Pictures(False), 2), "other": DataLoader(Boastful(), 2)}
    with pytest.raises(InputError, match=r"dataloader ended before.*__len__"):
        trainer(tmp_path, []).test(DiffGuardModule(discrepancies=["l2"], **settings), loaders)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
            r"2 GiB. Lower model.slots",
        ),
        (
            type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})(
                "no g++\nmore"
            ),
            r"model.compile: .*no g\+\+.*false",
        ),
    ],
)
def test_a_device_that_cannot_is_answered_in_one_line(error, said):
    with pytest.raises(SystemExit, match=said), one_line_errors():
        raise error


def test_loaders_of_ones_own_and_pairs_as_batches(settings, tmp_path):
    images = torch.rand(6, 3, 16, 16)
    pairs = [(image, label) for image, label in zip(images, [0, 1, 2, 3, 4, 5], strict=True)]
    module = DiffGuardModule(discrepancies=["l2"], oracle="all", **settings)
    results = trainer(tmp_path, []).test(
        module,
        {"mine": DataLoader(pairs, 4), "other": DataLoader(Pictures(False), 4)},
        verbose=False,
    )
    assert [row.score for row in module.results] == ["l2", "msp", "max_logit", "energy"]
    assert "other/l2/auroc" in results[0]


def test_one_kind_of_loader_is_not_enough(settings, tmp_path):
    with pytest.raises(InputError, match="the in-distribution one first"):
        trainer(tmp_path, []).test(
            DiffGuardModule(discrepancies=["l2"], **settings),
            {"mine": DataLoader(Pictures(False), 4)},
        )
