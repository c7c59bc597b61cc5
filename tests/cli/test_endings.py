"""How ``pub`` and ``sub`` end against a real daemon when not all is well: exit codes, signals, words."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import towpath as library
from tests.cli.shell import Start, bash, environment, output, subscribed, towpath, until
from tests.support.daemon import running_daemon
from tests.support.deadlines import DEADLINE_S


def test_a_line_that_is_too_long_is_told_and_the_rest_is_carried(
    client: library.Client, env: dict[str, str], start: Start
) -> None:
    client.declare("t.small", ring_bytes=4096)
    subscriber = start("sub", "t.small", "--count", "2")
    subscribed(client, "t.small")
    published = towpath("pub", "t.small", env=env, stdin=b"before\n" + b"x" * 5000 + b"\nafter\n")
    assert published.returncode == 65
    lines = published.stderr.decode().splitlines()
    assert lines[0].startswith("towpath: not published: a frame has 5000 bytes; ")
    assert lines[1] == "towpath: not published, in all: 1"
    assert output(subscriber) == (0, b"before\nafter\n", b"")
    too_large = towpath("pub", "t.small", "x" * 5000, env=env)
    assert too_large.returncode == 2
    assert b"ring_bytes" in too_large.stderr


def test_a_broken_netstring_ends_the_input_and_is_told(channel: str, env: dict[str, str]) -> None:
    published = towpath("pub", channel, "--frame", "netstring", env=env, stdin=b"1:a,2:bc;3:def,")
    assert published.returncode == 65
    assert published.stderr.startswith(b"towpath: not published: ")


def test_a_payload_that_the_framing_cannot_carry_is_told(
    client: library.Client, channel: str, start: Start
) -> None:
    strict = start("sub", channel, "--count", "2", "--frame", "line")
    plain = start("sub", channel, "--count", "2")
    subscribed(client, channel, 2)
    client.channel(channel).publish_many([b"two\nlines", b"one"])
    code, out, errors = output(strict)
    assert (code, out) == (65, b"one\n")
    assert errors.startswith(b"towpath: not printed: a payload contains the delimiter")
    code, out, errors = output(plain)
    assert (code, out) == (0, b"two\nlines\none\n")
    assert errors == b"note: a message has newlines in it and looks like several; see --frame and --json\n"


def test_time_runs_out_after_what_came_was_printed(
    client: library.Client, channel: str, start: Start
) -> None:
    subscriber = start("sub", channel, "--count", "3", "--timeout", "2")
    subscribed(client, channel)
    client.channel(channel).publish_many([b"a", b"b"])
    assert output(subscriber) == (
        124,
        b"a\nb\n",
        f"towpath: no message on {channel} for 2 s, after 2 messages of 3\n".encode(),
    )


@pytest.mark.parametrize("count", [7, 10], ids=["a client", "a publisher"])
def test_a_limit_of_the_host_is_told_with_its_name(channel: str, env: dict[str, str], count: int) -> None:
    result = bash(f"ulimit -n {count}; towpath pub {channel} --frame raw < /dev/zero", env=env)
    lines = result.stderr.decode().splitlines()
    assert result.returncode == 75, lines
    assert lines[0].endswith("Too many open files")
    assert len(lines) == 2 and lines[1].startswith("hint: this process is at its limit of open files")


def test_names_that_are_not_there_or_not_names(env: dict[str, str]) -> None:
    for verb in (["pub", "t.none", "x"], ["sub", "t.none"], ["undeclare", "t.none"]):
        result = towpath(*verb, env=env)
        assert result.returncode == 66, verb
        assert b"'t.none'" in result.stderr
        assert result.stderr.count(b"\n") == 2
        assert (b"declare it" in result.stderr) == (verb[0] != "undeclare")
    assert towpath("declare", "a..b", env=env).returncode == 2
    assert towpath("unbind", "123456", env=env).returncode == 66


def test_undeclared_while_subscribed(client: library.Client, env: dict[str, str], start: Start) -> None:
    client.declare("t.gone")
    subscriber = start("sub", "t.gone")
    subscribed(client, "t.gone")
    client.channel("t.gone").publish(b"last words")
    assert towpath("undeclare", "t.gone", env=env).returncode == 73
    assert towpath("undeclare", "t.gone", "--force", env=env).returncode == 0
    code, out, errors = output(subscriber)
    assert (code, out) == (66, b"last words\n")
    assert errors.startswith(b"towpath: ")


def test_a_reader_that_leaves_ends_a_subscriber_even_of_a_quiet_channel(
    client: library.Client, channel: str, env: dict[str, str]
) -> None:
    words = ["bash", "-c", f"towpath sub {channel} | head -n 1; echo ${{PIPESTATUS[0]}}"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
        subscribed(client, channel)
        client.channel(channel).publish(b"only")
        assert output(shell) == (0, b"only\n141\n", b"")


def test_a_reader_that_leaves_ends_a_busy_subscriber(
    client: library.Client, channel: str, env: dict[str, str]
) -> None:
    words = ["bash", "-c", f"towpath sub {channel} | head -n 1000 | tail -n 1; echo ${{PIPESTATUS[0]}}"]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
        subscribed(client, channel)
        publisher = client.channel(channel)
        for first in range(0, 100_000, 1000):
            publisher.publish_many([b"%d" % number for number in range(first, first + 1000)])
        assert output(shell) == (0, b"999\n141\n", b"")


@pytest.mark.parametrize("verb", ["sub", "pub"])
def test_ctrl_c_ends_by_the_signal_and_quietly(
    client: library.Client, channel: str, start: Start, verb: str
) -> None:
    process = start(verb, channel, stdin=subprocess.PIPE)
    info = "subscribers" if verb == "sub" else "publishers"
    until(lambda: getattr(client.channel_info(channel), info) == 1, f"{verb} is there")
    if verb == "sub":
        client.channel(channel).publish(b"before")
        assert process.stdout is not None
        assert process.stdout.readline() == b"before\n"
    process.send_signal(signal.SIGINT)
    assert output(process) == (-signal.SIGINT, b"", b"")


INTERRUPTED_ANYWHERE = """
import signal, sys, threading
from towpath.cli import app, streams

def wait(arguments):
    with lock:
        lock.release()
        signal.raise_signal(int(sys.argv[1]))

def asked(number, frame):
    raise streams.Asked(signal.Signals(number))

lock = threading.Lock()
app._run_verb = wait
signal.signal(signal.SIGTERM, asked)  # as ``take`` does
sys.exit(app.run(["status"]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_where_a_wait_has_let_go_of_its_lock_is_no_bug(
    env: dict[str, str], number: signal.Signals
) -> None:
    command = [sys.executable, "-c", INTERRUPTED_ANYWHERE, str(int(number))]
    process = subprocess.run(command, env=env, capture_output=True, timeout=DEADLINE_S, check=False)
    assert (process.returncode, process.stderr) == (-number, b"")


def test_a_stopped_subscriber_makes_publishing_wait_and_only_as_long_as_asked(
    client: library.Client, channel: str, env: dict[str, str], start: Start
) -> None:
    subscriber = start("sub", channel, "--count", "71")
    subscribed(client, channel)
    subscriber.send_signal(signal.SIGSTOP)
    # Little is the core's from now on, and nobody has to wait for it to be read.
    assert towpath("pub", channel, "x", "--timeout", "0.3", env=env).returncode == 0
    much = (b"y" * 999 + b"\n") * 70
    published = towpath("pub", channel, "--timeout", "0.3", env=env, stdin=much)
    assert published.returncode == 124
    assert published.stderr.decode().splitlines() == [
        f"towpath: a subscriber of {channel} has not read everything after 0.3 s",
        "hint: everything was published, and stays in its ring for it",
    ]
    subscriber.send_signal(signal.SIGCONT)
    assert output(subscriber) == (0, b"x\n" + much, b"")


def test_a_full_ring_makes_a_brief_publisher_wait_and_only_as_long_as_asked(
    client: library.Client, env: dict[str, str]
) -> None:
    client.declare("t.tight", ring_bytes=4096)
    with client.subscribe("t.tight") as subscription:
        published = towpath("pub", "t.tight", *["x" * 900] * 9, "--timeout", "0.3", env=env)
        assert published.returncode == 124
        assert b" of 9 were published" in published.stderr
        got = subscription.receive_many(100, timeout=DEADLINE_S)
        assert 0 < len(got) < 9
        assert f"{len(got)} of 9".encode() in published.stderr


PATIENT_FOR_A_MOMENT = """
import sys
from towpath.cli import app, pub

pub.ABSENT_S = 0.2
sys.exit(app.run(["pub", "t.endless", "--frame", "fixed", "--frame-bytes", "4096"]))
"""


def test_who_publishes_for_ever_ends_when_the_daemon_has(tmp_path: Path) -> None:
    with running_daemon(tmp_path, "[zeromq]\n") as service, Path("/dev/zero").open() as endless:
        with library.connect(f"unix:{service.socket}") as client:
            client.declare("t.endless")
            process = subprocess.Popen(
                [sys.executable, "-c", PATIENT_FOR_A_MOMENT],
                env=environment(service.socket),
                stdin=endless,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            until(lambda: client.channel_info("t.endless").publishers == 1, "it publishes")
        assert service.stop() == 0
        code, out, errors = output(process)
    assert (code, out) == (69, b"")
    assert errors.startswith(b"towpath: the connection to the daemon was lost")


def test_without_subscribers_publishing_is_quiet_and_fine(channel: str, env: dict[str, str]) -> None:
    published = towpath("pub", channel, "x", env=env)
    assert (published.returncode, published.stdout, published.stderr) == (0, b"", b"")
