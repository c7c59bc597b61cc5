"""`towpath advise`: what it prints, draws and refuses. What it measures is tested in tests/advise."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from tests.cli.shell import command, environment, towpath
from tests.support.deadlines import PROGRAM_S
from towpath.advise.model import MECHANISMS, Measurement
from towpath.cli import advise_plot as plot
from towpath.errors import NotSupported

NOWHERE = environment(None)


def test_an_advice_has_figures_a_reason_and_commands() -> None:
    run = towpath("advise", "--quick", "--rate", "5", "--size", "64", env=NOWHERE, timeout=PROGRAM_S)
    assert (run.returncode, run.stderr) == (0, b"")
    text = run.stdout.decode()
    assert text.startswith("Messages of 64 B, 5 a second, 1 receiver.\n")
    for mechanism in MECHANISMS.values():
        assert mechanism.title in text
    assert "\nAdvice: pipe.\n  It is the simplest that is fast enough: it carries " in text
    assert "\n  # each receiver\n  towpath run --in orders -- cat\n" in text


def test_a_document_and_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "advice.png"
    arguments = ("advise", "--quick", "--json", "--reach", "network", "--sync", "--plot", str(file))
    run = towpath(*arguments, env=NOWHERE, timeout=PROGRAM_S)
    assert (run.returncode, run.stderr) == (0, b"")
    document = json.loads(run.stdout)
    assert document["requirements"]["is_sync"] is True
    assert document["advice"]["mechanism"] == "grpc"
    assert {"role": "once", "command": "towpath declare orders --kind service"} in document["advice"][
        "commands"
    ]
    assert {each["mechanism"] for each in document["candidates"]} == set(MECHANISMS)
    assert all(bool(each["refusals"]) or each["rate"] > 0 for each in document["candidates"])
    assert file.read_bytes().startswith(b"\x89PNG")


def test_where_nothing_will_do_it_says_why_and_a_terminal_sees_what_is_measured() -> None:
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            command("advise", "--quick", "--rate", "1e11"), env=NOWHERE, stdout=subprocess.PIPE, stderr=theirs
        ) as process:
            os.close(theirs)
            seen = b""
            while b"measuring 9 of 9: gRPC, 1 KiB" not in seen:
                seen += os.read(ours, 4096)
            text = process.communicate(timeout=PROGRAM_S)[0].decode()
    finally:
        os.close(ours)
    assert b"measuring 1 of 9: pipe, 1 KiB" in seen
    assert process.returncode == 1
    assert "None of these will do." in text
    # Others may have all the message queues that this user may have.
    assert text.count("100,000,000,000 are needed") >= len(MECHANISMS) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "17M"], "--size is at most 16 MiB"),
        (["--fan-out", "33"], "--fan-out is at most 32: each receiver is a process"),
        (["--fan-out", "0"], "argument --fan-out: '0' is not a number from 1 up"),
        (["--rate", "0"], "argument --rate: '0' is not a rate: write a number per second, as in 0.5"),
        (["--rate", "nan"], "argument --rate: 'nan' is not a rate: write a number per second, as in 0.5"),
        (["--reach", "moon"], "argument --reach: invalid choice: 'moon' (choose from "),
        (["--plot", "/nonexistent/x.png"], "/nonexistent is not a directory"),
        (["--plot", "x.gif"], "x.gif: a picture's name ends with .png, .svg, .pdf"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(arguments: list[str], message: str) -> None:
    run = towpath("advise", *arguments, env=NOWHERE)
    assert (run.returncode, run.stdout) == (2, b"")
    first, hint = run.stderr.decode().splitlines()
    assert first.startswith(f"towpath: {message}")
    assert hint.startswith("hint: ")


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    with pytest.raises(NotSupported) as caught:
        plot.check_file(tmp_path / "x.png")
    assert caught.value.hint == "pip install 'towpath[plot]'"


@pytest.mark.parametrize("suffix", plot.FORMATS)
def test_a_picture_of_what_could_be_measured(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"x{suffix}"
    curves = {
        "pipe": [Measurement("pipe", 64, 1e6, 5, 9), Measurement("pipe", 4096, 1e5, 7, 12)],
        "mq": [Measurement("mq", 64, 1e5, 6, 9), Measurement("mq", 4096, obstacle="none here")],
        "grpc": [
            Measurement("grpc", 64, obstacle="not installed"),
            Measurement("grpc", 4096, obstacle="neither"),
        ],
    }
    plot.draw(curves, "pipe", "a title", file)
    assert file.stat().st_size > 1000


@pytest.mark.parametrize(("value", "text"), [(10, "10 µs"), (1000, "1 ms"), (1e6, "1 s"), (0.1, "0.1 µs")])
def test_times_in_the_picture(value: float, text: str) -> None:
    assert plot.span_text(value) == text
