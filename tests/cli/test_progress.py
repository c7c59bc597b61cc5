"""The progress line: when it is drawn, what it says, what it leaves behind. Time is a list of numbers."""

from __future__ import annotations

from towpath.cli.progress import Progress, progress_line


class Screen:
    """Keeps what was drawn, and a clock that is set by hand."""

    def __init__(self) -> None:
        self.drawn: list[str] = []
        self.now_s = 100.0

    def progress(self, total_bytes: int | None = None, columns: int = 80) -> Progress:
        return Progress(total_bytes, show=self.drawn.append, clock=lambda: self.now_s, columns=columns)


def test_a_short_input_shows_nothing() -> None:
    screen = Screen()
    progress = screen.progress()
    for _ in range(9):
        screen.now_s += 0.1
        progress.advance(1000, 1 << 20)
    progress.finish()
    assert screen.drawn == []


def test_at_most_five_lines_a_second() -> None:
    screen = Screen()
    progress = screen.progress()
    for _ in range(3000):
        screen.now_s += 0.001
        progress.advance(1, 100)
    assert 9 <= len(screen.drawn) <= 11


def test_what_it_says_and_leaves() -> None:
    screen = Screen()
    progress = screen.progress(total_bytes=4 << 20)
    screen.now_s += 2
    progress.advance(12_000, 1 << 20)
    assert screen.drawn == ["\r\x1b[K12,000 messages, 1 MiB, 512 KiB/s, 25 %, 6 s left"]
    progress.erase()
    assert screen.drawn[1:] == ["\r\x1b[K"]
    screen.now_s += 2
    progress.finish()
    assert screen.drawn[2:] == ["\r\x1b[K12,000 messages, 1 MiB, 256 KiB/s in 4 s\n"]


def test_it_never_reaches_the_last_column() -> None:
    screen = Screen()
    progress = screen.progress(total_bytes=4 << 20, columns=20)
    screen.now_s += 2
    progress.advance(12_000, 1 << 20)
    assert screen.drawn == ["\r\x1b[K12,000 messages, 1 "]


def test_an_input_that_grew_or_has_no_size_has_no_share() -> None:
    assert progress_line(1, 100, 1.0, None) == "1 message, 100 B, 100 B/s"
    assert progress_line(1, 100, 1.0, 99) == "1 message, 100 B, 100 B/s"
    assert progress_line(0, 0, 0.0, 0) == "0 messages, 0 B"
    assert progress_line(0, 0, 1.0, 100) == "0 messages, 0 B, 0 B/s, 0 %"
