"""The record of a run."""

import re
import subprocess
import sys

import pytest
import torch

from diffguard_pl import InputError
from diffguard_pl.runs import record

CONFIG = {
    "model": {"steps": 5, "slots": 8},
    "data": {"class_path": "Digits", "init_args": {"limit": 3, "batch_size": 4}},
    "trainer": {"precision": "32-true", "devices": 1},
    "seed_everything": 0,
}


def changed(**sections):
    return CONFIG | sections


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (changed(model={"steps": 5, "slots": 64, "compile": True}), None),
        (changed(trainer={"precision": "32-true", "devices": 2}), None),
        (
            changed(data={"class_path": "Digits", "init_args": {"limit": 3, "batch_size": 9}}),
            None,
        ),
        (changed(model={"steps": 6}), "model.steps was 5 .* is 6 now"),
        (changed(trainer={"precision": "16-mixed"}), 'trainer.precision was "32-true"'),
        (changed(data={"class_path": "Digits"}), "data.init_args.limit was 3 .* is not set now"),
        (changed(shard="0/2"), 'shard was not set .* is "0/2" now'),
    ],
)
def test_only_settings_that_scores_depend_on_prevent_a_resume(now, difference):
    found = record.first_difference(CONFIG, now)
    if difference is None:
        assert found is None
    else:
        assert re.match(difference, found or "")


def test_names_are_those_of_the_given_settings_that_scores_depend_on():
    names = ["data.class_path", "data.init_args.limit", "model.steps", "seed_everything"]
    assert record.setting_names(CONFIG) == [*names, "trainer.precision"]
    assert record.setting_names({"model": {"early_stop": None}}) == ["model.early_stop"]


def test_a_record_is_read_back_and_a_session_is_updated(tmp_path):
    assert record.read_record(tmp_path) == {}
    record.write_record(tmp_path, {"sessions": [{"began": 1}, {"began": 2}]})
    record.update_session(tmp_path, ended=3)
    assert record.read_record(tmp_path)["sessions"] == [{"began": 1}, {"began": 2, "ended": 3}]
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run.json: cannot be read .*remove it"):
        record.read_record(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"config": ' + b'{"a": ' * 200 + b"1" + b"}" * 201,
        b"[]",
        b'"\xe4"',
        b'{"sessions": {}}',
        b'{"sessions": [1]}',
        b'{"config": []}',
        b'{"data": {"digits": 5}}',
    ],
    ids=lambda content: content[:20].decode("latin1"),
)
def test_a_damaged_record_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"run.json: .*remove it") as refused:
        record.read_record(tmp_path)
    assert len(str(refused.value)) < 300


def test_a_record_without_sessions_gets_one(tmp_path):
    record.write_record(tmp_path, {"sessions": []})
    record.update_session(tmp_path, ended=1)
    assert record.last_session(record.read_record(tmp_path)) == {"ended": 1}
    assert record.last_session({}) == {}


def test_the_hash_of_weights_depends_on_names_types_and_values():
    def weights(fill=1.0, dtype=torch.bfloat16):
        layer = torch.nn.Linear(2, 3, bias=False).to(dtype)
        torch.nn.init.constant_(layer.weight, fill)
        return layer

    assert record.weights_hash(weights()) == record.weights_hash(weights())
    others = [
        weights(fill=2.0),
        weights(dtype=torch.float16),
        torch.nn.Sequential(weights()),
        torch.nn.Linear(3, 2, bias=False),
    ]
    hashes = {record.weights_hash(module) for module in [weights(), *others]}
    assert len(hashes) == 5
    assert record.weights_hash(torch.nn.ReLU()) is None


def test_reading_a_run_does_not_import_torch():
    code = (
        "import sys, diffguard_pl.runs.record, diffguard_pl.runs.lock, diffguard_pl.runs.signals; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_revision_is_that_of_the_checkout_with_a_mark_for_changes(tmp_path, monkeypatch):
    def git(*args: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *who, *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "one")
    monkeypatch.chdir(tmp_path)
    revision = git("rev-parse", "HEAD")
    assert record.git_revisions()["working_directory"] == revision
    (tmp_path / "file").write_text("2")
    assert record.git_revisions()["working_directory"] == f"{revision}+"
