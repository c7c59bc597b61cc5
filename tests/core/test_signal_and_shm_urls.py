"""URLs and options of ``signal:`` and ``shm:`` bindings: what is taken, and how the rest is refused."""

from __future__ import annotations

import signal

import pytest

from towpath.bindings import SHM, SIGNAL, check_options, parse_url, place_key
from towpath.bindings.shm import SemaphorePlace, ShmOptions, ShmPlace, parse_shm
from towpath.bindings.signal import SignalFormat, SignalPlace, TargetKind, parse_signal, signal_name
from towpath.errors import InvalidArgument


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("USR1", SignalPlace(signal.SIGUSR1)),
        ("SIGUSR1", SignalPlace(signal.SIGUSR1)),
        ("RTMIN", SignalPlace(signal.SIGRTMIN)),
        ("RTMIN+3", SignalPlace(signal.SIGRTMIN + 3)),
        ("RTMAX-2", SignalPlace(signal.SIGRTMAX - 2)),
        ("TERM@4711", SignalPlace(signal.SIGTERM, TargetKind.PID, "4711")),
        ("HUP@/run/x.pid", SignalPlace(signal.SIGHUP, TargetKind.PID_FILE, "/run/x.pid")),
        ("HUP@/run/x/", SignalPlace(signal.SIGHUP, TargetKind.DIRECTORY, "/run/x/")),
        ("HUP@unit:a@b.service", SignalPlace(signal.SIGHUP, TargetKind.UNIT, "a@b.service")),
        ("HUP@user-unit:a", SignalPlace(signal.SIGHUP, TargetKind.USER_UNIT, "a")),
    ],
)
def test_a_signal_and_whom_it_goes_to(place: str, expected: SignalPlace) -> None:
    assert parse_signal("", place) == expected
    assert parse_url(f"signal:{place}") == ("signal", place)


def test_every_signal_has_a_name_that_is_read_back() -> None:
    for number in signal.valid_signals():
        assert parse_signal("", signal_name(number)).number == number


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("signal:", "names no signal"),
        ("signal:usr1", "names no signal"),
        ("signal:10", "names no signal"),
        ("signal:RTMIN+31", "no such realtime signal"),
        ("signal:RTMIN-1", "no such realtime signal"),
        ("signal:USR1@", "nobody who could be signalled"),
        ("signal:USR1@0", "nobody who could be signalled"),
        ("signal:USR1@-1", "nobody who could be signalled"),
        ("signal:USR1@4194305", "nobody who could be signalled"),
        ("signal:USR1@app.pid", "nobody who could be signalled"),
        ("signal:USR1@unit:", "nobody who could be signalled"),
        ("signal:USR1@unit:--now", "nobody who could be signalled"),
        ("signal:USR1@/run/../x", "'..' is not allowed"),
        ("signal:USR1@/", "names a directory"),
        ("shm:", "names no segment"),
        ("shm:frame", "names no segment"),
        ("shm:0", "names no segment"),
        ("shm:0x100000000", "names no segment"),
        ("shm:/", "a slash and no other"),
        ("shm:/a/b", "a slash and no other"),
        ("shm:/..", "a slash and no other"),
        ("shm:/" + "a" * 252, "more than 251 bytes"),
        ("shm:/a@1099511627776", "the offset is more than"),
    ],
)
def test_a_bad_url_is_refused(url: str, text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_url(url)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("/frame", ShmPlace("/frame")),
        ("/frame@64", ShmPlace("/frame", offset=64)),
        ("/a@b", ShmPlace("/a@b")),
        ("0x10", ShmPlace(key=16)),
        ("16@8", ShmPlace(key=16, offset=8)),
    ],
)
def test_a_segment_and_where_in_it(place: str, expected: ShmPlace) -> None:
    assert parse_shm("", place) == expected


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("signal:USR1", "signal:SIGUSR1", True),
        ("signal:RTMIN+30", "signal:RTMAX", True),
        ("signal:USR1", "signal:USR1@/run/x", False),
        ("signal:USR1@/run//x", "signal:USR1@/run/x", True),
        ("signal:USR1@/run/x/", "signal:USR1@/run/x", False),
        ("shm:0x10", "shm:16@0", True),
        ("shm:/a", "shm:/a@0", True),
        ("shm:/a", "shm:/a@4", False),
    ],
)
def test_place(one: str, other: str, is_same: bool) -> None:
    assert (place_key(one) == place_key(other)) is is_same


def test_options_reach_their_adapters() -> None:
    assert SIGNAL.parse_options({"format": "text"}).format is SignalFormat.TEXT
    assert SHM.parse_options({}) == ShmOptions()
    options = {
        "length": "4096",
        "length_offset": "8",
        "generation_offset": "0",
        "semaphore": "/ready",
        "free": "0x20:3",
    }
    assert SHM.parse_options(options) == ShmOptions(
        4096, 8, 0, None, SemaphorePlace("/ready"), SemaphorePlace(key=32, index=3)
    )


@pytest.mark.parametrize(
    ("scheme", "direction", "options", "text"),
    [
        ("signal", "both", {}, "carries one way"),
        ("signal", "in", {"when_absent": "block"}, "for direction out"),
        ("signal", "out", {"pid_file": "/run/x"}, "for direction in"),
        ("signal", "in", {"pid_file": "x"}, "not absolute"),
        ("signal", "in", {"format": "xml"}, "json, text, binary"),
        ("shm", "both", {}, "carries one way"),
        ("shm", "in", {"generation_offset": "2"}, "a multiple of 4"),
        ("shm", "in", {"semaphore": "/s", "futex_offset": "0"}, "not both"),
        ("shm", "in", {"semaphore": "/s", "poll_ms": "5"}, "poll_ms is for"),
        ("shm", "out", {"poll_ms": "5"}, "poll_ms is for"),
        ("shm", "in", {"free": "/s"}, "needs option semaphore"),
        ("shm", "in", {"semaphore": "s"}, "option semaphore cannot be"),
        ("shm", "in", {"semaphore": "0x10:65536"}, "option semaphore cannot be"),
        ("shm", "in", {"length": "0"}, "a whole number, 1 to"),
    ],
)
def test_bad_options_are_refused(scheme: str, direction: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_options(scheme, direction, options)
    assert text in str(caught.value)
