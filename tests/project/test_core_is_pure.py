"""The core decides from its inputs alone: no clock, chance, file, log or waiting can be reached from it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from tests.project.project_files import BROKER, ROOT, imported_modules, package_of, python_files

CORE = BROKER / "core"

# Modules of the standard library through which the world gets in or out.
IMPURE = frozenset(
    """
    asyncio concurrent ctypes datetime fcntl glob http io locale logging mmap multiprocessing os
    pathlib platform queue random resource sched secrets select selectors shutil signal socket
    socketserver sqlite3 ssl subprocess sys tempfile threading time urllib uuid warnings
    """.split()  # noqa: SIM905 (as a list it would take a line per word)
)
IMPURE_CALLS = frozenset({"open", "print", "input", "breakpoint", "exec", "eval", "hash", "id"})
# The vocabulary that client and core share; all else of `towpath` does I/O or speaks a carrier.
SHARED = ("towpath.errors", "towpath.names", "towpath.bindings", "towpath.framing", "towpath.wording")
WAITING = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)


def is_allowed(module: str) -> bool:
    """Whether the core may import a module, given by its absolute name."""
    if module.split(".")[0] in sys.stdlib_module_names:
        return module.split(".")[0] not in IMPURE
    homes = (*SHARED, "towpath_broker.core")
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def violations(source: str, package: str) -> list[str]:
    """Say, by line, where a file of the core reaches for the world."""
    tree = ast.parse(source)
    # `from towpath import errors` and `from towpath.errors import X` are both yielded as dotted names.
    found = [
        f"line {line}: imports {name}"
        for line, name in imported_modules(tree, package)
        if not is_allowed(name)
    ]
    for node in ast.walk(tree):
        if isinstance(node, WAITING):
            found.append(f"line {node.lineno}: waits ({type(node).__name__})")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS:
            found.append(f"line {node.lineno}: calls {node.func.id}()")
    return found


def test_core_reaches_nothing_of_the_world() -> None:
    files = python_files(CORE)
    assert files, "the core has moved: this test must follow it"
    found = {
        str(path.relative_to(ROOT)): violations(path.read_text(), package_of(path, BROKER)) for path in files
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import time",
        "import os.path",
        "from random import random",
        "from towpath import client",
        "from towpath.v1 import frame_pb2",
        "from ..engine import Engine",
        "from .. import engine",
        "import google.protobuf",
        "def f():\n    import asyncio",
        "async def f(): ...",
        "open('x')",
        "hash('differs from run to run')",
    ],
)
def test_impure_line_is_found(line: str) -> None:
    assert violations(line, "towpath_broker.core")


@pytest.mark.parametrize(
    "line",
    [
        "from dataclasses import dataclass",
        "import towpath.errors",
        "from towpath import errors, names",
        "from towpath.errors import Code",
        "from . import ids",
        "from .ids import SessionId",
        "from towpath_broker.core.ids import SessionId",
    ],
)
def test_pure_line_is_let_through(line: str) -> None:
    assert violations(line, "towpath_broker.core") == []


def test_relative_import_from_a_folder_of_the_core() -> None:
    assert package_of(Path(CORE, "locks", "table.py"), BROKER) == "towpath_broker.core.locks"
    assert violations("from ..ids import SessionId", "towpath_broker.core.locks") == []
    assert violations("from ...engine import Engine", "towpath_broker.core.locks")
