"""`towpath pub NAME x` on its short way: the same frames, the same outcomes, and hardly an import."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import towpath as library
from tests.cli.shell import subscribed, towpath
from tests.support.deadlines import DEADLINE_S
from towpath import calls, wire
from towpath._version import __version__
from towpath.cli import quick
from towpath.protocol import ClientProtocol
from towpath.v1 import frame_pb2

NAMES = st.from_regex(r"[A-Za-z0-9-]{1,20}(\.[A-Za-z0-9_-]{1,20}){0,2}", fullmatch=True)


def unframed(data: bytes) -> frame_pb2.Frame:
    assert int.from_bytes(data[:4], "little") == len(data) - 4
    return frame_pb2.Frame.FromString(data[4:])


def test_hello_is_what_every_client_says() -> None:
    protocol = ClientProtocol(name="towpath pub", software=f"towpath-python/{__version__}")
    protocol.connection_made()
    [(frame, _)] = protocol.take_outgoing()
    assert wire.encode(frame) == quick.hello_frame()


@given(NAMES, st.lists(st.binary(max_size=300), min_size=1, max_size=20))
def test_frames_are_those_of_the_contract(channel: str, payloads: list[bytes]) -> None:
    assert quick.publish_frame(channel, payloads) == wire.encode(calls.publish(channel, payloads).frame(3))
    assert quick.channel_frame(channel) == wire.encode(calls.channel_info(channel).frame(2))


@given(st.integers(0, 2**64 - 1))
def test_numbers_are_written_and_read(value: int) -> None:
    frame = frame_pb2.Frame(id=value, principal="p")
    assert dict(quick.fields(frame.SerializeToString())) == ({1: value} if value else {}) | {3: b"p"}


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    assert len(list(quick.fields(data))) <= len(data)


def test_it_imports_next_to_nothing(client: library.Client, channel: str, env: dict[str, str]) -> None:
    """Modules are what time goes into; these few are the interpreter's own but for ours."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from towpath.cli import main\n"
        f"assert main(['pub', {channel!r}, 'x']) == 0\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=DEADLINE_S, check=True
    )
    ours = ["towpath", "towpath._version", "towpath.cli", "towpath.cli.quick"]
    assert sorted({*run.stdout.split()} - {"__future__", "_socket"}) == ours


@pytest.mark.parametrize(
    "arguments",
    [
        ("one",),
        ("one", "two", "drei \xe4", "", "x" * 60_000),
        ("one", "--socket", "SOCKET"),
        ("--socket", "SOCKET", "one"),
        # These take the long way, to the same end.
        ("one", "--quiet"),
        ("--", "-one"),
        ("x" * 70_000,),
        ("one", "--socket=SOCKET"),
    ],
)
def test_what_is_said_arrives(
    client: library.Client, channel: str, daemon: Path, env: dict[str, str], arguments: Sequence[str]
) -> None:
    words = [word.replace("SOCKET", str(daemon)) for word in arguments]
    skipped = ("--", "--quiet", "--socket", f"--socket={daemon}", str(daemon))
    expected = [word.encode() for word in words if word not in skipped]
    with client.subscribe(channel) as subscription, ThreadPoolExecutor(1) as beside:
        subscribed(client, channel)
        # Beside it, as the long way ends only when all is read, or after ten seconds.
        received = beside.submit(lambda: [subscription.receive(DEADLINE_S).payload for _ in expected])
        assert towpath("pub", channel, *words, env=env).returncode == 0
        assert received.result() == expected


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["pub", "nobody.declared.it", "x"], 66, "nobody.declared.it"),
        (["pub", "not..a.name", "x"], None, "not..a.name"),
        (["pub", "a", "x", "--socket", ""], None, "--socket"),
        (["status", "--socket", ""], None, "--socket"),
        (["pub", "a", "x", "--socket"], 2, "--socket"),
    ],
)
def test_refusals_are_told_as_always(
    env: dict[str, str], arguments: list[str], exit_code: int | None, said: str
) -> None:
    result = towpath(*arguments, env=env)
    assert result.returncode == exit_code or (exit_code is None and result.returncode)
    assert said in result.stderr.decode().splitlines()[0]
    assert b"Traceback" not in result.stderr


class Impostor:
    """Listens where a daemon would, and answers as told: whole frames, or what is none."""

    def __init__(self, place: Path, *answers: bytes) -> None:
        self.answers = answers
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(place))
        self.listener.listen()
        self.heard = b""
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        self.listener.close()  # the next one finds nobody
        with connection:
            for answer in self.answers:
                self.heard += connection.recv(65_536)
                connection.sendall(answer)
            self.heard += connection.recv(65_536) if not self.answers else b""

    def end(self) -> None:
        self.thread.join(DEADLINE_S)


WELCOME = wire.encode(frame_pb2.Frame(id=1, welcome=frame_pb2.Welcome(version=1)))


def test_a_connection_that_breaks_after_the_publish_is_not_tried_again(
    tmp_path: Path, env: dict[str, str]
) -> None:
    impostor = Impostor(tmp_path / "s", WELCOME, b"")
    result = towpath("pub", "a", "x", env={**env, "TOWPATH_SOCKET": str(tmp_path / "s")})
    impostor.end()
    assert quick.publish_frame("a", [b"x"]) in impostor.heard
    assert b"the connection broke" in result.stderr
    assert (result.returncode, result.stderr.count(b"\n")) == (
        library.errors.TABLE[library.Code.CONNECTION_LOST].exit_code,
        2,
    )


@pytest.mark.parametrize(
    "answer", [b"", b"\xff\xff\xff\xff", b"\1\0\0\0\x08", wire.encode(frame_pb2.Frame(id=1))]
)
def test_who_does_not_welcome_is_left_to_the_whole_command_line(
    tmp_path: Path, env: dict[str, str], answer: bytes
) -> None:
    """It asks again, and there is nobody any more; nothing was published."""
    impostor = Impostor(tmp_path / "s", answer)
    result = towpath("pub", "a", "x", env={**env, "TOWPATH_SOCKET": str(tmp_path / "s")})
    impostor.end()
    assert result.returncode != 0 and b"Traceback" not in result.stderr
    assert quick.publish_frame("a", [b"x"]) not in impostor.heard
