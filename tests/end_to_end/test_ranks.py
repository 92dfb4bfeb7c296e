"""Several processes give the results of one, whatever becomes of them on the way."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from helpers import preloaded
from helpers.results import assert_same

from diffguard_pl.commands import merge
from diffguard_pl.commands.evaluate import main
from diffguard_pl.evaluation.module import DiffGuardModule
from diffguard_pl.runs import lock as owner
from diffguard_pl.runs.store import part_files, read_scores

SMALL = ["--data.limit", "22", "--data.batch_size", "4", "--model.slots", "4",
         "--model.steps", "2", "--model.discrepancies", "[maps, l2]", "--pictures.count", "3",
         "--scores.every", "0", "--page.enabled", "false", "--trainer.accelerator", "cpu",
         "--trainer.default_root_dir", "run"]  # fmt: skip
GDM = ["--config", "digits_gdm", "--model.steps", "10", "--data.limit", "8"]
SLOW = ["--model.steps", "60"]


@contextmanager
def started(
    folder: Path,
    *args: str,
    launcher: tuple[str, ...] = (),
    fork_ranks: bool = False,
    **environment: str,
) -> Iterator[preloaded.Process]:
    """The command, in processes of its own; killed with all that it has started."""
    folder.mkdir(parents=True, exist_ok=True)
    config, args = (args[:2], args[2:]) if args[:1] == ("--config",) else ((), args)
    with preloaded.start(
        ["-m", *launcher, "diffguard_pl.test", *config, *SMALL, *args],
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1"} | environment,
        text=True,
        start_new_session=True,
        fork_ranks=fork_ranks,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run(
    folder: Path, *args: str, launcher: tuple[str, ...] = (), status: int = 0, **environment: str
) -> str:
    """What the command says."""
    is_launched_by_lightning = not launcher
    with started(
        folder, *args, launcher=launcher, fork_ranks=is_launched_by_lightning, **environment
    ) as process:
        said, _ = process.communicate(timeout=300)
    assert process.returncode == status, said
    return said


def here(folder: Path, *args: str) -> None:
    """The command on one device, in this process, which has imported everything already."""
    config, rest = (args[:2], args[2:]) if args[:1] == ("--config",) else ((), args)
    main(
        [
            *config,
            *SMALL,
            *rest,
            "--trainer.devices",
            "1",
            "--trainer.default_root_dir",
            str(folder / "run"),
        ]
    )


def wait_for(true: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Path]:
    """Runs on one device."""
    folder = tmp_path_factory.mktemp("alone")
    for name, args in (("ldm", []), ("gdm", GDM)):
        here(folder / name, *args)
    return {name: folder / name / "run" for name in ("ldm", "gdm")}


@pytest.mark.parametrize(
    ("pipeline", "devices"), [("ldm", 3), ("gdm", 2)]
)  # test_torchrun: LDM on two
def test_any_number_of_processes_gives_the_results_of_one(pipeline, devices, alone, tmp_path):
    run(tmp_path, *(GDM if pipeline == "gdm" else []), "--trainer.devices", str(devices))
    assert {part.name.split("-")[2] for part in part_files(tmp_path / "run")} == {
        f"{rank:04}" for rank in range(devices)
    }
    assert_same(tmp_path / "run", alone[pipeline])


def test_fewer_images_than_processes(tmp_path):
    run(tmp_path, "--data.limit", "1", "--trainer.devices", "3")
    frame, _ = read_scores(tmp_path / "run")
    assert frame["dataset"].tolist() == ["digits", "digits_4_9", "photos", "letters"]


@pytest.mark.slow
def test_torchrun(alone, tmp_path):
    launcher = "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"
    sampler = "--trainer.use_distributed_sampler", "true"
    run(tmp_path, "--trainer.devices", "2", *sampler, launcher=launcher)
    assert_same(tmp_path / "run", alone["ldm"])


def test_fitted_baselines_and_a_cascade_that_skips_on_two_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGUARD_CACHE", str(tmp_path / "cache"))
    combined = [
        "--model.baselines",
        "[msp, mahalanobis]",
        "--model.fusion.scores",
        "[maps, mahalanobis]",
    ]
    combined += [
        "--model.cascade.budget",
        "0.5",
        "--model.cascade.then",
        "fusion",
        "--model.cascade.skip",
        "true",
    ]
    here(tmp_path / "one", *combined)
    run(tmp_path / "two", *combined, "--trainer.devices", "2")
    one, two = (pd.read_csv(tmp_path / name / "run" / "metrics.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two, atol=1e-9)
    assert set(one["score"]) == {"cascade", "msp", "mahalanobis"}
    sent = [read_scores(tmp_path / name / "run")[0]["nfe"] > 0 for name in ("one", "two")]
    assert sent[0].equals(sent[1])
    assert 0.2 < sent[0].mean() < 0.9


# shards


def test_merged_shards_equal_the_run(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for shard in range(3):
        main([*SMALL, "--shard", f"{shard}/3", "--trainer.default_root_dir", f"shards/{shard}"])
    assert sorted(len(read_scores(f"shards/{shard}")[0]) for shard in range(3)) == [28, 28, 32]
    merge.main(["whole", "shards/0", "shards/1", "shards/2"])
    assert "whole/report.html" in capsys.readouterr().out
    assert_same(tmp_path / "whole", alone["ldm"])
    pictures = [
        sorted(str(path.relative_to(of)) for path in of.glob("pictures/*/*"))
        for of in (tmp_path / "whole", alone["ldm"])
    ]
    assert pictures[0] == pictures[1]
    record = json.loads(Path("whole/run.json").read_text())
    assert [session["shard"] for session in record["sessions"]] == ["0/3", "1/3", "2/3"]
    main(["--resume", "whole", "--page.enabled", "false"])
    assert "88 images have results already" in capsys.readouterr().out


def test_shards_that_do_not_make_a_run_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "--data.limit", "4"]
    for name, args in {
        "0": ["--shard", "0/2"], "1": ["--shard", "1/2"], "third": ["--shard", "1/3"], "whole": [],
        "other": ["--shard", "1/2", "--model.steps", "3"], "begun": ["--shard", "1/2"],
    }.items():  # fmt: skip
        main([*small, *args, "--trainer.default_root_dir", name])
    record = json.loads(Path("begun/run.json").read_text())
    del record["sessions"][-1]["ended"]
    Path("begun/run.json").write_text(json.dumps(record))
    for shards, said in (
        (["0"], "1/2 are missing"),
        (["0", "0"], "0: is the same shard as 0"),
        (["0", "third"], "third: belongs to another run than 0: shard was"),
        (["0", "other"], "other: belongs to another run than 0: model.steps was 2 there, is 3 now"),
        (["0", "whole"], "whole: not a shard"),
        (
            ["0", "begun"],
            "begun: shard 1/2 is unfinished; .*--resume begun",
        ),
        (["0", "nowhere"], "nowhere: not a diffguard_pl run"),
    ):
        with pytest.raises(SystemExit, match=said):
            merge.main(["out", *shards])
    with pytest.raises(SystemExit, match="must be I/N with I from 0 to N-1"):
        main([*small, "--shard", "2/2"])
    with pytest.raises(SystemExit, match='shard was "0/2" when the run began and is "1/2" now'):
        main(["--resume", "0", "--shard", "1/2"])


# ends before their time


def test_a_run_that_is_warned_stops_at_once_and_its_job_is_requeued_and_goes_on_by_itself(
    alone, tmp_path, monkeypatch, capsys
):
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    job = {"PATH": f"{scontrol.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77"}
    with started(tmp_path, "--trainer.devices", "2", **job) as process:
        wait_for(lambda: len(part_files(tmp_path / "run")) >= 3)
        process.send_signal(signal.SIGUSR1)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, said
    assert "stopped by SIGUSR1; to resume: diffguard-pl test --resume run" in said
    assert "SLURM job 77 is requeued" in said
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    done = len(read_scores(tmp_path / "run")[0])
    assert done < 88
    for name, value in {**job, "SLURM_RESTART_COUNT": "1"}.items():
        monkeypatch.setenv(name, value)
    here(tmp_path)
    assert f"{done} images have results already" in capsys.readouterr().out
    assert_same(tmp_path / "run", alone["ldm"])


def test_sigterm_ends_a_run_within_a_step_and_asks_for_no_requeue(tmp_path):
    args = ["--data.batch_size", "22", "--model.steps", "500", "--trainer.devices", "2"]
    args += ["--data.num_workers", "1", "--progress.every", "0"]
    with started(tmp_path, *args, SLURM_JOB_ID="77") as process:
        # the first line comes between two steps of the first batch
        assert process.stdout is not None
        next(line for line in process.stdout if "digits: 0/" in line)
        os.killpg(process.pid, signal.SIGTERM)  # as SLURM does: the workers get it too
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "stopped by SIGTERM" in said
    assert "queue" not in said
    assert not part_files(tmp_path / "run")


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_when_a_rank_is_killed_the_others_stop_and_the_run_can_go_on(rank, alone, tmp_path):
    with started(tmp_path, "--trainer.devices", "2") as process:
        wait_for(lambda: len(part_files(tmp_path / "run")) >= 4)
        (child,) = map(
            int,
            subprocess.check_output(
                ["pgrep", "-P", str(process.pid), "-f", "diffguard_pl.test"]
            ).split(),
        )
        ranks = {0: process.pid, 1: child}
        os.kill(ranks[rank], signal.SIGKILL)
        process.communicate(timeout=60)  # until nobody has its output open
    assert process.returncode != 0
    assert 0 < len(read_scores(tmp_path / "run")[0]) < 88
    here(tmp_path, "--resume", str(tmp_path / "run"))
    assert_same(tmp_path / "run", alone["ldm"])


@pytest.mark.slow
def test_a_full_disk_under_several_ranks_is_one_line_and_the_run_can_be_resumed(alone, tmp_path):
    room = tmp_path / "small"
    room.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=150k", "tmpfs", room], capture_output=True
    ).returncode:
        pytest.skip("a small disk of its own needs root")
    try:
        with started(room, "--trainer.devices", "2") as process:
            said, _ = process.communicate(timeout=90)
        assert process.returncode != 0
        assert "cannot be written (No space left on device)" in said
        assert "Traceback" not in said
        assert 0 < len(read_scores(room / "run")[0]) < 88
        subprocess.run(["mount", "-o", "remount,size=64m", room], check=True)
        here(room, "--resume", str(room / "run"))
        assert_same(room / "run", alone["ldm"])
    finally:
        subprocess.run(["umount", "-l", room], check=True)


def test_a_second_run_in_the_folder_of_another_is_refused_with_the_name_of_the_first(tmp_path):
    with started(tmp_path, *SLOW, SLURM_JOB_ID="4711") as first:
        wait_for(lambda: len(part_files(tmp_path / "run")) >= 1)
        for args in (SLOW, ["--resume", "run", *SLOW]):
            said = run(tmp_path, *args, status=1)
            assert f"error: run folder run: in use by process {first.pid} on " in said
            assert "(SLURM job 4711), started 20" in said
        first.kill()
        first.wait()
    owner.lock_run_folder(tmp_path / "run")  # the lock of a killed run is no more
    with owner.releasing_locks():
        pass


# parts


def test_a_checkpoint_of_a_test_is_small_and_can_be_loaded(digits_ldm, tmp_path):
    settings = {
        "classifier": digits_ldm.classifier,
        "backbone": digits_ldm.backbone,
        "guidance": digits_ldm.guidance,
    }
    module = DiffGuardModule(**settings, steps=5, discrepancies=["l2"])
    loader = torch.utils.data.DataLoader([(torch.rand(3, 16, 16), 0)] * 2, batch_size=2)
    trainer = pl.Trainer(
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        barebones=False,
    )
    loaders = {"ind": loader, "ood": loader}
    trainer.test(module, loaders, verbose=False)
    trainer.save_checkpoint(tmp_path / "test.ckpt")
    assert (tmp_path / "test.ckpt").stat().st_size < 20_000
    trainer.test(
        module, loaders, ckpt_path=tmp_path / "test.ckpt", verbose=False, weights_only=True
    )
    assert module.state_dict() == {}
    assert torch.nn.ModuleDict({"guard": module}).state_dict() == {}
