"""What the table ``[zeromq]`` takes and refuses."""

from __future__ import annotations

import pytest

from towpath.errors import InvalidConfiguration
from towpath_broker.gateways._common import parse_table, to_table
from towpath_broker.gateways.zeromq.settings import ZeroMQSettings, check_endpoint


def test_defaults_are_the_documented_ports_and_survive_the_table() -> None:
    settings = ZeroMQSettings()
    assert (settings.sub, settings.push, settings.rpc) == (
        "tcp://127.0.0.1:5556",
        "tcp://127.0.0.1:5557",
        "tcp://127.0.0.1:5558",
    )
    assert parse_table(ZeroMQSettings, to_table(settings), where="[zeromq]") == settings


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:5556", "tcp://127.0.0.1:5556"),
        ("tcp://127.9.9.9:0", "tcp://127.9.9.9:0"),
        ("tcp://127.0.0.1:*", "tcp://127.0.0.1:0"),
        ("tcp://localhost:5556", "tcp://127.0.0.1:5556"),
        ("tcp://[::1]:5556", "tcp://[::1]:5556"),
        ("ipc:///run/towpath/sub", "ipc:///run/towpath/sub"),
    ],
)
def test_what_may_be_bound(text: str, address: str) -> None:
    assert check_endpoint("sub", text) == address


@pytest.mark.parametrize(
    "text",
    [
        "tcp://0.0.0.0:5556",
        "tcp://*:5556",
        "tcp://[::]:5556",
        "tcp://192.0.2.1:5556",
        "tcp://[2001:db8::1]:1",
    ],
)
def test_other_hosts_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match="not authenticated") as caught:
        check_endpoint("sub", text)
    assert "CURVE" in caught.value.hint
    assert caught.value.row.exit_code == 78


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5556",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:-1",
        "tcp://127.0.0.1:1;tcp://0.0.0.0:1",
        "tcp://::1:5556",
        "tcp://[127.0.0.1]:5556",
        "tcp://example.org:5556",
        "tcp://lo:5556",
        "udp://127.0.0.1:5556",
        "inproc://x",
        "ipc://relative",
        "ipc:///ends/in/",
        "ipc:///" + "x" * 120,
    ],
)
def test_malformed_endpoints_are_refused(text: str) -> None:
    with pytest.raises(InvalidConfiguration, match=r"^sub: "):
        check_endpoint("sub", text)


@pytest.mark.parametrize(
    "table",
    [
        {"sup": "tcp://127.0.0.1:1"},
        {"sub": 5556},
        {"sub_hwm": 0},
        {"sub_hwm": True},
        {"push_stall_ms": "1s"},
        {"sub": "tcp://127.0.0.1:7", "rpc": "tcp://127.0.0.1:7"},
    ],
)
def test_unknown_keys_wrong_types_and_shared_endpoints_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(InvalidConfiguration, match=r"\[zeromq\]"):
        parse_table(ZeroMQSettings, table, where="[zeromq]")


def test_free_ports_may_be_asked_for_thrice() -> None:
    free = "tcp://127.0.0.1:0"
    assert ZeroMQSettings(sub=free, push=free, rpc=free).push == free
