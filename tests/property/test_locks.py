"""The lock machine against the naive model: whatever is asked in whatever order, both come to the same.

Also after each example: the journal alone leads to the same state, and a snapshot does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.core.locks.compared import Compared
from tests.core.locks.model import EXCLUSIVE, PERMITS, SHARED, Owner, Part, Wish
from towpath_broker.core.locks.commands import NO_TIMEOUT

CAPACITIES = {"s": 2, "t": 3}
NAMES = ("a", "b", "c", "s", "t")
TIMEOUTS = (NO_TIMEOUT,) * 6 + (0, 5, 50)

pick = st.integers(0, 1 << 16)
"""Chooses among what there is at that step: an index, taken modulo the number of choices."""


class Comparison(RuleBasedStateMachine):
    @initialize(sessions=st.integers(2, 5))
    def begin(self, sessions: int) -> None:
        self.both = Compared(CAPACITIES)
        for _ in range(sessions):
            self.both.open()

    def free_owner(self, choice: int) -> Owner | None:
        """An owner that does not wait."""
        busy = {wish.owner for wish in self.both.model.waiting()}
        owners = [
            (session, number)
            for session in self.both.sessions
            for number in (0, 0, 0, 1)
            if (session, number) not in busy
        ]
        return owners[choice % len(owners)] if owners else None

    @rule(
        who=pick,
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
        is_exclusive=st.lists(st.booleans(), min_size=3, max_size=3),
        weight=st.integers(1, 2),
        timeout_ms=st.sampled_from(TIMEOUTS),
        is_joint=st.integers(0, 3),
        is_reentrant=st.integers(0, 7),
    )
    def acquire(
        self,
        who: int,
        names: list[str],
        is_exclusive: list[bool],
        weight: int,
        timeout_ms: int,
        is_joint: int,
        is_reentrant: int,
    ) -> None:
        owner = self.free_owner(who)
        if owner is None:
            return
        parts = [
            Part(name, PERMITS, weight)
            if name in CAPACITIES
            else Part(name, EXCLUSIVE if exclusive else SHARED, 1)
            for name, exclusive in zip(names, is_exclusive, strict=False)
        ]
        if is_joint:
            parts = parts[:1]
        reentrant = is_reentrant == 0 and len(parts) == 1
        self.both.acquire(owner, parts, timeout_ms=timeout_ms, is_reentrant=reentrant)

    def held(self, choice: int, *modes: int) -> Wish | None:
        """A request that holds one lock alone, in one of these modes, and whose owner does not wait."""
        model = self.both.model
        busy = {wish.owner for wish in model.waiting()}
        shared = {wish.shares for wish in model.held}
        found = [
            wish
            for wish in model.held
            if len(wish.parts) == 1
            and wish.parts[0].mode in modes
            and wish.shares is None
            and wish not in shared
            and wish.owner not in busy
        ]
        return found[choice % len(found)] if found else None

    @rule(which=pick, timeout_ms=st.sampled_from(TIMEOUTS))
    def upgrade(self, which: int, timeout_ms: int) -> None:
        wish = self.held(which, SHARED)
        if wish is not None:
            self.both.upgrade(wish, timeout_ms=timeout_ms)

    @rule(which=pick)
    def downgrade(self, which: int) -> None:
        wish = self.held(which, EXCLUSIVE)
        if wish is not None:
            self.both.downgrade(wish)

    @precondition(lambda self: self.both.model.held)
    @rule(which=pick)
    def release(self, which: int) -> None:
        held = self.both.model.held
        self.both.release(held[which % len(held)])

    @precondition(lambda self: self.both.model.waiting())
    @rule(which=pick)
    def cancel(self, which: int) -> None:
        waiting = self.both.model.waiting()
        self.both.cancel(waiting[which % len(waiting)])

    @rule(after_ms=st.sampled_from((1, 4, 30)))
    def wait(self, after_ms: int) -> None:
        self.both.wait(after_ms)

    @rule(which=pick, seldom=st.integers(0, 5))
    def end(self, which: int, seldom: int) -> None:
        if not seldom:
            sessions = self.both.sessions
            self.both.end(sessions[which % len(sessions)])
            self.both.open()

    def teardown(self) -> None:
        if hasattr(self, "both"):
            self.both.check_replay()


TestComparison = Comparison.TestCase
TestComparison.settings = settings(
    stateful_step_count=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
