"""The command ``python -m diffguard_pl.test``, as a newcomer types it."""

import contextlib
import itertools
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from helpers import preloaded
from helpers.results import scores_of
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.callbacks import ScoreWriter, TrajectoryLogger
from diffguard_pl.commands.errors import one_line_errors
from diffguard_pl.commands.evaluate import main
from diffguard_pl.config import config_names, find_config
from diffguard_pl.runs.lock import make_new_folder

QUICK = ["--data.limit", "12", "--data.batch_size", "8"]


def run(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    return preloaded.run(["-m", "diffguard_pl.test", *args], cwd=cwd, env=environment)


@pytest.mark.parametrize(
    ("args", "config"), [([], "digits_ldm"), (["--config", "digits_gdm.yaml"], "digits_gdm")]
)
def test_a_run_prints_its_table_and_keeps_scores_and_pictures(args, config, tmp_path):
    done = run(*args, *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs" / config).iterdir()
    datasets = ("digits_4_9", "photos", "letters")
    columns = ("AUROC", "FPR@95", "AUPR-in", "AUPR-out")
    text = " ".join(done.stdout.split())  # the line below the table is wrapped
    for name in (*datasets, *columns, "msp", "classifier accuracy"):
        assert name in text
    for name in ("scores", "metrics.csv", "pictures.png", "report.html"):
        assert str(folder.relative_to(tmp_path) / name) in done.stdout
    results = scores_of(folder)
    found = [result["dataset"] for result in results]
    assert found == [name for name in ("digits", *datasets) for _ in range(12)]
    assert all(
        result["msp"] <= 1 and result["path"] and result["stop_index"] is not None
        for result in results
    )
    assert Image.open(folder / "pictures.png").width > 600
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["data"]["init_args"]["limit"] == 12
    record = json.loads((folder / "run.json").read_text())
    assert "data.init_args.limit" in record["not_default"]
    assert not {"model.skip_last_steps", "seed_everything"} & set(record["not_default"])
    command = record["sessions"][0]["command"]
    assert command[:3] == ["python", "-m", "diffguard_pl.test"]
    assert "--data.limit" in command
    assert "48/48" in done.stdout
    assert "images/s" in done.stdout
    assert done.stdout.splitlines()[-1].split() == [
        "report:",
        str(folder.relative_to(tmp_path) / "report.html"),
    ]
    # No control characters, which would clutter the log of a job, and no chatter of libraries.
    assert not set("\x1b\r\b") & set(done.stdout)
    assert done.stderr == ""


def test_progress_in_a_log_file_is_printed_as_lines(tmp_path):
    done = run(
        *(*QUICK, "--model.slots", "4", "--model.steps", "5"),
        *("--progress.every", "0", "--page.enabled", "false"),
        cwd=tmp_path,
    )
    lines = [line for line in done.stdout.splitlines() if "images/s" in line]
    pattern = r"(?:\w+: )?(\d+)/48 images, [\d.]+ images/s, \d+:\d\d left"
    matches = [re.fullmatch(pattern, line) for line in lines]
    counts = [int(found[1]) for found in matches if found]
    assert [count for count, _ in itertools.groupby(counts)] == [8, 12, 20, 24, 32, 36, 44, 48]
    # Also in the middle of a batch, which may take minutes.
    assert len(counts) > 20
    assert next(line for line in lines if "20/48" in line).startswith("digits_4_9: ")
    assert lines[-1].startswith("48/48 ")


def test_progress_in_a_terminal_is_a_bar(tmp_path):
    import pty

    own, theirs = pty.openpty()
    command = [
        *("-m", "diffguard_pl.test", *QUICK),
        *("--page.enabled", "false", "--model.steps", "5"),
    ]
    environment = os.environ | {"COLUMNS": "120", "TERM": "xterm-256color"}
    with preloaded.start(
        command, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # raised at the end of a terminal
            while chunk := os.read(own, 4096):
                shown += chunk
    assert process.returncode == 0, shown.decode()
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"letters .*━.* 48/48 .*images/s, 0:00 left", text)


def test_runs_that_begin_in_the_same_second_get_different_folders(tmp_path):
    names = [make_new_folder(tmp_path / "runs" / "now")[0] for _ in range(3)]
    assert [name.name for name in names] == ["now", "now-2", "now-3"]


def test_later_configs_and_the_command_line_override(tmp_path):
    (tmp_path / "mine.yaml").write_text("model: {steps: 5, discrepancies: [l2]}\n")
    done = run(
        *("--config", "digits_ldm", "--config", "mine.yaml"),
        *("--model.guidance.scale", "5", "--print_config"),
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
    ("args", "message"),
    [
        (["--config", "digits"], r"unknown config 'digits'; choose from: .*digits_ldm"),
        (["--model.guidnce.scale", "5"], r"unknown.*model.guidnce; did you mean model.guidance\?"),
        (["--model.guidance.scal", "5"], r"unknown.*scal; did you mean scale\? .*cam_cut"),
        (["--model.guidance", "ClassiferGuidance"], r"did you mean ClassifierGuidance\?"),
        (["--data.bath_size", "5"], r"unknown.*bath_size; did you mean batch_size\?"),
        (["--model.guidance.scale", "5", "--config", "digits_ldm"], r"model.guidance: .*--config"),
        (["--model.steps", "ten"], r"model.steps.*int.*ten"),
        (["--model.discrepancies", "[dist]"], r"unknown discrepancy 'dist'; .*dists, lpips"),
        (["--data.limit", "0"], r"^(error: )?data.limit=0: .*null"),
        (["--data.split", "val"], r"^(error: )?unknown data.split 'val'; .*tuning"),
        (["--model.steps", "2000"], r"steps=2000: .*1000"),
        (["--model.backbone.checkpoint", "nowhere.ckpt"], r"'nowhere.ckpt': .*not found"),
        (["--model.backbone.input_size", "20"], r"input_size: 20 .*image_size=16"),
        (["--model.early_stop", "{psnr: 50}"], r"early_stop: .*LatentDiffusion"),
        (["--model.oracle", "both"], r"unknown oracle 'both'; choose from: none, ind, all"),
        (["--trainer.accelerator", "abacus"], r"trainer.*abacus"),
    ],
)
def test_a_mistake_is_reported_in_one_line(args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["test.py", *args])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    assert code
    shown = code if isinstance(code, str) else capsys.readouterr().err
    (line,) = [line for line in shown.splitlines() if line]
    assert re.search(message, line)


def test_guidance_is_named_without_its_module(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--model.guidance", "ClassifierGuidance", "--print_config"])
    assert not ended.value.code
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["model"]["guidance"]["class_path"].endswith(".ClassifierGuidance")


def test_a_mistake_ends_the_process_without_a_traceback(tmp_path):
    done = run("--model.steps", "2000", cwd=tmp_path)
    assert done.returncode == 1
    assert any(line.startswith("error: steps=2000: ") for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr


def test_a_run_folder_that_cannot_be_written_is_reported(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    folder = str(tmp_path / "file" / "run")
    monkeypatch.setattr("sys.argv", ["test.py", *QUICK, "--trainer.default_root_dir", folder])
    with pytest.raises(SystemExit, match=r"error: .*file/run"):
        main()


def test_every_shipped_config_is_found_by_name_with_and_without_suffix():
    assert {"digits_ldm", "digits_gdm"} <= set(config_names())
    for name in config_names():
        assert find_config(name) == find_config(f"{name}.yaml")
        yaml.safe_load(find_config(name).read_text())


def test_load_overrides_settings_of_a_config():
    diffguard = diffguard_pl.load("digits_ldm", steps=5, guidance__scale=7, discrepancies=["l2"])
    assert len(diffguard.schedule) == 5
    assert diffguard.guidance.scale == 7
    with pytest.raises(InputError, match=r"config digits_ldm: .*stepps"):
        diffguard_pl.load("digits_ldm", stepps=5)


class GreyImages(Dataset):
    """Five grey images; if broken, the fourth is NaN."""

    def __init__(self, broken: bool = False):
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
    diffguard = diffguard_pl.load("digits_ldm", steps=5, discrepancies=["l2"])
    return {
        "classifier": diffguard.classifier,
        "backbone": diffguard.backbone,
        "guidance": diffguard.guidance,
        "steps": 5,
        "discrepancies": ["l2"],
    }


def trainer(tmp_path: Path, callbacks: list) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(
        accelerator="cpu", devices=1, callbacks=callbacks, default_root_dir=tmp_path, **quiet
    )


def test_an_image_with_nan_is_named_and_earlier_scores_are_kept(settings, tmp_path):
    loaders = {"good": DataLoader(GreyImages(), 2), "bad": DataLoader(GreyImages(broken=True), 2)}
    with pytest.raises(InputError, match=r"bad.*3.*folder/3.png.*NaN"):
        trainer(tmp_path, [ScoreWriter()]).test(DiffGuardModule(**settings), loaders)
    assert len(scores_of(tmp_path)) == 7


def test_an_image_with_nan_is_named_where_trajectories_are_drawn(settings, tmp_path):
    loaders = {"bad": DataLoader(GreyImages(broken=True), 5), "good": DataLoader(GreyImages(), 5)}
    with pytest.raises(InputError, match=r"bad.*3.*folder/3.png.*NaN"):
        trainer(tmp_path, [TrajectoryLogger(2)]).test(DiffGuardModule(**settings), loaders)


class TooShort(IterableDataset):
    """Dataset of 7 images whose length is 12."""

    def __len__(self) -> int:
        return 12

    def __iter__(self):
        return iter([{"image": torch.rand(3, 16, 16), "label": -1, "index": i} for i in range(7)])


def test_a_dataloader_shorter_than_its_length_is_reported(settings, tmp_path):
    loaders = {"good": DataLoader(GreyImages(), 2), "other": DataLoader(TooShort(), 2)}
    with pytest.raises(InputError, match=r"dataloader.*__len__"):
        trainer(tmp_path, []).test(DiffGuardModule(**settings), loaders)


InductorError = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (torch.OutOfMemoryError("tried to allocate 2 GiB.\nmore"), r"2 GiB.*model.slots"),
        (InductorError("no g++\nmore"), r"model.compile: .*no g\+\+.*false"),
    ],
)
def test_what_a_device_cannot_do_is_reported_with_a_setting_to_change(error, message):
    with pytest.raises(SystemExit, match=message), one_line_errors():
        raise error


def test_plain_dataloaders_of_pairs_are_evaluated(settings, tmp_path):
    images = torch.rand(6, 3, 16, 16)
    pairs = [(image, label) for label, image in enumerate(images)]
    module = DiffGuardModule(oracle="all", **settings)
    results = trainer(tmp_path, []).test(
        module,
        {"mine": DataLoader(pairs, 4), "other": DataLoader(GreyImages(), 4)},
        verbose=False,
    )
    assert [row.score for row in module.results] == ["l2", "msp", "max_logit", "energy"]
    assert "other/l2/auroc" in results[0]


def test_a_single_dataloader_is_refused(settings, tmp_path):
    with pytest.raises(InputError, match=r"in-distribution.*first"):
        trainer(tmp_path, []).test(
            DiffGuardModule(**settings),
            {"mine": DataLoader(GreyImages(), 4)},
        )
