"""Guards of what is taken in a page are used again: never while somebody has one, never for another lock."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import pytest

from towpath import _ring


class SlowGuard:
    __slots__ = ("_hold", "_locks")

    def _release_slow(self) -> str:
        return "not in the page"


GuardType: Any = _ring.lock_guard_type(SlowGuard)


@_ring.lock_own_acquire
class Lock(_ring.LockBase):
    def _acquire_slow(self, *args: Any, **kwargs: Any) -> Any:
        return None


class Context:
    pass


@pytest.fixture
def page() -> _ring.LockPage:
    made = _ring.LockPage(identity=1)
    made.admit(2, 1, 1)
    for slot in (0, 1):
        made.open(slot, 1000 * (slot + 1), False)
    made.add(2).use()
    return made


def lock_at(page: _ring.LockPage, slot: int, context: object = None) -> Lock:
    lock = Lock()
    lock.set_page(page, slot, GuardType, context)
    return lock


def test_a_guard_that_somebody_has_is_not_used_again(page: _ring.LockPage) -> None:
    lock = lock_at(page, 0)
    guards = []
    for token in range(1001, 1011):
        guards.append(lock.acquire())
        assert [guard.page_token for guard in guards] == list(range(1001, token + 1))
        guards[-1].release()
    assert len({id(guard) for guard in guards}) == 10
    assert [guard.look()[0] for guard in guards] == 10 * [False]
    assert {guard._release_slow() for guard in guards} == {guards[0].release()} == {"not in the page"}


def test_what_is_used_again_is_as_new(page: _ring.LockPage) -> None:
    lock = lock_at(page, 0)
    for token in range(1001, 1101):
        guard = lock.acquire()
        assert type(guard) is GuardType and issubclass(GuardType, SlowGuard)
        assert (guard.page_token, guard.page_slot, guard.page_hold, guard.page_result) == (token, 0, None, 0)
        assert guard.look() == (True, True, False) and guard.page_lock is lock
        guard.set_hold(["something"])
        assert lock.acquire() is None
        guard.release()
        del guard


def test_a_lock_that_moves_has_guards_of_its_new_place(page: _ring.LockPage) -> None:
    lock = lock_at(page, 0, "before")
    kept = lock.acquire()
    kept.release()
    lock.acquire().release()
    lock.set_page(page, 1, GuardType, "after")
    del kept  # it may not become what the next one is
    with lock.acquire() as guard:
        assert (guard.page_slot, guard.page_token, guard.page_context) == (1, 2001, "after")
        assert page.look(1)[1] == 2 and page.look(0)[1] == 0
    assert page.look(1)[1] == 0


def test_a_lock_and_its_guards_go_together(page: _ring.LockPage) -> None:
    context = Context()
    gone = weakref.ref(context)
    lock: Any = lock_at(page, 0, context)
    lock.acquire().release()
    lock.guard = lock.acquire()
    lock.guard.set_hold([lock.guard])
    del context, lock
    gc.collect()
    assert gone() is None


def test_nothing_is_left_referred_to(page: _ring.LockPage) -> None:
    context = Context()
    lock = lock_at(page, 0, context)
    lock.acquire().release()
    before = [sys.getrefcount(each) for each in (lock, context, GuardType)]
    for _ in range(1000):
        with lock.acquire():
            pass
        with lock:
            pass
    guards = [lock.acquire() for _ in range(3)]
    guards[0].release()
    del guards
    assert [sys.getrefcount(each) for each in (lock, context, GuardType)] == before


def test_other_threads_are_not_this_member(page: _ring.LockPage) -> None:
    lock = lock_at(page, 0)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(lock.acquire()))
    thread.start()
    thread.join()
    assert found == [None]


def test_only_what_fits_is_taken() -> None:
    unfit: Any
    for unfit in (object, int, type("Three", (), {"__slots__": ("a", "b", "c")}), "no type"):
        with pytest.raises(TypeError):
            _ring.lock_guard_type(unfit)
    with pytest.raises(TypeError):
        GuardType()
    with pytest.raises(TypeError):
        Lock().set_page(None, 0, SlowGuard, None)
    with pytest.raises(TypeError):
        _ring.lock_own_acquire(object)
