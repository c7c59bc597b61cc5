"""What tests read in the documents: fenced blocks with the comment in front, and code in backticks.

A comment directly above a fenced block says what a test does with it::

    <!-- run -->                                   run it to its end; it must exit with 0
    <!-- run beside: subscribes to CHANNEL -->     start it, go on when the daemon has it as a subscriber
    <!-- run beside: reads fifo:PATH -->           start it, go on when that binding has a reader
    <!-- prints -->                                what the last `run` wrote to its standard output
    <!-- beside prints -->                         what the last `run beside` wrote; it is ended then
    <!-- write FILE -->                            put it into a file
    <!-- serve -->                                 start the daemon

In what is printed, ``...`` stands for anything, also for any number of lines. Not here: carrying it out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

_BLOCK: Final = re.compile(
    r"^(?:<!-- (?P<task>[^\n]*) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        task: what the comment above it says; empty for none.
        section: the heading that it is under.
        line: where it begins, from 1.
    """

    task: str
    language: str
    text: str
    section: str
    line: int


def blocks(name: str) -> Iterator[Block]:
    """Yield the fenced blocks of a document, in order."""
    document = (ROOT / name).read_text()
    for found in _BLOCK.finditer(document):
        before = document[: found.start()]
        headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", before), re.MULTILINE)
        yield Block(
            found["task"] or "",
            found["language"],
            found["text"],
            headings[-1] if headings else "",
            before.count("\n") + 1,
        )


def code_spans(name: str) -> Iterator[str]:
    """Yield what stands in backticks in a document's running text and tables."""
    document = re.sub(r"```.*?^```$", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`]+)`", document)


def links(name: str) -> Iterator[str]:
    """Yield the targets of a document's links."""
    yield from re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text())


def matches(pattern: str, text: str) -> bool:
    """Whether a text is as a block says: ``...`` stands for anything, and how many spaces does not count."""
    first, *others = [_squeezed(part) for part in pattern.split("...")]
    text = _squeezed(text)
    if not others:
        return text == first
    *middle, last = others
    if not text.startswith(first) or not text.endswith(last):
        return False
    at = len(first)
    for part in middle:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return at <= len(text) - len(last)


def _squeezed(text: str) -> str:
    return re.sub(r" +", " ", text).strip()
