"""``call``, ``answer``, ``get`` and ``set`` against a real daemon."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import towpath as library
from tests.cli.shell import Start, bash, output, towpath, until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.cli import running


@pytest.fixture
def svc(client: library.Client, request: pytest.FixtureRequest) -> str:
    name = "s." + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)[:80]
    client.declare(name, kind="service")
    return name


@pytest.fixture
def state(client: library.Client, request: pytest.FixtureRequest) -> str:
    name = "v." + "".join(letter if letter.isalnum() else "_" for letter in request.node.name)[:80]
    client.declare(name, kind="state")
    return name


def served(client: library.Client, svc: str) -> None:
    until(lambda: client.channel_info(svc).subscribers == 1, f"a server of {svc}")


# ---- call and answer ---------------------------------------------------------------------------------------


def test_a_program_answers_and_another_asks(
    client: library.Client, svc: str, env: dict[str, str], start: Start
) -> None:
    answer = start("answer", svc, "--concurrency", "2", "--", "tr", "a-z", "A-Z")
    asked = towpath("call", svc, "hello", "--wait", env=env)
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, b"HELLO", b"")
    piped = bash(f"printf 'a\\nb' | towpath call {svc}; towpath call {svc} '' | wc -c", env=env)
    assert (piped.returncode, piped.stdout.split(), piped.stderr) == (0, [b"A", b"B0"], b"")
    binary = bytes(range(256)) * 300
    assert towpath("call", svc, env=env, stdin=binary).stdout == binary.upper()
    answer.send_signal(signal.SIGTERM)
    assert output(answer)[0] == -signal.SIGTERM
    assert towpath("call", svc, "x", env=env).returncode == 69


def test_who_is_interrupted_answers_what_was_begun_and_ends_of_the_signal(
    client: library.Client, svc: str, start: Start, tmp_path: Path
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go_on"
    os.mkfifo(go_on)
    answer = start("answer", svc, "--", "sh", "-c", f"touch {begun}; cat {go_on}")
    served(client, svc)
    asking = _in_background(lambda: client.call(svc, b"x", timeout=DEADLINE_S).payload)
    until(begun.exists, "the program to begin")
    answer.send_signal(signal.SIGINT)
    go_on.write_bytes(b"done all the same")
    assert asking() == b"done all the same"
    assert output(answer)[0] == -signal.SIGINT


def test_nobody_answers(svc: str, env: dict[str, str], channel: str) -> None:
    asked = towpath("call", svc, "x", env=env)
    assert asked.returncode == 69
    assert b"nobody serves" in asked.stderr and b"towpath answer" in asked.stderr
    assert towpath("call", "s.no.such.service", "x", env=env).returncode == 66
    assert towpath("call", channel, "x", env=env).returncode == 2  # a topic
    waited = towpath("call", svc, "x", "--wait", "--timeout", "0.1", env=env)
    assert waited.returncode == 124


def test_what_the_server_raised_is_the_exit_code(
    client: library.Client, svc: str, env: dict[str, str]
) -> None:
    with client.serve(svc) as server:
        serving = threading.Thread(target=server.run, args=(_fail,))
        serving.start()
        asked = towpath("call", svc, "full", env=env)
        assert (asked.returncode, asked.stdout) == (75, b"")
        assert asked.stderr == b"towpath: it is full\nhint: later\n"
        asked = towpath("call", svc, "bug", env=env)
        assert asked.returncode == 74 and b"ZeroDivisionError" in asked.stderr
        streamed = towpath("call", svc, "stream", "--stream", env=env)
        assert (streamed.returncode, streamed.stdout) == (0, b"one\ntwo\nthree\n")
    serving.join(DEADLINE_S)


def _fail(request: library.Request) -> Any:
    match request.payload:
        case b"full":
            raise errors.QueueFull("it is full", hint="later")
        case b"stream":
            return iter((b"one", b"two\n", b"three"))
    return b"%d" % (1 // 0)


def test_a_reply_as_json(client: library.Client, svc: str, env: dict[str, str]) -> None:
    headers = library.Headers(content_type="text/plain")
    with client.serve(svc) as server:
        asking = _in_background(lambda: towpath("call", svc, "x", "--json", "--header", "a=b", env=env))
        request = server.receive(DEADLINE_S)
        assert dict(request.headers.user) == {"a": "b"}
        request.reply(b"\xff\xfe", headers=headers)
        document = json.loads(asking().stdout)
    assert (document["payload"], document["encoding"]) == ("//4=", "base64")
    assert document["headers"] == {"content_type": "text/plain"}


def test_the_program_is_told_of_the_request(
    client: library.Client, svc: str, env: dict[str, str], start: Start
) -> None:
    start("answer", svc, "--", "env")
    served(client, svc)
    headers = library.Headers(content_type="text/plain", key=b"k1")
    lines = client.call(svc, b"", headers=headers, timeout=DEADLINE_S).payload.decode().splitlines()
    told = dict(line.split("=", 1) for line in lines if line.startswith("TOWPATH_"))
    assert (told["TOWPATH_CHANNEL"], told["TOWPATH_PRINCIPAL"]) == (svc, f"uid:{os.getuid()}")
    assert (told["TOWPATH_CONTENT_TYPE"], told["TOWPATH_KEY"]) == ("text/plain", "k1")
    assert 0 < float(told["TOWPATH_TIMEOUT"]) <= DEADLINE_S
    assert "TOWPATH_SOCKET" in told


def test_a_program_that_fails(client: library.Client, svc: str, env: dict[str, str], start: Start) -> None:
    answer = start("answer", svc, "--", "sh", "-c", "echo half; echo reason >&2; exit 3")
    served(client, svc)
    with pytest.raises(errors.ServiceFailed, match="sh: exit status 3: reason"):
        client.call(svc, b"x", timeout=DEADLINE_S)
    answer.terminate()
    assert b"exit status 3" in output(answer)[2]


def test_a_program_is_ended_when_nobody_waits(
    client: library.Client, svc: str, env: dict[str, str], start: Start, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    start("answer", svc, "--", "sh", "-c", f"sleep 1000 & echo $! > {begun}; wait")
    served(client, svc)
    with pytest.raises(errors.Timeout):
        client.call(svc, b"x", timeout=1.0)
    until(lambda: begun.exists() and begun.read_text() != "", "the program to begin")
    until(lambda: not _is_alive(int(begun.read_text())), "what the program started to end")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_programs_do_not_outlive_the_server(
    client: library.Client, svc: str, start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    """Neither they nor what they have started, not even where SIGTERM does not end them."""
    begun = tmp_path / "begun"
    script = f"trap '' TERM; sleep 1000 & echo $! $$ > {begun}.new; mv {begun}.new {begun}; wait"
    answer = start("answer", svc, "--", "sh", "-c", script)
    served(client, svc)
    asking = _in_background(lambda: _error_of(lambda: client.call(svc, b"x", timeout=DEADLINE_S)))
    until(begun.exists, "the program to begin")
    answer.send_signal(number)
    answer.send_signal(signal.SIGINT)  # to one that is still there: do not wait for programs
    assert isinstance(asking(), errors.ServerLost)
    # Of two signals that are there at once Python hears the one with the lower number first.
    assert answer.wait(DEADLINE_S) in ({-number, -signal.SIGINT} if number == signal.SIGTERM else {-number})
    for pid in map(int, begun.read_text().split()):
        until(lambda pid=pid: not _is_alive(pid), f"{pid} to end")  # type: ignore[misc]


def _error_of(work: Callable[[], Any]) -> errors.TowpathError | None:
    try:
        work()
    except errors.TowpathError as error:
        return error
    return None


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_requests_are_answered_side_by_side(
    client: library.Client, svc: str, env: dict[str, str], start: Start, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "meet")
    # Each of the two waits for the other.
    script = 'if read -r x && [ "$x" = one ]; then echo hi > meet; else cat meet; fi'
    start("answer", svc, "--concurrency", "2", "--", "sh", "-c", f"cd {tmp_path}; {script}")
    served(client, svc)
    calls = [
        _in_background(functools.partial(client.call, svc, x, timeout=DEADLINE_S))
        for x in (b"two\n", b"one\n")
    ]
    assert [each().payload for each in calls] == [b"hi\n", b""]


def test_there_is_no_such_program(svc: str, env: dict[str, str]) -> None:
    answer = towpath("answer", svc, "--", "no-such-program-at-all", env=env)
    assert answer.returncode == 2 and b"no-such-program-at-all" in answer.stderr
    assert towpath("answer", svc, env=env).returncode == 2


@pytest.fixture
def guard() -> Iterator[running.Guard]:
    with running.Guard() as guard:
        yield guard


def test_what_a_program_writes_is_bounded(guard: running.Guard) -> None:
    begun = time.monotonic()
    outcome = running.run(
        ["sh", "-c", "yes; echo not reached"],
        b"",
        guard=guard,
        environment={},
        output_bytes_max=100_000,
        is_cancelled=lambda: False,
    )
    assert outcome.is_cut and "wrote too much" in outcome.failure("sh")
    assert time.monotonic() - begun < DEADLINE_S
    outcome = running.run(
        ["sh", "-c", "yes | head -c 1000000 >&2; echo the end >&2; exit 1"],
        b"x" * 1_000_000,
        guard=guard,
        environment={},
        output_bytes_max=10,
        is_cancelled=lambda: False,
    )
    assert outcome.status == 1 and outcome.error.endswith("the end")
    assert len(outcome.error) <= running.ERROR_BYTES_MAX
    killed = running.run(
        ["sh", "-c", "kill -9 $$"],
        b"",
        guard=guard,
        environment={},
        output_bytes_max=10,
        is_cancelled=lambda: False,
    )
    assert killed.failure("sh") == "sh: ended by signal 9"


# ---- get and set -------------------------------------------------------------------------------------------


def test_get_and_set(state: str, env: dict[str, str]) -> None:
    absent = towpath("get", state, env=env)
    assert (absent.returncode, absent.stdout) == (1, b"")
    assert towpath("get", state, "--version", env=env).stdout == b"0\n"
    assert towpath("set", state, "night", env=env).stdout == b""
    assert towpath("get", state, env=env).stdout == b"night"
    assert towpath("set", state, "--version", env=env, stdin=b"\x00\xff").stdout == b"2\n"
    assert towpath("get", state, env=env).stdout == b"\x00\xff"
    document = json.loads(towpath("get", state, "--json", env=env).stdout)
    assert (document["version"], document["is_set"], document["payload"]) == (2, True, "AP8=")
    assert towpath("set", state, "--delete", env=env).returncode == 0
    assert towpath("get", state, env=env).returncode == 1
    assert json.loads(towpath("get", state, "--json", env=env).stdout)["payload"] is None
    assert towpath("set", state, "x", "--delete", env=env).returncode == 2


def test_set_if_nobody_was_quicker(state: str, env: dict[str, str]) -> None:
    assert towpath("set", state, "a", "--if-version", "0", env=env).returncode == 0
    late = towpath("set", state, "b", "--if-version", "0", env=env)
    assert late.returncode == 75 and b"version 1, not 0" in late.stderr
    script = f"towpath set {state} b --if-version $(towpath get {state} --version) && towpath get {state}"
    assert bash(script, env=env).stdout == b"b"


def test_follow_prints_each_value(
    client: library.Client, state: str, env: dict[str, str], start: Start
) -> None:
    client.state(state).set(b"first")
    follower = start("get", state, "--follow")
    assert follower.stdout is not None and follower.stdout.readline() == b"first\n"
    client.state(state).set(b"second\n")
    assert follower.stdout.readline() == b"second\n"
    client.undeclare(state, force=True)
    assert output(follower)[0] != 0


def test_a_topic_has_no_value(channel: str, env: dict[str, str]) -> None:
    assert towpath("get", channel, env=env).returncode == 2
    assert towpath("set", channel, "x", env=env).returncode == 2


def _in_background(work: Callable[[], Any]) -> Callable[[], Any]:
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda: outcome.append(work()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(DEADLINE_S)
        return outcome[0]

    return result
