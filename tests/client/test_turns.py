"""Which thread reads a blocking client's socket: whoever waits, or else the client's own thread. Nothing may
come of how they take turns."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Final

import pytest

import towpath
from tests.support.daemon import DaemonHandle, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath import errors
from towpath.sync.turns import Turns

THREADS: Final = 4
TURNS: Final = 100


class Interrupted(Exception):
    """What a signal's handler raises."""


@pytest.fixture
def interrupted() -> Iterator[threading.Event]:
    """SIGUSR1 raises in the main thread, if this is not set; then it is."""
    event = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not event.is_set():
            event.set()
            raise Interrupted

    before = signal.signal(signal.SIGUSR1, interrupt)
    yield event
    signal.signal(signal.SIGUSR1, before)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(THREADS) as executor:
        yield executor


def is_waited_for(client: towpath.Client, name: str) -> bool:
    return any(lock.name == name and lock.waiters for lock in client.list_locks(name).locks)


def test_who_waits_is_woken_and_nobody_else_is() -> None:
    """By the kernel: the guest, as long as it sleeps there, and the own thread when it does not."""
    ours, theirs = socket.socketpair()
    turns = Turns()
    with ours, theirs:
        turns.watch(ours)
        assert turns.begin()
        assert not turns.begin()  # there is one guest at a time
        theirs.send(b"for whoever sleeps first")
        turns.sleep_guest(DEADLINE_S)
        assert ours.recv(100)
        turns.end()
        own = threading.Thread(target=turns.sleep_own, args=(None,))
        own.start()
        theirs.send(b"for the own thread")
        own.join(DEADLINE_S)
        assert not own.is_alive()
        turns.unwatch(ours)
        turns.close()
        assert not turns.begin()


def test_a_guest_who_is_stirred_looks() -> None:
    turns = Turns()
    assert turns.begin()
    guest = threading.Thread(target=turns.sleep_guest, args=(None,))
    guest.start()
    turns.stir()
    guest.join(DEADLINE_S)
    assert not guest.is_alive()
    turns.end()
    turns.close()
    turns.stir()  # nothing is left to be told


def test_each_thread_has_its_own_answers(daemon: DaemonHandle, threads: ThreadPoolExecutor) -> None:
    with towpath.connect(str(daemon.socket)) as client:

        def work(number: int) -> int:
            lock = client.semaphore(f"turns.{number % 2}", 1)
            for _ in range(TURNS):
                with lock.acquire(timeout=DEADLINE_S) as guard:
                    name = client.list_locks(guard.name).locks[0].name
                    assert name == guard.name
            return number

        assert list(threads.map(work, range(THREADS), timeout=DEADLINE_S)) == list(range(THREADS))


def test_a_signal_that_ends_a_wait_leaves_the_client_whole(
    daemon: DaemonHandle, threads: ThreadPoolExecutor, interrupted: threading.Event
) -> None:
    def is_interrupted() -> bool:
        """Send the signal again until it is heard: Python hears one that comes just before it falls asleep
        only when it wakes."""
        if not interrupted.is_set():
            os.kill(os.getpid(), signal.SIGUSR1)
        return interrupted.is_set()

    with towpath.connect(str(daemon.socket)) as one, towpath.connect(str(daemon.socket)) as two:
        mine = one.lock("turns.mine").acquire()
        for _ in range(10):
            held = two.lock("turns.signal", fast=False).acquire()

            def interrupt() -> None:
                wait_until(lambda: is_waited_for(two, "turns.signal"))
                wait_until(is_interrupted)

            interrupted.clear()
            told = threads.submit(interrupt)
            with pytest.raises(Interrupted):
                one.lock("turns.signal", fast=False).acquire()
            told.result(DEADLINE_S)
            wait_until(lambda: not is_waited_for(two, "turns.signal"))  # it has been withdrawn
            held.release()
            one.lock("turns.signal", fast=False).acquire(DEADLINE_S).release()
        assert mine.is_valid
        mine.release()


def test_who_waits_is_told_when_another_thread_closes(
    daemon: DaemonHandle, threads: ThreadPoolExecutor
) -> None:
    with towpath.connect(str(daemon.socket)) as one:
        held = one.lock("turns.closing", fast=False).acquire()
        two = towpath.connect(str(daemon.socket))
        waiting: Future[towpath.Guard] = threads.submit(two.lock("turns.closing", fast=False).acquire)
        wait_until(lambda: is_waited_for(one, "turns.closing"))
        two.close()
        assert isinstance(waiting.exception(DEADLINE_S), errors.ConnectionLost)
        held.release()


def test_who_waits_may_be_who_hears_of_it_and_closes(
    daemon: DaemonHandle, threads: ThreadPoolExecutor
) -> None:
    """A function that is told of lost locks is called by whoever reads: it may end the client."""
    with towpath.connect(str(daemon.socket)) as one:
        two = towpath.connect(str(daemon.socket))
        two.on_lock_lost(lambda _: two.close())
        held = one.lock("turns.held", fast=False).acquire()
        two.lock("turns.lost", fast=False).acquire()
        waiting = threads.submit(two.lock("turns.held", fast=False).acquire)
        wait_until(lambda: is_waited_for(one, "turns.held"))
        one.force_release("turns.lost")
        assert isinstance(waiting.exception(DEADLINE_S), errors.ConnectionLost)
        held.release()


def test_an_answer_that_is_larger_than_what_is_read_at_once(daemon: DaemonHandle) -> None:
    with towpath.connect(str(daemon.socket)) as client:
        for number in range(600):
            client.declare(f"turns.{'x' * 150}.{number}")
        assert len(client.channels()) >= 600
        assert client.channel_info(f"turns.{'x' * 150}.1").kind == "topic"


def test_a_client_leaves_none_of_its_descriptors(daemon: DaemonHandle) -> None:
    def found() -> int:
        """How many there are of those by which its threads sleep."""
        names = []
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                names.append(os.readlink(f"/proc/self/fd/{number}"))
        return sum("eventpoll" in name or "eventfd" in name for name in names)

    before = found()
    with towpath.connect(str(daemon.socket)) as client:
        client.lock("turns.descriptors", fast=False).acquire().release()
        assert found() == before + 4
    assert found() == before
