"""The folder of a run, as the commands that run a model choose, lock and leave it."""

import os
from pathlib import Path

import pytest
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from diffguard_pl.commands import calibrate, evaluate
from diffguard_pl.commands.cli import find_run_of_job
from diffguard_pl.config import find_config
from diffguard_pl.runs import record
from diffguard_pl.runs.lock import Lock

QUICK = ["--data.limit", "4", "--model.steps", "5", "--trainer.accelerator", "cpu"]
QUIET = ["--page.enabled", "false", "--pictures.count", "0"]
CONFIG = {"model": {"steps": 5, "slots": 8}, "seed_everything": 1}


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Function that begins a SLURM job, or its next start, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def begin(restarts: int, number: str = "47") -> None:
        monkeypatch.setenv("SLURM_JOB_ID", number)
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))

    return begin


def begun(folder: Path, config: dict, *restarts: int) -> Path:
    """Write the record of a run with a session in each of these starts of the job."""
    folder.mkdir(parents=True)
    sessions = [{"slurm_job": "47", "slurm_restarts": count} for count in restarts]
    record.write_record(folder, {"config": config, "sessions": sessions})
    return folder


def test_each_run_of_a_requeued_job_finds_its_folder(job, tmp_path):
    job(restarts=1)
    first, second, third = (
        begun(tmp_path / f"2026-01-0{seed}_job47", CONFIG | {"seed_everything": seed}, 0)
        for seed in (1, 2, 3)
    )
    begun(tmp_path / "2026-01-02_job471", CONFIG | {"seed_everything": 4}, 0)
    (tmp_path / "2026-01-01_job47-2").mkdir()  # its run was killed before it had a record
    (tmp_path / "2026-01-01_job47-3").mkdir()
    (tmp_path / "2026-01-01_job47-3" / "run.json").write_text("{")

    def found(seed: int, **changed) -> Path | None:
        return find_run_of_job(tmp_path, "47", CONFIG | {"seed_everything": seed} | changed)

    assert [found(seed) for seed in (3, 1, 2, 4)] == [third, first, second, None]
    assert found(2, model={"steps": 5, "slots": 16}) == second  # the same scores
    assert found(2, model={"steps": 6, "slots": 8}) is None


def test_runs_of_one_config_in_a_requeued_job_take_up_one_folder_each(job, tmp_path):
    job(restarts=1)
    done = begun(tmp_path / "a_job47", CONFIG, 0, 1)
    waiting = begun(tmp_path / "a_job47-2", CONFIG, 0)
    other_slots = CONFIG | {"model": {"steps": 5, "slots": 16}}
    begun(tmp_path / "0_job47", other_slots, 0)
    assert find_run_of_job(tmp_path, "47", CONFIG) == waiting
    record.update_session(waiting, slurm_restarts=1)
    assert find_run_of_job(tmp_path, "47", CONFIG) == tmp_path / "0_job47"
    job(restarts=2)
    assert find_run_of_job(tmp_path, "47", CONFIG) == done


def test_a_requeued_loop_over_seeds_goes_on(job, tmp_path, capsys):
    def run(seed: int) -> None:
        evaluate.main(["--seed_everything", str(seed), *QUICK, *QUIET])

    job(restarts=0)
    run(1)
    (first,) = tmp_path.glob("runs/digits_ldm/*_job47")
    job(restarts=1)
    run(1)
    run(2)
    (second,) = set(tmp_path.glob("runs/digits_ldm/*_job47*")) - {first}
    sessions = [len(record.read_record(folder)["sessions"]) for folder in (first, second)]
    assert sessions == [2, 1]


def test_a_rank_in_the_environment_does_not_drop_the_lock(tmp_path, monkeypatch, capsys):
    # What Lightning takes from RANK=1 when it is imported
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    folder = tmp_path / "run"
    folder.mkdir()
    lock = Lock(folder / ".lock")
    assert lock.acquire()
    with pytest.raises(SystemExit, match=rf"in use by process {os.getpid()} .*wait"):
        evaluate.main([*QUICK, *QUIET, "--trainer.default_root_dir", str(folder)])
    lock.release()
    assert rank_zero_only.rank == 0


@pytest.mark.parametrize("chosen", [[], ["--trainer.default_root_dir", "mine/run"]])
def test_a_failed_start_leaves_no_folder(tmp_path, monkeypatch, chosen):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="tpr"):
        calibrate.main([*QUICK, "--tpr", "0.9999", *chosen])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["config.yaml", "run.json"])
def test_a_damaged_file_of_a_run_to_resume_is_named_in_one_line(tmp_path, name):
    files = {"config.yaml": find_config("digits_ldm").read_bytes(), "run.json": b"{}"}
    damaged = {"config.yaml": "# Gr\u00f6\u00dfe\n".encode("latin-1"), "run.json": b"[" * 100_000}
    for file, content in (files | {name: damaged[name]}).items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--resume", str(tmp_path)])
    message = str(stopped.value)
    assert f"{name}: " in message
    assert "\n" not in message
    assert len(message) < 400
