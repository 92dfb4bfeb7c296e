"""Messages of errors that a user can correct."""

import pickle

import pytest

from diffguard_pl import InputError


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\x85b", "a\u2028b", "a\x1b[31mb", "a\0b"])
def test_a_message_is_one_line_whatever_it_names(name):
    message = str(InputError(f"folder {name}: not found; check the path"))
    assert message.isprintable()
    assert message.startswith("folder a\\")
    assert message.endswith("b: not found; check the path")


def test_a_message_does_not_repeat_a_file():
    message = str(InputError(f"config: unknown {'x' * 100_000}; choose from: a, b"))
    assert len(message) == 1500
    assert message.startswith("config: unknown xxx")
    assert message.endswith("xxx; choose from: a, b")
    assert str(InputError("x" * 1500)) == "x" * 1500


def test_an_error_of_a_worker_process_keeps_its_message():
    error = InputError("a\nb: invalid; fix it")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
