"""Every mechanism in to every mechanism out, through the real daemon: what each keeps is kept, exactly."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import towpath
from tests.bridge.matrix import ALL, COUNT, MECHANISMS, End, Keeps, Run, run
from tests.docs.test_guarantees import rows
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon
from tests.support.deadlines import DEADLINE_S
from towpath.model import Direction

pytestmark = pytest.mark.timeout(8 * DEADLINE_S)
NUMBERS = list(range(COUNT))


class Matrix:
    """Runs from each mechanism into all others, made when first asked for."""

    def __init__(self, daemon: DaemonHandle, client: towpath.Client, folder: Path) -> None:
        self._daemon = daemon
        self._client = client
        self._folder = folder
        self._runs: dict[str, Run | Exception] = {}

    def _end(self, name: str, direction: Direction) -> End:
        return End(MECHANISMS[name], direction, self._folder, self._daemon.gateway("bridge").pid)

    def _run(self, source: str, sinks: Iterable[str]) -> Run:
        return run(self._client, self._end(source, "in"), [self._end(name, "out") for name in sinks])

    def alone(self, source: str, sink: str) -> Run:
        """From one into one other, and nothing beside it."""
        return self._run(source, [sink])

    def from_(self, source: str) -> Run:
        """From one into all, at once."""
        if source not in self._runs:
            try:
                self._runs[source] = self._run(source, MECHANISMS)
            except (AssertionError, towpath.TowpathError, OSError) as error:
                self._runs[source] = error
        found = self._runs[source]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    with (
        running_daemon(tmp_path_factory.mktemp("daemon"), LOCAL_ONLY) as daemon,
        towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client,
        tempfile.TemporaryDirectory(prefix="towpath-matrix-") as folder,
    ):
        yield Matrix(daemon, client, Path(folder))


def check_published(source: str, made: Run) -> None:
    """What was sent into a mechanism, and came onto the channel."""
    mechanism, numbers = ALL[source], [int(payload) for payload in made.published]
    if mechanism.holds_integers:
        assert made.published == [b"%d" % number for number in numbers]
    else:
        assert made.published == [b"%-32d" % number for number in numbers]
    if mechanism.keeps in (Keeps.ALL, Keeps.VALUES, Keeps.SEEN):
        assert numbers == NUMBERS
        assert made.report is None or made.report.refused == 0
        return
    assert made.report is not None
    assert all(one < other for one, other in pairwise(numbers))
    if mechanism.keeps is Keeps.LATEST:
        # What was overwritten before it was seen is counted, to the last one.
        assert made.report.messages_in == len(numbers)
        assert made.report.messages_in + made.report.refused == COUNT
    if mechanism.keeps is Keeps.COALESCED:
        assert numbers[0] == 0
        assert made.report.messages_in >= len(numbers)


def check_received(sink: str, made: Run) -> None:
    """What was on the channel, and came out of a mechanism."""
    mechanism, received = ALL[sink], made.received[sink]
    if isinstance(received, Exception):
        raise received
    sent = [b"%d" % int(each) for each in made.published] if mechanism.holds_integers else made.published
    if mechanism.keeps in (Keeps.ALL, Keeps.VALUES):
        assert received == sent
        return
    if mechanism.keeps is Keeps.SEEN:
        missed = sum(int(line.split()[1]) for line in received if line.startswith(b"missing"))
        received = [line for line in received if not line.startswith(b"missing")]
        assert len(received) + missed == len(sent)
    places = {payload: place for place, payload in enumerate(sent)}
    assert all(places[one] < places[other] for one, other in pairwise(received))
    if mechanism.keeps is Keeps.COALESCED:
        assert received[0] == sent[0]
    else:
        assert received[-1] == sent[-1]


@pytest.mark.parametrize("sink", MECHANISMS)
@pytest.mark.parametrize("source", MECHANISMS)
def test_ten_thousand_from_each_mechanism_into_each(matrix: Matrix, source: str, sink: str) -> None:
    made = matrix.from_(source)
    check_published(source, made)
    check_received(sink, made)


@pytest.mark.long
@pytest.mark.parametrize("sink", MECHANISMS)
@pytest.mark.parametrize("source", MECHANISMS)
def test_ten_thousand_from_one_mechanism_into_one_alone(matrix: Matrix, source: str, sink: str) -> None:
    made = matrix.alone(source, sink)
    check_published(source, made)
    check_received(sink, made)


def test_the_published_table_says_so() -> None:
    assert rows("mechanisms") == [[each.name, each.keeps.value] for each in ALL.values()]
