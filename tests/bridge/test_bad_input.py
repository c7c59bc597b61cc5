"""Bad input, adapter by adapter: each kind has its documented error, with a hint, and harms nothing."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from tests.bridge.bad_input import CASES, Case, Site
from tests.bridge.rig import Rig, has_children, on_loop, open_descriptors
from tests.docs.test_guarantees import rows
from towpath.bindings import SCHEMES
from towpath.errors import TABLE

KINDS = {
    "place": ("no FIFO", "not there", "cannot be", "is none", "no socket"),
    "permissions": ("permissions",),
    "what comes": ("too long", "cut short", "not its rest", "without a value", "that cannot be"),
    "what goes": ("removed", "that fails", "ends"),
}
"""What each adapter has a case of, by words of the table."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.scheme}: {case.what}")
@on_loop
async def test_each_kind_of_bad_input_has_its_error(case: Case, place: Path) -> None:
    gc.collect()  # what other tests have left
    before = open_descriptors()
    async with Rig() as rig:
        site = Site(rig, place)
        try:
            error = await case.bring(site)
        finally:
            site.clean()
        assert isinstance(error, case.error)
        assert case.text in error.message
        assert error.hint
        assert error.retryable is case.retryable
        assert error.code in TABLE
    assert open_descriptors() == before
    assert not has_children()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_has_a_case_of_every_kind(scheme: str, kind: str) -> None:
    told = [case.what for case in CASES if case.scheme == scheme]
    assert any(words in what for what in told for words in KINDS[kind])


def test_the_published_table_says_so() -> None:
    assert rows("bad input") == [
        [f"{case.scheme}:", case.what, case.error.code.name, "yes" if case.retryable else "no"]
        for case in CASES
    ]
