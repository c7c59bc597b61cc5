"""What the tests of the project share: where its files are, and which of them belong to it."""

from __future__ import annotations

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv" / "bin"
CLIENT = ROOT / "clients" / "python" / "towpath"
BROKER = ROOT / "broker" / "towpath_broker"


def own_files() -> list[Path]:
    """List the files of the checkout that are tracked or about to be, relative to it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    names = [Path(name) for name in listed.stdout.split("\0") if name]
    return sorted(name for name in names if (ROOT / name).is_file())


def copy_checkout(destination: Path) -> None:
    """Copy what belongs to the project, and nothing that was built, into an empty directory."""
    for name in own_files():
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, destination / name)


def python_files(folder: Path) -> list[Path]:
    """List the Python files below a folder that were written by hand."""
    return sorted(path for path in folder.rglob("*.py") if "_pb2" not in path.name)


def imported_modules(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """Yield each import as line number and absolute dotted name; `from a import b` yields `a.b`.

    Args:
        tree: What was parsed.
        package: The dotted package that relative imports start from.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


def package_of(path: Path, root: Path) -> str:
    """Name the package that a file's relative imports start from, e.g. `towpath_broker.core`."""
    return ".".join(path.parent.relative_to(root.parent).parts)
