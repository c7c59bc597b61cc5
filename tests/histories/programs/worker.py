"""worker.py SOCKET FILE STOP SEED: takes locks, writes under them, gives them back, and tells of it, until
the file STOP is there.

It does what a careful program would: looks at ``is_valid`` before it relies on a lock, gives up what takes
too long, begins anew when something was lost. Whatever error comes is told by its code; anything else ends
it badly.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import towpath
from tests.histories.plan import GRACE_MS, KEPT_S, PERMITS, PLAIN, SEMAPHORE, TIMEOUT_S, Ask
from tests.histories.records import Teller
from towpath.errors import TowpathError
from towpath.locks import model, session


class Worker:
    """One process's work."""

    def __init__(self, client: towpath.Client, file: Path, seed: int) -> None:
        self._client = client
        self._file = file
        self._teller = Teller(file)
        self._random = random.Random(seed)
        self._number = 0

    def next(self) -> int:
        self._number += 1
        return self._number

    def step(self) -> None:
        """Take something, perhaps write, perhaps take something more meanwhile, give it back."""
        what = self._random.random()
        if what < 0.5:
            self._locked(self._random.sample(PLAIN, 1), is_nested=self._random.random() < 0.2)
        elif what < 0.65:
            self._locked(self._random.sample(PLAIN, 2))
        elif what < 0.8:
            self._shared(self._random.choice(PLAIN))
        else:
            self._permits()

    def _acquired(self, mode: str, weight: int, names: list[str]) -> tuple[int, towpath.Guard | None]:
        number = self.next()
        client, timeout = self._client, self._random.choice(TIMEOUT_S)
        self._teller.tell("call", number=number, mode=mode, weight=weight, locks=names)
        try:
            if mode == "permits":
                guard = client.semaphore(names[0], PERMITS).acquire(weight, timeout)
            elif len(names) > 1:
                guard = client.acquire_all(*names, timeout=timeout)
            else:
                guard = client.lock(names[0]).acquire(timeout, shared=mode == "shared")
        except TowpathError as error:
            self._teller.tell("refused", number=number, code=error.code.name, why=str(error))
            return number, None
        tokens = {grant.lock: grant.token for grant in guard.grants}
        self._teller.tell("got", number=number, tokens=tokens)
        self._obey(mode)
        return number, guard

    def _obey(self, mode: str) -> None:
        """Do what may be asked of one who has just been given something."""
        if mode == "shared":
            return
        if mode == "exclusive" and self._is_asked(Ask.STOP):
            self._teller.tell("stopped", number=self.next())
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._is_asked(Ask.KEEP_PERMITS if mode == "permits" else Ask.KEEP_LOCK):
            time.sleep(KEPT_S)  # the blow itself; nothing is waited for

    def _is_asked(self, what: Ask) -> bool:
        try:
            what.of(self._file).unlink()
        except FileNotFoundError:
            return False
        return True

    def _released(self, number: int, guard: towpath.Guard) -> None:
        self._teller.tell("end", number=number, is_valid=guard.is_valid)
        try:
            guard.release()
        except TowpathError as error:
            self._teller.tell("refused", number=number, code=error.code.name, why=str(error))

    def _locked(self, names: list[str], *, is_nested: bool = False) -> None:
        hold, guard = self._acquired("exclusive", 1, names)
        if guard is None:
            return
        for grant in guard.grants:
            for _ in range(self._random.randint(2, 4)):
                self._write(hold, model.Fence(grant.lock, grant.token))
        if is_nested:
            self._locked([name for name in PLAIN if name not in names][:1])
        self._released(hold, guard)

    def _write(self, hold: int, fence: model.Fence) -> None:
        number = self.next()
        self._teller.tell("write", number=number, hold=hold, lock=fence.lock, token=fence.token)
        try:
            version = self._client.state(f"{fence.lock}.value").set(b"%d" % fence.token, fence=fence)
        except TowpathError as error:
            self._teller.tell("refused", number=number, code=error.code.name, why=str(error))
        else:
            self._teller.tell("wrote", number=number, version=version)

    def _shared(self, name: str) -> None:
        hold, guard = self._acquired("shared", 1, [name])
        if guard is not None:
            self._released(hold, guard)

    def _permits(self) -> None:
        hold, guard = self._acquired("permits", self._random.randint(1, PERMITS), [SEMAPHORE])
        if guard is not None:
            if self._random.random() < 0.5:
                self._shared(self._random.choice(PLAIN))  # which takes a while
            self._released(hold, guard)


def main(socket: str, file: str, stop: str, seed: str) -> None:
    """Work until it is time to stop."""
    session.LOCAL_GRACE_S = GRACE_MS / 1e3  # type: ignore[misc]
    with towpath.connect(socket, timeout=30) as client:
        worker = Worker(client, Path(file), int(seed))
        while not Path(stop).exists():
            worker.step()


if __name__ == "__main__":
    main(*sys.argv[1:])
