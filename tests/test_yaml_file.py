"""YAML files of users."""

import time
from pathlib import Path

import pytest
import yaml

from diffguard_pl.commands import evaluate
from diffguard_pl.config import load, load_data
from diffguard_pl.errors import InputError
from diffguard_pl.yaml_file import load_yaml, read_yaml

MULTIPLYING = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "refers to itself": ("a: &a [*a]", r"\*a in line 1 refers to itself"),
    "merges itself": ("a: &a {<<: *a}", r"\*a in line 1 refers to itself"),
    "nests": (f"a: {'[' * 3000}{']' * 3000}", "nest"),
    "nests in mappings": (f"{'{a: ' * 100}1{'}' * 100}", "nests more than .*flatten"),
    "nests by aliases": (
        "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 2000)),
        "nests more than .*flatten",
    ),
    "multiplies": (MULTIPLYING, "values.*shorten"),
    "is long": (f"a: [{'1, ' * 100_001}]", "values.*shorten"),
    "sets a key twice": ("model: {steps: 5}\nmodel: {steps: 6}", "'model' in line 2.*twice"),
    "has a wrong tag": ("a: !!int abc", "tag.*abc"),
    "has a wrong date": ("a: !!timestamp abc", "tag"),
    "has Python": ("a: !!python/object:os.system x", "python/object"),
    "has a long number": (f"a: {'9' * 5000}", "5000 digits"),
    "has an unknown alias": ("a: *b", "undefined alias 'b'"),
    "is two documents": ("a: 1\n---\nb: 2", "single document"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED)
def test_yaml_that_is_no_settings_is_refused_in_one_line(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    began = time.monotonic()
    with pytest.raises(InputError, match=message) as refused:
        read_yaml(file)
    assert time.monotonic() - began < 5
    line = str(refused.value)
    assert line.startswith(f"config {file}: ")
    assert "\n" not in line
    assert len(line) < 1000


def test_files_that_are_no_text_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    for content, message in (
        ("a: 1".encode("utf-16"), "UTF-8"),
        (b"a: \x00", "control characters"),
        (b" " * 10_000_001, "too large"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_yaml(file)
    with pytest.raises(InputError, match="cannot be read"):
        read_yaml(tmp_path)


def test_aliases_merges_and_dates_are_read():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, z: 3}\nc: {<<: *b, x: 4}\nd: [*a, *a, 2012-13-45]\n"
    assert load_yaml(text) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 2, "z": 3},
        "c": {"x": 4, "y": 2, "z": 3},
        "d": [{"x": 1, "y": 2}, {"x": 1, "y": 2}, "2012-13-45"],
    }
    assert load_yaml("") is None


@pytest.mark.parametrize("text", [MULTIPLYING, "a: &a [*a]", f"a: {'[' * 3000}{']' * 3000}"])
def test_every_way_to_a_config_refuses_it(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    for read in (load, lambda config: load_data([config])):
        with pytest.raises(InputError, match=r"mine\.yaml"):
            read(file)
    with pytest.raises(SystemExit, match=r"mine\.yaml"):
        evaluate.main(["--config", str(file)])


@pytest.mark.parametrize("text", [MULTIPLYING, "{a: &a [*a]}", f"{'[' * 3000}{']' * 3000}"])
@pytest.mark.parametrize("setting", ["--model.early_stop", "--model.guidance", "--data.ind"])
def test_yaml_on_the_command_line_is_refused_in_one_line(setting, text, capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([setting, text, "--print_config"])
    shown = str(ended.value.code) + capsys.readouterr().err
    assert ended.value.code
    assert len(shown.strip().splitlines()) == 1
    assert len(shown) < 1600


def test_text_in_a_config_that_stands_for_yaml_is_checked_too(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"model": {"early_stop": MULTIPLYING}}))
    with pytest.raises(InputError, match=r"mine\.yaml: more than .*shorten"):
        load(file)


def test_yaml_of_jsonargparse_is_otherwise_read_as_before(tmp_path):
    (tmp_path / "mine.yaml").write_text("base: digits_ldm\nmodel: {steps: 5, slots: 1_0}\n")
    assert len(load(tmp_path / "mine.yaml").schedule) == 5
    assert yaml.safe_load(Path(tmp_path / "mine.yaml").read_text())["model"]["slots"] == 10
