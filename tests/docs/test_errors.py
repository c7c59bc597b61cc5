"""docs/errors.md has every error as the library has it, and a test that brings each about."""

from __future__ import annotations

import ast
import errno
import functools
import re
from typing import Final

import pytest

from tests.docs.markdown import ROOT
from towpath.errors import CLASSES, TABLE, Code

(_TABLE,) = re.findall(
    r"^<!-- errors -->\n((?:\|.*\n)+)", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE
)
ROWS: Final = [[cell.strip() for cell in line.strip("|").split("|")] for line in _TABLE.splitlines()[2:]]
NOT_RAISED: Final = {
    "UNAUTHENTICATED",
    "CORRUPT_RING",
    "LOCK_REVOKED",
}
"""Kept for access from other hosts, and for what so far is only logged: a publisher that broke its ring."""


@functools.cache
def functions(file: str) -> dict[str, str]:
    """The text of each function of a test's file."""
    text = (ROOT / file).read_text()
    return {
        node.name: ast.get_source_segment(text, node) or ""
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_the_table_is_the_librarys() -> None:
    assert [row[:7] for row in ROWS] == [
        [
            code.name,
            str(int(code)),
            TABLE[code].grpc,
            errno.errorcode[TABLE[code].errno],
            str(TABLE[code].exit_code),
            "yes" if TABLE[code].retryable else "no",
            " ".join((CLASSES[code].__doc__ or "").split()),
        ]
        for code in Code
    ]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_test_brings_it_about(row: list[str]) -> None:
    code, shown = row[0], row[-1]
    if code in NOT_RAISED:
        assert shown == "nothing: this version does not raise it"
        return
    file, test = shown.strip("`").split("::")
    text = functions(file)[test]
    assert re.search(rf"\b({code}|{CLASSES[Code[code]].__name__})\b", text)
