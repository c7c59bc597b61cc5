"""What of this process was there before a test began, and is not the test's."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge import rig


@pytest.fixture(autouse=True)
def _remember_children() -> None:
    rig.remember_children()


@pytest.fixture
def place() -> Iterator[Path]:
    """A path that is short enough for a socket, where nothing is."""
    with tempfile.TemporaryDirectory(prefix="towpath-unix-") as folder:
        yield Path(folder) / "socket"
