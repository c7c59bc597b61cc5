"""What of this process was there before a test began, and is not the test's."""

from __future__ import annotations

import pytest

from tests.bridge import rig


@pytest.fixture(autouse=True)
def _remember_children() -> None:
    rig.remember_children()
