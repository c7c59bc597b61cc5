"""Patterns against a naive matcher that works level by level."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from towpath.errors import InvalidName
from towpath.names import check_name, check_pattern, is_pattern, matcher, matches

LEVELS = st.sampled_from(["a", "b", "ab", "-", "_", "A1"])
NAMES = st.lists(LEVELS, min_size=1, max_size=5).map(".".join)
PATTERNS = st.tuples(st.lists(LEVELS | st.just("*"), max_size=4), st.sampled_from(["a", "b", "*", ">"])).map(
    lambda parts: ".".join([*parts[0], parts[1]])
)


def naive(pattern: list[str], name: list[str]) -> bool:
    if pattern == [">"]:
        return len(name) >= 1
    if not pattern or not name:
        return pattern == name
    return pattern[0] in ("*", name[0]) and naive(pattern[1:], name[1:])


@given(PATTERNS, NAMES)
def test_matching(pattern: str, name: str) -> None:
    assert check_pattern(pattern) == pattern and check_name(name) == name
    assert matches(pattern, name) is naive(pattern.split("."), name.split("."))
    assert matcher(pattern)(name) is matches(pattern, name)


@given(NAMES, st.data())
def test_a_name_with_levels_replaced_by_wildcards_matches_it(name: str, data: st.DataObject) -> None:
    levels = name.split(".")
    stars = [data.draw(st.sampled_from([level, "*"])) for level in levels]
    assert matches(".".join(stars), name)
    cut = data.draw(st.integers(0, len(levels) - 1))
    assert matches(".".join([*stars[:cut], ">"]), name)
    assert not matches(".".join([*stars, "*"]), name) and not matches(".".join([*stars, ">"]), name)


@given(st.text("a.*>- _", max_size=12))
def test_what_is_let_through_is_a_name_or_a_pattern_of_whole_levels(text: str) -> None:
    levels = text.split(".")
    is_level = [bool(level) and set(level) <= set("a-_") for level in levels]
    well_formed = all(
        fine or level == "*" or (level == ">" and index == len(levels) - 1)
        for index, (level, fine) in enumerate(zip(levels, is_level, strict=True))
    )
    if well_formed:
        assert check_pattern(text) == text
        assert is_pattern(text) is not all(is_level)
    else:
        with pytest.raises(InvalidName):
            check_pattern(text)


def test_dots_are_dots() -> None:
    assert not matches("a.b", "axb") and not matches("a.*", "axb") and not matches("a.*", "a.b.c")
    assert not matches("plant.line1", "plant.line10") and not matches("plant.>", "plant")


def test_lengths() -> None:
    assert check_pattern("a." * 127 + ">") and check_pattern(">")
    with pytest.raises(InvalidName, match="256 characters"):
        check_pattern("a." * 127 + "*>")
