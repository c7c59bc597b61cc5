"""The reading itself: were it to find everything alike, the README's tests would be worthless."""

from __future__ import annotations

import pytest

from tests.docs.markdown import matches


@pytest.mark.parametrize(
    "pattern, text",
    [
        ("21.5\n21.7\n", "21.5\n21.7\n"),
        ("a ... c", "a  b\n b c\n"),
        ("...\nend\n...", "begin\nend\n"),
        ("pid ..., up ...", "pid 17, up 3 s"),
        ("...", ""),
    ],
)
def test_what_is_as_written(pattern: str, text: str) -> None:
    assert matches(pattern, text)


@pytest.mark.parametrize(
    "pattern, text",
    [
        ("21.5\n", "21.5\n21.7\n"),
        ("21.5", "21x5"),
        ("a ... c", "a b"),
        ("ab ... bc", "abc"),
        ("a ... x ... c", "a b c"),
        ("...\nb\na\n...", "a\nb\n"),
    ],
)
def test_what_is_not(pattern: str, text: str) -> None:
    assert not matches(pattern, text)
