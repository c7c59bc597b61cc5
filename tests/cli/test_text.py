"""Text for people: numbers, ages, tables, and nothing that could drive a terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.cli.text import (
    Cell,
    Style,
    ago,
    byte_size,
    duration,
    one_line,
    ordinal,
    printable,
    table,
)
from towpath.wording import plural

PLAIN = Style(colour=False)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (4 << 20, "4 MiB"),
        ((1 << 20) - 1, "1.0 MiB"),
        (1 << 30, "1 GiB"),
        (5000 << 40, "5000 TiB"),
    ],
)
def test_byte_sizes(number: int, text: str) -> None:
    assert byte_size(number) == text


@pytest.mark.parametrize(
    ("span_s", "text"),
    [
        (-1, "0 s"),
        (0.9, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (192, "3 min 12 s"),
        (7200, "2 h"),
        (190_000, "2 d 4 h"),
    ],
)
def test_durations_have_their_two_largest_units(span_s: float, text: str) -> None:
    assert duration(span_s) == text


def test_a_gap_between_the_units_is_not_bridged() -> None:
    assert duration(86_400 + 5) == "1 d"
    assert ago(5_000_000_000, 65_000_000_000) == "1 min ago"


def test_words_with_numbers() -> None:
    assert [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 111)] == [
        "1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "111th",
    ]  # fmt: skip
    assert [plural(number, "message") for number in (0, 1, 12000)] == [
        "0 messages",
        "1 message",
        "12,000 messages",
    ]


def test_a_table_is_aligned_by_what_is_seen() -> None:
    rows = [("a", "1", "x"), ("日本", "12,000", ""), ("e\u0301", "3", "\x1b[2J")]
    assert table(("NAME", ">COUNT", "DETAIL"), rows, PLAIN, indent="  ") == [
        "  NAME   COUNT  DETAIL",
        "  a          1  x",
        "  日本  12,000",
        "  e\u0301          3  \\x1b[2J",
    ]


def test_colours_do_not_count_as_width() -> None:
    lines = table(("A", "B"), [(Cell("ok", "green"), "x"), ("longer", "y")], Style(colour=True))
    assert lines[1] == "\x1b[32mok\x1b[0m      x"
    assert table(("A", "B"), [(Cell("ok", "green"), "x")], PLAIN)[1] == "ok  x"


@given(st.text())
def test_one_line_is_one_line_that_drives_nothing(text: str) -> None:
    safe = one_line(text)
    assert len(safe.splitlines()) <= 1
    assert not any(unicodedata.category(character) in ("Cc", "Cf") for character in safe)
    if text.isprintable():
        assert safe == text


@given(st.binary())
def test_a_printable_payload_drives_no_terminal(payload: bytes) -> None:
    text = printable(payload).decode("utf-8")
    assert not any(unicodedata.category(character) == "Cc" for character in text if character not in "\t\n")


def test_what_a_terminal_shows_of_a_payload() -> None:
    assert printable("Grüße, 21.5 °C\t日本".encode()) == "Grüße, 21.5 °C\t日本".encode()
    assert printable(b"\x1b]0;owned\x07") == b"\\x1b]0;owned\\x07"
    assert printable(b"\xff\x00ok\r\n") == b"\\xff\\x00ok\\x0d\n"
    assert printable("\u202e\x9b".encode()) == b"\\u202e\\x9b"
