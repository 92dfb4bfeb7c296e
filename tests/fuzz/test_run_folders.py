"""Damaged run folders: the results that were written, or one line that names the file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from helpers.mutations import damaged, fuzz, mutated, outcome
from helpers.report_runs import RECORD, make_run
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl.commands.cli import resolve_configs
from diffguard_pl.report.build import build, grid_pictures
from diffguard_pl.report.page.record_facts import facts
from diffguard_pl.report.results import RunResults, read_results
from diffguard_pl.runs.record import first_difference, read_record
from diffguard_pl.runs.store import part_files, read_scores

CONFIG: dict[str, Any] = {
    "model": {"steps": 5, "slots": 8, "discrepancies": ["maps"]},
    "data": {"class_path": "a.B", "init_args": {"batch_size": 4, "limit": None}},
    "trainer": {"precision": "32-true", "limit_test_batches": None},
    "seed_everything": 100,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", count=12, pictures=2)


@pytest.fixture(scope="module")
def results(run) -> RunResults:
    return read_results(run, results=[])


@pytest.fixture
def copied(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copied"))


@fuzz(250)
@given(data=st.data())
def test_a_damaged_part_gives_the_same_scores_or_is_named(run, results, data):
    (part, *_) = part_files(run)
    whole = part.read_bytes()
    part.write_bytes(data.draw(damaged(whole)))
    try:
        found = outcome(lambda: read_scores(run))
    finally:
        part.write_bytes(whole)
    if found is not None:
        frame, header = found
        pd.testing.assert_frame_equal(frame, read_scores(run)[0])
        assert header == results.header


@fuzz(60)
@given(record=mutated(RECORD))
def test_a_mutated_record_costs_facts_and_no_scores(run, results, record):
    whole = (run / "run.json").read_text()
    (run / "run.json").write_text(json.dumps(record))
    try:
        found = read_results(run, results=[])
        outcome(lambda: read_record(run))
        facts(found)
        _ = found.unfinished, found.short_class_names, found.class_name(3), found.sessions
    finally:
        (run / "run.json").write_text(whole)
    pd.testing.assert_frame_equal(found.frame, results.frame)


@fuzz(60)
@given(content=damaged(json.dumps(RECORD).encode()))
def test_a_damaged_record_costs_facts_and_no_scores(run, results, content):
    whole = (run / "run.json").read_text()
    (run / "run.json").write_bytes(content)
    try:
        found = read_results(run, results=[])
        outcome(lambda: read_record(run))
    finally:
        (run / "run.json").write_text(whole)
    pd.testing.assert_frame_equal(found.frame, results.frame)


@fuzz(100)
@given(before=mutated(CONFIG))
def test_a_mutated_config_of_a_run_is_another_or_the_same(before):
    difference = outcome(lambda: first_difference(before, CONFIG))
    if before == CONFIG:
        assert difference is None


@fuzz(60)
@given(content=damaged(yaml.safe_dump(CONFIG).encode()))
def test_a_damaged_config_of_a_run_is_read_or_named(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "resumed"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_bytes(content)
    outcome(lambda: resolve_configs(["--resume", str(folder)]))


@fuzz(40)
@given(data=st.data())
def test_a_damaged_picture_costs_a_picture(run, results, data):
    pictures = sorted(path for path in (run / "pictures").rglob("*") if path.is_file())
    picture = data.draw(st.sampled_from(pictures))
    whole = picture.read_bytes()
    picture.write_bytes(data.draw(damaged(whole)))
    try:
        assert outcome(lambda: grid_pictures(results)) is not None
    finally:
        picture.write_bytes(whole)


@fuzz(4)
@given(record=mutated(RECORD))
def test_a_report_of_a_mutated_record_is_built(copied_once, record):
    (copied_once / "run.json").write_text(json.dumps(record))
    assert build(read_results(copied_once))[-1].is_file()


@pytest.fixture(scope="module")
def copied_once(run, tmp_path_factory) -> Path:
    return Path(shutil.copytree(run, tmp_path_factory.mktemp("built") / "run"))


@pytest.mark.parametrize("name", ["part-x.parquet", "part-.parquet", "part-9-9-000000.parquet"])
def test_a_folder_or_an_empty_file_among_the_parts_is_named(copied, name):
    (copied / "scores" / name).touch()
    assert outcome(lambda: read_scores(copied)) is None
    (copied / "scores" / name).unlink()
    (copied / "scores" / name).mkdir()
    assert outcome(lambda: read_scores(copied)) is None
