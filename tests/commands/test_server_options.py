"""Sockets of the commands that serve."""

import pytest

from diffguard_pl.commands.server_options import listen, url
from diffguard_pl.errors import InputError

PORTS = range(17860, 17960)


def test_a_port_that_is_taken_is_named_and_the_next_free_one_is_found():
    with listen("127.0.0.1", None, PORTS) as first, listen("127.0.0.1", None, PORTS) as second:
        assert first.getsockname()[1] < second.getsockname()[1] <= PORTS[-1]
        assert url(first) == f"http://127.0.0.1:{first.getsockname()[1]}"
        taken = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"--port {taken}: .*in use; choose another"):
            listen("127.0.0.1", taken)
