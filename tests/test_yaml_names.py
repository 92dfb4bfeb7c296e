"""Names in YAML are text, whatever YAML reads them as."""

import pytest
import yaml

from diffguard_pl.yaml_names import quote_names


@pytest.mark.parametrize("name", ["2012", "no", "Yes", "2012-01-01", "1e3", "~", "0x10", "1_000"])
def test_a_key_is_the_text_that_was_written(name):
    assert yaml.safe_load(quote_names(f"ä: {{{name}: 1}}\n{name}: 2")) == {
        "ä": {name: 1},
        name: 2,
    }


@pytest.mark.parametrize("before", ["\ufeff", "# 😀 é\n", "a: 1\r\n"])
def test_what_comes_before_a_name_does_not_shift_it(before):
    assert yaml.safe_load(quote_names(f"{before}2012: {{no: 1}}\r\n"))["2012"] == {"no": 1}


def test_settings_of_names_are_text_and_values_are_not():
    text = "only: [2012, no, a]\nlabel: 1.5\nclasses: null\nlimit: 2012\nresize: null\nno: no\n"
    assert yaml.safe_load(quote_names(text)) == {
        "only": ["2012", "no", "a"],
        "label": "1.5",
        "classes": None,
        "limit": 2012,
        "resize": None,
        "no": False,
    }


def test_other_yaml_stays_as_it_is():
    text = "# no: 1\na: &b {x: 1, 'no': 2}\nc: {<<: *b, \"3\": 4}\nd: |\n  2012: no\n"
    assert quote_names(text) == text
    anchored = yaml.safe_load(quote_names("&a 2012: *a\n"))
    assert anchored == {"2012": "2012"}
    assert quote_names("") == ""
