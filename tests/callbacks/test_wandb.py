"""Experiment trackers: W&B and TensorBoard files are read back; servers are real sockets."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytorch_lightning as pl
import wandb
import yaml
from lightning_utilities.core.imports import RequirementCache
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from wandb.proto import wandb_internal_pb2 as pb

import diffguard_pl
from diffguard_pl import DiffGuardModule, InputError
from diffguard_pl.callbacks import (
    PictureWriter,
    ReconstructionLogger,
    RunLogger,
    ScoreWriter,
    TrajectoryLogger,
    WandbRun,
    wandb_run,
)
from diffguard_pl.commands.evaluate import main
from diffguard_pl.config import find_config, load_data
from diffguard_pl.report.gallery import picture_paths
from diffguard_pl.runs.store import read_scores

KEY = "a" * 40


@pytest.fixture(autouse=True)
def isolated(tmp_path, monkeypatch) -> Iterator[None]:
    """No key, no settings and no environment but those of the test."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # it reads the environment once a process
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def settings() -> dict:
    detector = diffguard_pl.load("digits_ldm", steps=4, guidance__cam_cut=0.3)  # with a mask
    return {
        "classifier": detector.classifier,
        "backbone": detector.backbone,
        "guidance": detector.guidance,
    }


def run(folder: Path, logger: object, settings: dict, count: int = 4) -> pl.Trainer:
    """Six images of each set through a quick detector, with all that the command attaches to it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("model: {steps: 4}\n")
    quiet = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    callbacks = [
        PictureWriter(3),
        TrajectoryLogger(1, 2),
        ScoreWriter(),
        RunLogger(),
        ReconstructionLogger(count),
    ]
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=logger,
        callbacks=callbacks,
        default_root_dir=folder,
        **quiet,
    )
    module = DiffGuardModule(steps=4, discrepancies=["l2"], **settings)
    trainer.test(module, load_data(["digits_ldm"], ["--data.limit=6"]), verbose=False)
    return trainer


def attached(folder: Path, run_id: str | None = None, **given: object) -> WandbRun:
    logger = WandbRun(**given)
    logger.attach(folder, {"model": {"steps": 4}}, run_id)
    return logger


def records(path: Path) -> list[pb.Record]:
    """The content of a .wandb file: a LevelDB log, in blocks of 32 KiB, after 7 bytes of W&B's."""
    data, at, found, whole = path.read_bytes(), 7, [], b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # full, last
            found.append(pb.Record.FromString(whole))
            whole = b""
    return found


def pieces(folder: Path) -> list[Path]:
    """The folders of a W&B run, the first one first, complete as they are when the process ends."""
    wandb.teardown()
    return sorted(path.parent for path in (folder / "wandb").glob("*run-*/*.wandb"))


def history(found: list[pb.Record]) -> dict[str, object]:
    """Return logged values; parts of a value have names such as ``reconstructions/path``."""
    items = [item for record in found if record.HasField("history") for item in record.history.item]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def summary(found: list[pb.Record]) -> dict[str, object]:
    items = [
        item for record in found if record.HasField("summary") for item in record.summary.update
    ]
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def test_an_offline_run_holds_figures_pictures_plots_config_and_scores(settings, tmp_path, capsys):
    folder = tmp_path / "runs" / "digits" / "today"
    logger = attached(folder, group="sweep 1", tags=["a", "b"])
    began = time.monotonic()
    assert logger.experiment.offline
    assert time.monotonic() - began < 10
    run(folder, logger, settings)
    (line,) = [
        line for line in capsys.readouterr().err.splitlines() if "W&B" in line or "wandb" in line
    ]
    assert line.startswith("W&B: offline, API key not found")
    assert line.endswith(f"wandb sync --include-online {folder / 'wandb'}")

    (piece,) = pieces(folder)
    found = records(piece / f"run-{logger.run_id}.wandb")
    (of_run,) = [record.run for record in found if record.HasField("run")]
    assert (of_run.run_id, of_run.run_group, list(of_run.tags)) == (
        logger.run_id,
        "sweep 1",
        ["a", "b"],
    )
    assert (of_run.project, of_run.display_name) == ("diffguard", "digits/today")
    config = {item.key: json.loads(item.value_json) for item in of_run.config.update}
    assert config["model"] == {"steps": 4}

    logged, figures = history(found), summary(found)
    assert 0 <= logged["photos/l2/auroc"] <= 1
    assert figures["near/auroc"] == figures["digits_4_9/auroc"]
    assert figures["far/auroc"] == pytest.approx(
        (figures["photos/auroc"] + figures["letters/auroc"]) / 2
    )
    assert figures["photos/fpr95_low"] <= figures["photos/fpr95"] <= figures["photos/fpr95_high"]
    assert figures["left_out/digits"] == 0
    assert 0 <= figures["classifier/accuracy"] <= 1
    assert {"mean/auroc", "images/letters"} <= set(figures)

    artifacts = {
        record.artifact.type: record.artifact for record in found if record.HasField("artifact")
    }
    entries = {
        kind: {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
        for kind, artifact in artifacts.items()
    }
    for path in [*entries["scores"].values(), *entries["run_table"].values()]:
        assert path.is_relative_to(folder), (
            "all that is to be uploaded lies in the folder of the run"
        )
    assert any(path.startswith("scores/part-") for path in entries["scores"])
    assert "config.yaml" in entries["scores"]

    table = json.loads(entries["run_table"]["reconstructions.table.json"].read_text())
    assert table["columns"][:8] == [
        "dataset",
        "group",
        "index",
        "path",
        "input",
        "reconstruction",
        "difference",
        "mask",
    ]
    assert table["columns"][-4:] == ["l2", "msp", "max_logit", "energy"]
    assert len(table["data"]) == logged["reconstructions/nrows"] == 16
    for cells in table["data"]:
        row = dict(zip(table["columns"], cells, strict=True))
        for name in ("input", "reconstruction", "difference"):
            assert Image.open(entries["run_table"][row[name]["path"]]).size == (64, 64)
        assert row["mask"]["masks"]["guidance"]["path"] in entries["run_table"]
        assert row["reconstructed_as"] in "01235678"
        assert (row["label"] == "") == (row["dataset"] != "digits")

    assert logged["trajectories/captions"] == ["digits_0", "digits_4_9_0", "letters_0", "photos_0"]
    strip = piece / "files" / logged["trajectories/filenames"][0]
    assert Image.open(strip).width > 400

    roc = json.loads((piece / "files" / logged["roc/photos/path"]).read_text())
    assert [curve["name"] for curve in roc["data"]] == ["l2", "msp", "max_logit", "energy"]
    histogram = json.loads((piece / "files" / logged["histogram/l2/path"]).read_text())
    assert [bars["name"] for bars in histogram["data"]] == [
        "digits",
        "digits_4_9",
        "photos",
        "letters",
    ]


def test_a_resumed_run_goes_on_as_the_same_wandb_run(settings, tmp_path):
    first = attached(tmp_path / "r")
    first.log_metrics({"throughput/images": 1.0}, step=0)
    first.finalize("failed")
    assert first.run_id == first.version
    time.sleep(1)  # its folders are named by the second
    second = attached(tmp_path / "r", first.run_id)
    second.log_metrics({"throughput/images": 2.0}, step=1)
    second.finalize("success")
    found = [records(piece / f"run-{first.run_id}.wandb") for piece in pieces(tmp_path / "r")]
    assert len(found) == 2
    assert [record.run.run_id for one in found for record in one if record.HasField("run")] == [
        first.run_id
    ] * 2
    dry = [
        sys.executable,
        "-m",
        "wandb",
        "sync",
        "--include-online",
        "--dry-run",
        str(tmp_path / "r" / "wandb"),
    ]
    said = subprocess.run(dry, capture_output=True, text=True, timeout=60).stderr
    assert "Would sync 2 run(s)" in said


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("kind", "said"), [("closed_port", "cannot be reached"), ("silent_server", "does not answer")]
)
def test_without_a_server_a_run_is_offline_soon(kind, said, request, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", request.getfixturevalue(kind))
    logger = attached(tmp_path / "r")
    began = time.monotonic()
    assert logger.experiment.offline
    logger.finalize("success")
    assert time.monotonic() - began < 15
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{said}; to upload the run later: wandb sync" in line


class Server(BaseHTTPRequestHandler):
    """As much of a W&B server as a run needs to begin.

    Attributes:
        gone: Set to accept requests without an answer.
        closing: Set at the end of the test.
        refuses: Whether keys are invalid.
    """

    gone = threading.Event()
    closing = threading.Event()
    refuses = False

    def answer(self) -> None:
        query = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.gone.is_set():
            self.closing.wait()
        variables = json.loads(query)["variables"] if self.path == "/graphql" else {}
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
        bucket = {
            "id": "r",
            "name": variables.get("name"),
            "displayName": "r",
            "historyLineCount": 0,
            "project": project,
        }
        content: dict = {}
        if b"UpsertBucket" in query:
            content = {"upsertBucket": {"bucket": bucket, "inserted": True}}
        elif b"RunResumeStatus" in query:
            content = {"model": project | {"bucket": None}}
        body = json.dumps({"data": content}).encode()
        self.send_response(401 if self.refuses and query else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[type[Server]]:
    events = {"gone": threading.Event(), "closing": threading.Event()}
    kind = type("OneServer", (Server,), events)
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as listening:
        listening.daemon_threads, listening.block_on_close = True, False
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listening.server_port}")
        yield kind
        kind.closing.set()
        listening.shutdown()


def test_a_server_that_goes_in_the_middle_of_a_run_does_not_hold_up_its_end(
    server, tmp_path, capsys
):
    logger = attached(tmp_path / "r", finish_timeout=5)
    logger.log_metrics({"before": 1.0}, step=0)
    assert not logger.experiment.offline
    server.gone.set()
    logger.log_metrics({"after": 1.0}, step=1)
    began = time.monotonic()
    logger.continue_offline_if_unreachable()
    assert logger.experiment.offline
    logger.log_metrics({"at the end": 1.0}, step=2)
    logger.finalize("success")
    assert time.monotonic() - began < 20
    online, offline = capsys.readouterr().err.splitlines()
    assert online.endswith(f"/runs/{logger.run_id}")
    assert "does not answer; to upload the run later: wandb sync" in offline
    names = {
        name
        for piece in pieces(tmp_path / "r")
        for name in history(records(piece / f"run-{logger.run_id}.wandb"))
    }
    assert {"before", "after", "at the end"} <= names


def test_a_refused_key_makes_a_run_offline_or_an_error_in_online_mode(server, tmp_path, capsys):
    server.refuses = True
    logger = attached(tmp_path / "r", init_timeout=5)
    assert logger.experiment.offline
    logger.finalize("success")
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(InputError, match="mode=online: "):
        _ = attached(tmp_path / "s", init_timeout=5, mode="online").experiment


def test_modes_from_settings(tmp_path, monkeypatch, capsys):
    with pytest.raises(
        InputError,
        match=r"trainer\.logger\.mode 'onlin'; choose from: online, offline",
    ):
        WandbRun(mode="onlin")
    with pytest.raises(InputError, match=r"mode=online: API key not found.*wandb login"):
        _ = attached(tmp_path / "r", mode="online").experiment
    logger = attached(tmp_path / "r", mode="disabled")
    logger.log_metrics({"a": 1.0})
    logger.finalize("success")
    assert not list(tmp_path.rglob("*.wandb"))
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    logger = attached(tmp_path / "r")
    assert (logger.experiment.offline, logger.experiment.project) == (True, "mine")
    logger.finalize("success")
    assert "offline, as requested" in capsys.readouterr().err


def test_without_wandb_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(wandb_run, "WANDB", RequirementCache("wandb>=1000"))
    with pytest.raises(InputError, match=r"trainer\.logger.*pip install wandb"):
        WandbRun()


def test_tensorboard_gets_figures_histograms_and_pictures(settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path / "r", TensorBoardLogger(tmp_path / "r"), settings, count=2)
    (events,) = (tmp_path / "r").rglob("events.out.tfevents.*")
    found = EventAccumulator(str(events))
    tags = found.Reload().Tags()
    assert {"near/auroc", "mean/fpr95", "photos/l2/auroc"} <= set(tags["scalars"])
    assert "scores_l2/photos" in tags["histograms"]
    assert "trajectories/photos_0" in tags["images"]
    shown = [tag for tag in tags["images"] if tag.startswith("photos/")]
    assert len(shown) == 2
    (picture,) = found.Images(shown[0])
    assert (picture.height, picture.width) == (64, 4 * 64)
    assert f"{shown[0]}/text_summary" in tags["tensors"]


def test_without_a_logger_nothing_is_logged(settings, tmp_path):
    run(tmp_path / "r", False, settings)
    assert not (tmp_path / "r" / "wandb").exists()


def test_the_sample_is_the_same_each_time_and_of_both_kinds(settings, tmp_path):
    from diffguard_pl.callbacks.trackers import _sample

    run(tmp_path / "r", False, settings)
    chosen = [(row["dataset"], row["index"]) for row, _ in _sample(tmp_path / "r", "l2", 4)]
    assert chosen == [(row["dataset"], row["index"]) for row, _ in _sample(tmp_path / "r", "l2", 4)]
    assert len(chosen) == len(set(chosen)) == 16
    of_photos = [
        row["l2"] for row, kept in _sample(tmp_path / "r", "l2", 100) if kept.dataset == "photos"
    ]
    assert len(of_photos) == len(
        [path for path in picture_paths(tmp_path / "r") if path.parent.name == "photos"]
    )
    shown = [
        row["l2"] for row, kept in _sample(tmp_path / "r", "l2", 4) if kept.dataset == "photos"
    ]
    assert shown[:2] == [min(of_photos), max(of_photos)]


def test_a_run_outlives_the_process_of_wandb(settings, tmp_path, monkeypatch, capsys):
    def killing(self, trainer, pl_module):
        monkeypatch.undo()
        children = ["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"]
        (core,) = subprocess.check_output(children).split()
        os.kill(int(core), signal.SIGKILL)

    monkeypatch.setattr(PictureWriter, "on_test_epoch_end", killing, raising=False)
    run(tmp_path / "run", attached(tmp_path / "run"), settings)
    assert "W&B: logging has ended: " in capsys.readouterr().err
    assert len(read_scores(tmp_path / "run")[0]) == 24
    with suppress(Exception):
        wandb.teardown()  # it misses its process, once


@pytest.mark.parametrize(
    "variable", ["WANDB_MODE=garbage", "WANDB_BASE_URL=foo", "WANDB_PROJECT=a/b"]
)
def test_a_variable_that_wandb_does_not_take_is_answered_in_one_line(
    variable, tmp_path, monkeypatch
):
    monkeypatch.setenv(*variable.split("="))
    with pytest.raises(InputError, match=r"^trainer.logger: [^\n]*(mode|base_url|project)"):
        attached(tmp_path / "run").experiment  # noqa: B018


def test_the_shipped_sweep_file_makes_commands_that_the_test_command_accepts(capsys):
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(find_config("sweeps/digits_guidance").read_text())
    values = {name: {"value": given["values"][-1]} for name, given in sweep["parameters"].items()}
    args = create_sweep_command_args({"args": values})["args"]
    command = create_sweep_command(sweep["command"])
    assert sweep["program"] == "diffguard_pl.test"
    assert command[:4] == ["${env}", "${interpreter}", "-m", "${program}"]
    with pytest.raises(SystemExit):
        main([*command[4:-1], *args, "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["model"]["steps"] == 20
    assert settings["model"]["guidance"]["init_args"]["scale"] == 5
    assert settings["data"]["init_args"]["split"] == "tuning"
