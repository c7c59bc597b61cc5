"""The table [grpc]: what is accepted, and what is refused with which words."""

from __future__ import annotations

import pytest

from towpath.errors import InvalidConfiguration
from towpath_broker.gateways._common import parse_table
from towpath_broker.gateways.grpc.settings import UNIX_PATH_BYTES_MAX, GrpcSettings, listen_target


@pytest.mark.parametrize(
    ("listen", "target"),
    [
        ("127.0.0.1:50551", "127.0.0.1:50551"),
        ("127.9.9.9:0", "127.9.9.9:0"),
        ("localhost:1", "127.0.0.1:1"),
        ("[::1]:65535", "[::1]:65535"),
        ("unix:/run/towpath/grpc.sock", "unix:/run/towpath/grpc.sock"),
        ("unix:///run/towpath/grpc.sock", "unix:/run/towpath/grpc.sock"),
        ("unix:/" + "x" * (UNIX_PATH_BYTES_MAX - 1), "unix:/" + "x" * (UNIX_PATH_BYTES_MAX - 1)),
    ],
)
def test_addresses_of_this_host_are_accepted(listen: str, target: str) -> None:
    assert listen_target(listen) == target


@pytest.mark.parametrize(
    "listen",
    [
        "0.0.0.0:50551",
        "[::]:50551",
        "192.168.1.5:1",
        "[fe80::1]:1",
        "10.0.0.1:0",
        "[::ffff:8.8.8.8]:1",
    ],
)
def test_an_address_that_other_hosts_reach_is_refused_with_what_to_do(listen: str) -> None:
    with pytest.raises(InvalidConfiguration, match="other hosts") as caught:
        listen_target(listen)
    assert "127.0.0.1" in caught.value.hint
    assert caught.value.row.exit_code == 78


@pytest.mark.parametrize(
    "listen",
    [
        "",
        ":50551",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:-1",
        "127.0.0.1:65536",
        "127.0.0.1:http",
        "127.0.0.1:٣",
        "example.org:50551",
        "::1:50551",
        "[127.0.0.1]:50551",
        "unix:",
        "unix:relative",
        "unix:/",
        "unix://host/path",
        "unix:/" + "x" * UNIX_PATH_BYTES_MAX,
        "unix-abstract:towpath",
    ],
)
def test_a_malformed_address_is_refused(listen: str) -> None:
    with pytest.raises(InvalidConfiguration, match="listen"):
        listen_target(listen)


def test_a_table_is_parsed_and_its_address_checked() -> None:
    assert parse_table(GrpcSettings, {}, where="[grpc]") == GrpcSettings()
    assert parse_table(GrpcSettings, {"listen": "[::1]:0", "calls_max": 7}, where="[grpc]").calls_max == 7
    with pytest.raises(InvalidConfiguration, match=r"\[grpc\] listen"):
        parse_table(GrpcSettings, {"listen": "0.0.0.0:1"}, where="[grpc]")


@pytest.mark.parametrize(
    "table", [{"calls_max": 0}, {"message_bytes_max": 1 << 31}, {"keepalive_ms": "soon"}, {"lissten": "x"}]
)
def test_values_out_of_range_and_unknown_keys_are_refused(table: dict[str, object]) -> None:
    with pytest.raises(InvalidConfiguration, match=next(iter(table))):
        parse_table(GrpcSettings, table, where="[grpc]")
