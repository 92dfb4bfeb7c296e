"""CSV files that a spreadsheet opens without running what their names contain."""

import csv
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffguard_pl.runs.csv_files import as_text, original_text, write_csv

FORMULAS = ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "-"]


@pytest.mark.parametrize("name", [*FORMULAS, Path("=a.png"), "'=1", "''+1"])
def test_a_formula_becomes_text_that_can_be_restored(name):
    cell = as_text(name)
    assert cell == f"'{name}"
    assert original_text(cell) == str(name)


@pytest.mark.parametrize("name", ["", "a=1", "1-2", "'", "'a'", "near", "a\n=1", "it's"])
def test_other_text_stays_as_it_is(name):
    assert as_text(name) == original_text(name) == name


@given(st.text(st.sampled_from("=+-@'\t\r\n a1") | st.characters(codec="utf-8")))
def test_no_text_is_a_formula_or_lost(name):
    cell = as_text(name)
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    assert not cell.startswith(("\t", "\r", "\n"))
    assert original_text(cell) == name


def test_numbers_stay_numbers(tmp_path):
    lines = [["=1+1", -1.5, -2, float("-inf")], ["b", 0.1 + 0.2, 3, -0.25]]
    write_csv(["name", "x", "n", "y"], lines, tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().splitlines()[1] == "'=1+1,-1.5,-2,-inf"
    frame = pd.read_csv(tmp_path / "a.csv")
    assert [*map(original_text, frame["name"])] == ["=1+1", "b"]
    assert all(map(pd.api.types.is_numeric_dtype, frame[["x", "n", "y"]].dtypes))
    # As text, since pandas before 3 rounds the last digit of what it reads as numbers.
    found = pd.read_csv(tmp_path / "a.csv", dtype=str)[["x", "n", "y"]].to_numpy().tolist()
    assert [[*map(float, line)] for line in found] == [line[1:] for line in lines]


def test_separators_and_quotes_begin_no_further_cell(tmp_path):
    names = ['a",=1', "a,=1", 'a\n"=1']
    write_csv(["name", "@header"], [[name, 1] for name in names], tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["name", "'@header"]
    assert [line[0] for line in lines] == names
