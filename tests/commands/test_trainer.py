"""Settings of Lightning's trainer: each runs, or is refused in one line that names it."""

import re

import pytest
from helpers.results import scores_of

from diffguard_pl.commands.evaluate import main

SMALL = [
    *("--data.limit", "2"),
    *("--model.steps", "2"),
    *("--model.discrepancies", "[l2]"),
    *("--pictures.count", "0"),
    *("--page.enabled", "false"),
    *("--trainer.accelerator", "cpu"),
]


@pytest.mark.parametrize(
    ("setting", "images"),
    [
        (["--trainer.enable_progress_bar", "false"], 8),
        (["--trainer.use_distributed_sampler", "true"], 8),
        (["--trainer.fast_dev_run", "1"], 8),
        (["--trainer.limit_test_batches", "1", "--data.batch_size", "1"], 4),
    ],
)
def test_a_setting_that_a_test_can_follow_runs(setting, images, tmp_path):
    main([*SMALL, *setting, "--trainer.default_root_dir", str(tmp_path / "run")])
    assert len(scores_of(tmp_path / "run")) == images


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("--trainer.limit_test_batches=0", "limit_test_batches.*at least 1"),
        ("--trainer.limit_test_batches=0.0", "limit_test_batches.*at least 1"),
        ("--trainer.barebones=true", "barebones.*leave it out"),
        ("--trainer.fast_dev_run=-1", "fast_dev_run.*at least 1"),
        ("--trainer.strategy=ddp_spawn", "strategy.*auto or ddp"),
        ("--trainer.strategy=fsdp", "strategy"),
        ("--seed_everything=-5", "seed_everything.*0 to 4294967295"),
        ("--seed_everything=4294967296", "seed_everything.*0 to 4294967295"),
    ],
)
def test_a_setting_that_a_test_cannot_follow_is_refused(setting, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*SMALL, setting, "--trainer.default_root_dir", str(tmp_path / "run")])
    # a refused value ends with the line as its status, a refused argument prints it
    printed = f"{ended.value.code}\n{capsys.readouterr().err}"
    lines = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert re.search(message, lines[0])
    assert not list(tmp_path.glob("run/*"))


def test_a_slurm_job_with_other_tasks_than_devices_is_refused(tmp_path, monkeypatch):
    job = {"JOB_ID": "7", "JOB_NAME": "x", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    job |= {"NODEID": "0", "NNODES": "1", "STEP_NODELIST": "localhost", "NTASKS_PER_NODE": "1"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SystemExit, match=r"devices.*ntasks-per-node"):
        main([*SMALL, "--trainer.devices", "2", "--trainer.default_root_dir", str(tmp_path)])
