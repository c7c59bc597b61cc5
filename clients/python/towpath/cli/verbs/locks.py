"""Verbs about locks.

Not here: what they do (``lock`` and ``locks`` of ``towpath.cli``).
"""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Final

from towpath.cli import values

from .verb import Verb

POLICIES: Final = ("detect", "ordered", "banker", "wait-die", "wound-wait", "no-wait", "timeout-only")
VICTIMS: Final = ("requester", "youngest", "fewest-locks", "lowest-priority")
"""As in ``towpath.locks.spaces``, which costs too much to import here; a test compares them."""


def _lock(parser: ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the lock's: dotted, as a channel's")
    parser.add_argument(
        "command", metavar="CMD", nargs="+", type=values.data, help="and its arguments, after --"
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("-s", "--shared", action="store_true", help="together with others that hold it shared")
    mode.add_argument(
        "-x",
        "--exclusive",
        action="store_true",
        help="alone (this is so without it, too; as flock(1) has it)",
    )
    mode.add_argument(
        "--permits",
        metavar="N",
        type=values.count,
        help="it is a semaphore of so many permits; everybody must say the same",
    )
    parser.add_argument(
        "--weight", metavar="N", type=values.count, default=1, help="how many permits to take. Default: 1"
    )
    waiting = parser.add_mutually_exclusive_group()
    waiting.add_argument("-n", "--nonblock", action="store_true", help="do not wait: it is free, or exit 1")
    waiting.add_argument(
        "-w", "--timeout", metavar="SECONDS", type=values.seconds, help="the longest wait; then exit 1"
    )
    parser.add_argument(
        "-E",
        "--conflict-exit-code",
        metavar="N",
        type=values.number,
        default=1,
        help="exit so if the lock could not be had in time. Default: 1",
    )
    parser.add_argument(
        "--note", metavar="TEXT", default="", help="for people who wonder. Default: the command"
    )
    parser.add_argument(
        "--lease",
        metavar="SECONDS",
        type=values.seconds,
        help="from afar (--url): how long the lock outlives a broken connection, 1 to 3600. Default: 10",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="say what happens")


def _locks(parser: ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="*",
        help="a prefix of names; or: why NAME, why SESSION, release NAME, repair NAME, space [NAME], "
        "watch [PREFIX]",
    )
    parser.add_argument("--reason", metavar="TEXT", default="", help="for release: told to the holder")
    parser.add_argument(
        "--force", action="store_true", help="for repair: also where not all processes can be looked at"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    form.add_argument(
        "--dot", action="store_true", help="who waits for whom, and who has what, for dot(1) of Graphviz"
    )
    form.add_argument(
        "--plot",
        metavar="FILE",
        help="a picture of who waits for whom, and who has what: .png, .svg or .pdf (extra plot)",
    )
    space = parser.add_argument_group("space NAME: how deadlocks are kept away below a name")
    space.add_argument(
        "--policy",
        choices=POLICIES,
        help="detect them; take locks by rising rank; grant what is safe (banker); who is older waits, or "
        "wins; nobody waits; only with a timeout",
    )
    space.add_argument(
        "--victim",
        choices=VICTIMS,
        default="requester",
        help="for detect: who is refused. Default: requester",
    )
    space.add_argument(
        "--rank",
        metavar="LOCK=N",
        action="append",
        type=values.share,
        default=[],
        help="for ordered: where a lock comes; may be repeated. Without: by name",
    )
    space.add_argument(
        "--units",
        metavar="LOCK=N",
        action="append",
        type=values.share,
        default=[],
        help="for banker: how many units there are; may be repeated",
    )
    space.add_argument("--remove", action="store_true", help="take the space away")


VERBS: Final = (
    Verb(
        "lock",
        "Locks",
        "run a program while a lock is held",
        _lock,
        "Waits until the lock is free, runs CMD, releases the lock and exits as CMD did (128 + N if signal N "
        "ended it). CMD finds the lock's name in TOWPATH_LOCK, and in TOWPATH_FENCE the fencing token: a "
        "number above that of every holder before, for others to check. If the lock is lost meanwhile, CMD "
        "and all that it has started is ended, and the exit status is 79; from afar (--url), when the daemon "
        "cannot be heard of, before it can give the lock to the next. Exit 1 (-E): it was not free in "
        "time. Other refusals have the exit status of their error. "
        "`towpath lock bind NAME URL` joins a lock to a local one (administrators only): flock:/path, "
        "fcntl:/path (as lockf(3) takes it) or sem:/name (a POSIX semaphore). While NAME is held the local "
        "one is held too, by the daemon, and while a program of this host has the local one, nobody gets "
        "NAME. `towpath lock unbind NAME URL` ends that.",
        (
            "towpath lock nightly -- ./backup.sh",
            "towpath lock -n nightly -- ./backup.sh || echo another one runs",
            "towpath lock gpu --permits 4 --weight 2 -- ./train",
            "towpath lock bind nightly flock:/run/lock/nightly",
        ),
    ),
    Verb(
        "locks",
        "Locks",
        "show the locks in use; say why one waits; take one away; lay down how deadlocks are avoided",
        _locks,
        "Without more it lists what is held and waited for, by whom and since when. `towpath locks why NAME` "
        "tells who waits behind whom, and where that ends; with a session's number, for that session. "
        "`towpath locks release NAME` takes a lock from whoever has it (administrators only); the holder is "
        "told. `towpath locks space` lists the lock spaces, `towpath locks space NAME --policy POLICY` lays "
        "down how deadlocks are kept away among NAME and all locks below it (administrators only). "
        "`towpath locks repair NAME` gives back the semaphore that NAME is joined to, when its holder has "
        "died. `towpath locks watch [PREFIX]` tells of each grant and each release, until it is interrupted.",
        (
            "towpath locks",
            "towpath locks why nightly",
            "towpath locks --dot | dot -Tsvg > locks.svg",
            'towpath locks release nightly --reason "host b is gone"',
            "towpath locks space plant --policy ordered --rank plant.a=1 --rank plant.b=2",
        ),
    ),
)
