"""What importing the client library brings with it, and what it leaves alone."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.project.project_files import BROKER, CLIENT, ROOT, imported_modules, package_of, python_files
from tests.support.deadlines import DEADLINE_S, PROGRAM_S

# Packages of the extras. A program that imports towpath to reach the local daemon pays for none of them.
OPTIONAL = {"grpc", "grpc_health", "grpc_reflection", "nats", "posix_ipc", "systemd", "zmq"}


@pytest.mark.parametrize("module", ["towpath", "towpath.aio"])
def test_import_brings_neither_the_extras_nor_the_daemon(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) & (OPTIONAL | {"towpath_broker"}) == set()


def test_client_library_never_imports_the_daemon_at_its_top_level() -> None:
    """The linter allows towpath.cli the import; this says that it happens only when `serve` runs."""
    eager = []
    for path in python_files(CLIENT):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or (
                isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            ):
                node.body = [ast.Pass()]
        modules = imported_modules(tree, package_of(path, CLIENT))
        eager += [f"{path.name}: {name}" for _, name in modules if name.startswith("towpath_broker")]
    assert eager == []


def test_every_import_contract_holds() -> None:
    """The same run as in `make check`, so that the layers are part of the suite too."""
    lint = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    run = subprocess.run(
        [*lint, "--no-logo", "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=PROGRAM_S
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_package_has_an_init_file() -> None:
    """A folder without one is left out by tools that follow packages, and found by none that follow files."""
    folders = {path.parent for root in (CLIENT, BROKER) for path in python_files(root)}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
