"""Hosts under which the page may be requested, and pages that may call it."""

import pytest

from diffguard_pl import InputError
from diffguard_pl.web.hosts import AllowedHosts


@pytest.mark.parametrize("header", ["localhost", "LOCALHOST.:99", "127.0.0.1:7860", "[::1]"])
def test_a_loopback_server_is_requested_by_its_names(header):
    assert AllowedHosts("127.0.0.1", "127.0.0.1").allows(header)


@pytest.mark.parametrize(
    "header",
    [
        "rebound.example",
        "rebound.example:7860",
        "192.168.1.7",
        "localhost.rebound.example",
        "user@localhost",
        "localhost:80@rebound.example",
        "localhost/",
        "localhost, rebound.example",
        "",
        ":7860",
        "[::1",
        "localhost:port",
    ],
)
def test_a_loopback_server_refuses_other_hosts(header):
    assert not AllowedHosts("localhost", "127.0.0.1").allows(header)


def test_a_server_on_all_addresses_allows_addresses_and_names_of_the_machine(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Node7")
    hosts = AllowedHosts("0.0.0.0", "0.0.0.0", ["page.example"])
    for header in ("10.0.0.3:7860", "[fe80::1]", "localhost", "node7", "node7.local:80"):
        assert hosts.allows(header), header
    assert hosts.allows("page.example")
    assert not hosts.allows("rebound.example")


def test_a_server_on_one_address_allows_it_and_the_given_name(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "node7")
    hosts = AllowedHosts("page.lan", "10.0.0.3")
    assert all(map(hosts.allows, ("page.lan", "10.0.0.3", "node7")))
    assert not any(map(hosts.allows, ("10.0.0.4", "127.0.0.1", "rebound.example")))
    assert AllowedHosts("::1", "::1").allows("[0:0:0:0:0:0:0:1]:7860")


@pytest.mark.parametrize(
    "name", ["http://a.example", "a.example:80", "*", "a b", "", "x" * 9 + "/"]
)
def test_a_further_host_is_a_name_alone(name):
    with pytest.raises(InputError, match=r"--allow-host .*host name"):
        AllowedHosts("localhost", "127.0.0.1", [name])


def test_only_the_page_itself_and_further_hosts_are_origins():
    hosts = AllowedHosts("localhost", "127.0.0.1", ["page.example"])
    for origin in ("http://localhost:7860", "https://localhost:7860", "https://page.example"):
        assert hosts.allows_origin(origin, "localhost:7860"), origin
    for origin in (
        "null",
        "",
        "http://localhost",
        "http://localhost:8888",
        "http://evil.example",
        "http://page.example.evil.example",
        "file://localhost:7860",
        "http://[",
    ):
        assert not hosts.allows_origin(origin, "localhost:7860"), origin
