"""What holds for every test: no daemon but its own, the same examples in every run, and what it leaves open
is told of in its own name.

Theory of operation
    What a test leaves open and unreachable, a socket in a cycle of references for instance, says so when it
    is collected, which by itself may be many tests later. So garbage is collected at the end of each test.
    What is there before the first test and what outlives a file of tests is frozen, so that this costs
    little.

    `make test` hands out whole files to several processes, in the order in which they are collected. The
    longest come first, so that at the end no process works alone.

Not here: fixtures, which belong to the folder that needs them.
"""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import settings

from tests.support.longest import LONGEST_FIRST

# Before anything imports towpath, and inherited by what tests start: whoever runs the suite may have a
# daemon of their own, which no test may find.
for name in [name for name in os.environ if name.startswith("TOWPATH_")]:
    del os.environ[name]

# The same for signals: what is ignored when the suite begins (a shell script's background ignores SIGINT,
# nohup SIGHUP) would be ignored by every program that a test starts and interrupts.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)

# `deadline=None`: how long an example takes says something about the machine, not about the code.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.register_profile("long", max_examples=5_000, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    # Fixtures are done with; pytest itself lets go of their values only after this.
    if isinstance(item, pytest.Function):
        item.funcargs.clear()
    gc.collect()
    if nextitem is None or nextitem.path != item.path:
        gc.freeze()
