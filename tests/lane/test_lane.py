"""The lock lane by itself: its handshakes in every order, the C code killed at every step, sanitizers, and
what no client writes."""

from __future__ import annotations

import mmap
import os
import re
import struct
import subprocess
import threading
from pathlib import Path

import pytest

from tests.lane import protocol
from tests.ring.model.machine import Model, Wrong, compile_program
from towpath import _ring

HERE = Path(__file__).parent
HEADER = HERE.parents[1] / "clients" / "c" / "towpath_lane.h"
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
LIMIT_S = 600
ROUNDS = 3
TAIL, AWAKE, CELLS, CELL_BYTES, PAGE_BYTES = 64, 136, 1216, 256, 8192


# ---- the handshakes ----------------------------------------------------------------------------------------


def explored(*, without: str = "", is_pso: bool = True) -> Wrong | None:
    programs = []
    for name, text in (("client", protocol.CLIENT), ("core", protocol.CORE)):
        has_it = any(line.partition("#")[2].strip() == without for line in text.splitlines())
        text = text.replace("ROUNDS", str(ROUNDS))
        programs.append(compile_program(name, text, without=without if without and has_it else ""))
    return Model(programs, protocol.MEMORY, is_pso=is_pso).explore()[1]


@pytest.mark.parametrize("is_pso", [False, True], ids=["tso", "pso"])
def test_nothing_is_missed_in_any_order(is_pso: bool) -> None:
    wrong = explored(is_pso=is_pso)
    assert wrong is None, "\n".join([wrong.what, *wrong.trace])


@pytest.mark.parametrize(
    "without", ["SAID", "RING", "SLEEPS", "REST", "RESTING", "LOOK AGAIN", "ANSWERING", "WAKE"]
)
def test_what_is_left_out_is_missed(without: str) -> None:
    wrong = explored(without=without)
    assert wrong is not None and wrong.trace


# ---- the C code --------------------------------------------------------------------------------------------


def run(folder: Path, *flags: str) -> list[str]:
    """Compile the program with flags and run it; a warning, or a word on stderr, is a failure."""
    program = folder / "lane_test"
    source = HERE / "c" / "lane_test.c"
    command = ["gcc", *FLAGS, *flags, f"-I{HEADER.parent}", str(source), "-o", str(program)]
    compiled = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert compiled.returncode == 0, compiled.stderr
    ran = subprocess.run([str(program)], capture_output=True, text=True, check=False, timeout=LIMIT_S)
    assert (ran.returncode, ran.stderr) == (0, ""), f"{ran.stdout}\n{ran.stderr}"
    return ran.stdout.splitlines()


def steps_listed() -> list[str]:
    text = HEADER.read_text()
    listing = text[text.index("#define TOWPATH_LANE_STEPS(X)") :].split("\n\n", 1)[0]
    return re.findall(r"^\s+X\((\w+)\)", listing, re.MULTILINE)


def test_kill_at_every_step(tmp_path: Path) -> None:
    """SIGKILL of either side before changes of each kind; the program fails when one is never reached."""
    assert run(tmp_path) == [*(step for step in steps_listed() if step != "HEADER"), "ok"]


@pytest.mark.parametrize(
    "flags",
    [("-fsanitize=thread",), ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ("-O2",)],
    ids=["thread", "address", "optimized"],
)
def test_threads(tmp_path: Path, flags: tuple[str, ...]) -> None:
    assert run(tmp_path, "-DWITH_THREADS", *flags) == ["ok"]


def test_every_change_has_a_step() -> None:
    """No atomic store or read-modify-write but through the macros."""
    text = HEADER.read_text()
    body = text[text.index("struct tpn_cell {") :]
    assert not re.search(r"__atomic_(store|exchange|fetch|add|sub|and|or|compare|clear|test)", body)
    assert set(re.findall(r"TPN_(?:STORE|NOTE)\((\w+),", body)) == set(steps_listed())


# ---- the two ends ------------------------------------------------------------------------------------------


class Both:
    """A lane with both its ends, and the page as a client could write it."""

    def __init__(self) -> None:
        self.core = _ring.LaneCore()
        fd = self.core.share()
        self.client = _ring.LaneClient(fd)
        self.page = mmap.mmap(fd, PAGE_BYTES)
        os.close(fd)
        self.core.attend()

    def say(self, at: int, *, kind: int = 1, size: int = 0, frames: int = 0, number: int = 1) -> None:
        cell = struct.pack("<QQII", number, frames, kind, size)
        begin = CELLS + at % _ring.LANE_CELLS * CELL_BYTES
        self.page[begin : begin + len(cell)] = cell
        self.page[TAIL : TAIL + 8] = struct.pack("<Q", at + 1)


@pytest.fixture
def lane() -> Both:
    return Both()


def asked_in_a_thread(lane: Both, *args: int | bytes) -> tuple[threading.Thread, list[object]]:
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(lane.client.ask(*args)))  # type: ignore[arg-type]
    thread.start()
    return thread, got


def taken(lane: Both, frames: int = 0) -> tuple[int, int, bytes | None]:
    while (said := lane.core.take(frames)) is None:
        os.sched_yield()
    return said


def answered(lane: Both, number: int, *, is_granted: bool) -> object:
    """What a client hears of what it asks."""
    thread, got = asked_in_a_thread(lane, number, 0, b"asked")
    position, of, asked = taken(lane)
    assert (of, asked) == (number, b"asked")
    if is_granted:
        lane.core.granted(position, 7, 8)
    else:
        lane.core.elsewhere(position)
    with pytest.raises(ValueError, match="answered"):
        lane.core.granted(position, 7, 8)
    thread.join()
    return got[0]


def test_what_is_said_is_taken_and_answered(lane: Both) -> None:
    for number in range(1, 50):
        assert answered(lane, number, is_granted=False) is True
        heard = answered(lane, number, is_granted=True)
        while heard is True:  # this machine has let nobody run for longer than a client waits
            heard = answered(lane, number, is_granted=True)
        assert heard == (7, 8)
        assert lane.client.give_back(number, 0)
        assert taken(lane)[1:] == (number, None)


def test_it_is_shared_once(lane: Both) -> None:
    with pytest.raises(ValueError, match="shared"):
        lane.core.share()


def test_nothing_is_said_to_a_core_that_sleeps(lane: Both) -> None:
    assert not lane.core.rest()
    assert lane.client.ask(1, 0, b"") is False
    assert not lane.client.give_back(1, 0)
    assert lane.core.take(0) is None


def test_a_core_does_not_rest_while_something_is_said(lane: Both) -> None:
    assert lane.client.give_back(1, 0)
    assert lane.core.rest()
    assert taken(lane)[1] == 1
    assert not lane.core.rest()


def test_what_was_said_after_a_frame_waits_for_it(lane: Both) -> None:
    assert lane.client.give_back(1, 5)
    assert lane.core.take(4) is None
    assert not lane.core.has_news
    assert taken(lane, 5)[1] == 1


def test_a_full_lane_takes_nothing(lane: Both) -> None:
    for number in range(_ring.LANE_CELLS):
        assert lane.client.give_back(number, 0)
    assert not lane.client.give_back(99, 0)
    taken(lane)
    assert lane.client.give_back(99, 0)


def test_a_long_request_is_not_for_a_lane(lane: Both) -> None:
    assert lane.client.ask(1, 0, bytes(_ring.LANE_ASKED_MAX + 1)) is False
    assert not lane.core.has_news


def test_who_waits_hears_of_the_end(lane: Both) -> None:
    thread, got = asked_in_a_thread(lane, 1, 0, b"")
    taken(lane)
    lane.client.close()
    thread.join()
    assert got == [True]
    assert lane.client.ask(2, 0, b"") is False


def test_an_answer_that_came_too_late_is_nobodys(lane: Both) -> None:
    """Its place is not used before it has come."""
    thread, got = asked_in_a_thread(lane, 1, 0, b"")
    position = taken(lane)[0]
    thread.join()  # it has no patience for more than a second
    assert got == [True]
    for number in range(2, _ring.LANE_CELLS + 1):
        assert lane.client.give_back(number, 0)
        taken(lane)
    assert not lane.client.give_back(99, 0)
    lane.core.granted(position, 1, 1)
    assert lane.client.give_back(99, 0)


@pytest.mark.parametrize(
    ("kind", "size"), [(0, 0), (3, 0), (1 << 31, 0), (1, _ring.LANE_ASKED_MAX + 1), (1, 0xFFFFFFFF)]
)
def test_what_no_client_says_is_refused(lane: Both, kind: int, size: int) -> None:
    lane.say(0, kind=kind, size=size)
    with pytest.raises(_ring.RingError, match="no client"):
        lane.core.take(0)


@pytest.mark.parametrize("tail", [_ring.LANE_CELLS + 1, 1 << 63, (1 << 64) - 1])
def test_a_tail_that_cannot_be_is_refused(lane: Both, tail: int) -> None:
    lane.page[TAIL : TAIL + 8] = struct.pack("<Q", tail)
    with pytest.raises(_ring.RingError, match="no client"):
        lane.core.take(0)


def test_more_than_the_lane_holds_is_refused(lane: Both) -> None:
    for at in range(_ring.LANE_CELLS):
        lane.say(at)
        assert lane.core.take(0) is not None
    lane.say(_ring.LANE_CELLS)
    with pytest.raises(_ring.RingError, match="no client"):
        lane.core.take(0)


def test_any_bytes_are_taken_or_refused() -> None:
    """Whatever is in the page: the core reads nothing but its own copy, and ends in one of the two ways."""
    for seed in range(200):
        lane = Both()
        noise = bytes((seed * 167 + i * i * 31 + i // 7) & 0xFF for i in range(PAGE_BYTES))
        lane.page[:] = noise
        lane.page[TAIL : TAIL + 8] = struct.pack("<Q", seed % (_ring.LANE_CELLS + 2))
        try:
            while (said := lane.core.take((1 << 64) - 1)) is not None:
                assert said[2] is None or len(said[2]) <= _ring.LANE_ASKED_MAX
        except _ring.RingError:
            pass


def test_memory_that_is_no_lane_is_refused(tmp_path: Path) -> None:
    page = _ring.LockPage()
    fd = page.share()
    try:
        with pytest.raises(_ring.RingError):
            _ring.LaneClient(fd)
    finally:
        os.close(fd)
    with (tmp_path / "file").open("w+b") as file:
        file.write(bytes(PAGE_BYTES))
        file.flush()
        with pytest.raises(_ring.RingError):
            _ring.LaneClient(file.fileno())


def test_a_forked_child_says_nothing(lane: Both) -> None:
    child = os.fork()
    if not child:
        is_silent = not lane.client.give_back(1, 0) and lane.client.ask(1, 0, b"") is False
        os._exit(0 if is_silent else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert not lane.core.has_news


def test_a_look_ends_with_news_an_event_or_the_time(lane: Both) -> None:
    import select

    told, tells = os.pipe()
    with select.epoll() as poll:
        poll.register(told, select.EPOLLIN)
        assert _ring.lanes_look((lane.core,), poll.fileno(), 1_000) == 0
        os.write(tells, b".")
        assert _ring.lanes_look((lane.core,), poll.fileno(), 60_000_000_000) == -1
        assert lane.client.give_back(1, 0)
        assert _ring.lanes_look((lane.core,), poll.fileno(), 60_000_000_000) == 1
        with pytest.raises(TypeError):
            _ring.lanes_look((lane.client,), poll.fileno(), 0)  # type: ignore[arg-type]
    os.close(told)
    os.close(tells)
