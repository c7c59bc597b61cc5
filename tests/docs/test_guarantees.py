"""GUARANTEES.md names tests that exist, and bounds with the values that they have."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from typing import Final

import pytest

from tests.docs.markdown import ROOT, code_spans
from tests.docs.test_architecture import resolve
from towpath_broker.core.limits import Limits
from towpath_broker.core.locks.limits import LockLimits

DOCUMENT: Final = (ROOT / "GUARANTEES.md").read_text()
TESTS: Final = sorted({span for span in code_spans("GUARANTEES.md") if "::" in span and span != "file::test"})


@functools.cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / file).read_text())
    return frozenset(
        node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )


def rows(table: str) -> list[list[str]]:
    """The rows of the table below a comment, without its heading."""
    (found,) = re.findall(rf"^<!-- {table} -->\n((?:\|.*\n)+)", DOCUMENT, re.MULTILINE)
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in found.splitlines()[2:]]


@pytest.mark.parametrize("name", TESTS)
def test_the_test_exists(name: str) -> None:
    file, test = name.split("::")
    assert test in names_in(file)


def test_every_row_of_what_fails_names_a_test() -> None:
    part = DOCUMENT[DOCUMENT.index("## When something fails") : DOCUMENT.index("## What is bounded")]
    lines = re.findall(r"^\|(?! what fails| carrier|---).*$", part, re.MULTILINE)
    assert len(lines) > 35
    assert [line for line in lines if "::" not in line.split("|")[-2]] == []


def test_limits_are_all_there_with_their_values() -> None:
    expected = [[bound.name, str(value), str(bound.metadata["maximum"])] for bound, value in Limits().items()]
    assert rows("limits") == expected
    of_locks = [
        [bound.name, str(bound.default), str(bound.metadata["maximum"])]
        for bound in dataclasses.fields(LockLimits)
    ]
    assert rows("lock limits") == of_locks


@pytest.mark.parametrize("name, value", [(row[0], row[1]) for row in rows("constants")])
def test_a_bound_has_the_value_given(name: str, value: str) -> None:
    assert str(resolve(name)) == value
