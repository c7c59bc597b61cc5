"""The prefix table against a naive model: two sets, compared after each change."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from towpath_broker.gateways.zeromq.prefixes import PrefixTable

# Few letters, so that names and prefixes meet often.
TEXT = st.binary(max_size=4).map(lambda raw: bytes(b"ab."[byte % 3] for byte in raw))
PREFIXES_MAX = 5


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = PrefixTable(PREFIXES_MAX)
        self.prefixes: set[bytes] = set()
        self.names: set[bytes] = set()

    def wanted(self) -> set[bytes]:
        return {name for name in self.names if any(name.startswith(prefix) for prefix in self.prefixes)}

    @precondition(lambda self: len(self.prefixes) < PREFIXES_MAX)
    @rule(prefix=TEXT)
    def subscribe(self, prefix: bytes) -> None:
        before = self.wanted()
        self.prefixes.add(prefix)
        assert set(self.table.subscribe(prefix)) == self.wanted() - before

    @precondition(lambda self: len(self.prefixes) == PREFIXES_MAX)
    @rule(prefix=TEXT)
    def subscribe_when_full(self, prefix: bytes) -> None:
        assert self.table.is_full
        if prefix in self.prefixes:
            assert self.table.subscribe(prefix) == []
        else:
            with pytest.raises(OverflowError):
                self.table.subscribe(prefix)

    @rule(prefix=TEXT)
    def unsubscribe(self, prefix: bytes) -> None:
        before = self.wanted()
        self.prefixes.discard(prefix)
        assert set(self.table.unsubscribe(prefix)) == before - self.wanted()

    @rule(name=TEXT)
    def declare(self, name: bytes) -> None:
        self.names.add(name)
        assert self.table.declare(name) == (name in self.wanted())

    @rule(name=TEXT)
    def undeclare(self, name: bytes) -> None:
        was_wanted = name in self.wanted()
        self.names.discard(name)
        assert self.table.undeclare(name) == was_wanted

    @rule(names=st.sets(TEXT, max_size=6))
    def replace(self, names: set[bytes]) -> None:
        fresh, gone = self.table.replace(names)
        assert set(fresh) == names - self.names
        assert set(gone) == self.names - names
        self.names = set(names)

    @invariant()
    def is_alike(self) -> None:
        assert self.table.wanted == self.wanted()
        assert self.table.prefixes == self.prefixes
        assert all(self.table.is_declared(name) for name in self.names)


TestPrefixTable = Model.TestCase


def test_a_prefix_is_of_bytes_not_of_levels() -> None:
    table = PrefixTable(10)
    for name in (b"plant.line1", b"plant.line10", b"plant.line2"):
        table.declare(name)
    assert sorted(table.subscribe(b"plant.line1")) == [b"plant.line1", b"plant.line10"]
    assert not table.is_declared(b"plant.line")
