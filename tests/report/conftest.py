"""Runs that tests of several modules share; no test changes them."""

from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.report_runs import make_run

from diffguard_pl.report.build import build
from diffguard_pl.report.results import read_results


class Pair(NamedTuple):
    """Two runs of the same images, the second of which separates them better."""

    a: Path
    b: Path


@pytest.fixture(scope="session")
def built_run(tmp_path_factory) -> Path:
    """A run with pictures whose report has been built."""
    folder = tmp_path_factory.mktemp("runs") / "digits_ldm" / "2026-11-23_20-30-00"
    make_run(folder)
    build(read_results(folder))
    return folder


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    a = make_run(folder / "a", pictures=0)
    b = make_run(folder / "b", primary_score="maps", better=0.5, pictures=0)
    return Pair(a, b)
