"""What the end-to-end tests share: waiting with a deadline, peers' words, errors in trailers."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

import towpath
from tests.support.deadlines import DEADLINE_S
from towpath.v1 import error_pb2

StartPeer = Callable[[str, str, str, int], subprocess.Popen[str]]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until it is so; fail when it is not in time."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a peer says."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str]) -> None:
    """A peer ends well, with ``done`` as its last word."""
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert output.split() == ["done"]
    assert process.returncode == 0


def gateway_of(client: towpath.Client) -> towpath.GatewayInfo:
    """The grpc gateway as the daemon sees it."""
    [gateway] = [each for each in client.status().gateways if each.name == "grpc"]
    return gateway


def error_of(failure: grpc.RpcError) -> error_pb2.Error:
    """The error in the trailer of a failed call."""
    assert isinstance(failure, grpc.Call)
    raw = dict(failure.trailing_metadata() or ())["towpath-error-bin"]
    assert isinstance(raw, bytes)
    return error_pb2.Error.FromString(raw)


def code_of(failure: grpc.RpcError) -> grpc.StatusCode:
    """The status of a failed call."""
    assert isinstance(failure, grpc.Call)
    return failure.code()


def health_of(remote: grpc.Channel) -> Any:
    """The health service; its published type stubs know no methods."""
    return health_pb2_grpc.HealthStub(remote)


def memory_bytes(pid: int) -> int:
    """Memory of a process's own that is in RAM now: not the rings, which are others' and bounded anyway."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("RssAnon:"):
            return int(row.split()[1]) << 10
    raise AssertionError("no RssAnon")
