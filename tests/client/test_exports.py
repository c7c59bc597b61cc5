"""What `import towpath` offers by name."""

from __future__ import annotations

import subprocess
import sys

import pytest

import towpath
from tests.support.deadlines import DEADLINE_S
from towpath import errors


@pytest.mark.parametrize("error", errors.CLASSES.values(), ids=lambda error: error.__name__)
def test_every_error_is_there_at_the_top(error: type[errors.TowpathError]) -> None:
    assert getattr(towpath, error.__name__) is error
    assert error.__name__ in towpath.__all__


def test_all_names_can_be_had_and_are_listed_once() -> None:
    assert len(set(towpath.__all__)) == len(towpath.__all__)
    for name in towpath.__all__:
        assert getattr(towpath, name) is not None
        assert name in dir(towpath)


def test_names_that_nobody_uses_cost_nothing() -> None:
    code = "import sys, towpath; assert 'towpath.errors' not in sys.modules; towpath.Timeout"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=DEADLINE_S)
