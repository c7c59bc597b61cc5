"""Each side of each mechanism is killed and started again, again and again, under load: what the mechanism
keeps is kept and in order; what it cannot keep is no more than is documented.

A loss shows as a gap in the numbers of the messages. A program that is started again counts from 0 again.

The hundred kills of `make test-long` are beside stress-ng(1), or where that is not installed beside a program
that does likewise: it computes, fills memory and goes through pipes, on all processors.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import posix_ipc
import pytest
import sysv_ipc

import towpath
from tests.bridge.foreign import program
from tests.bridge.test_daemon import wait_report
from tests.bridge.test_queues_daemon import Place
from tests.support.daemon import LOCAL_ONLY, DaemonHandle, running_daemon, wait_until
from tests.support.deadlines import DEADLINE_S
from towpath_broker.gateways.bridge.inflow import READ_BYTES_MAX
from towpath_broker.gateways.bridge.messages import BATCH_COUNT_MAX

RT = int(signal.SIGRTMIN + 7)
LINE_BYTES = 32
SIGNALS_PENDING_MAX = 1000
"""What of a user's signals may wait is one number for all of their processes: the rest is left to others."""
SMALL = {"mq": {"maxmsg": "10", "msgsize": "64"}}
"""All message queues of a user share what RLIMIT_MSGQUEUE allows, those of other tests too."""
MANY = 1_000_000_000

few_and_a_hundred = pytest.mark.parametrize(
    "kills", [8, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
)


@pytest.fixture(autouse=True)
def stress(request: pytest.FixtureRequest) -> Iterator[None]:
    """Others who want the machine too, for the long tests."""
    if request.node.get_closest_marker("long") is None:
        yield
        return
    each = str(os.cpu_count())
    command = [program("busy"), each]
    if shutil.which("stress-ng"):
        command = ["stress-ng", "--quiet", "--cpu", each, "--pipe", each, "--vm", each, "--vm-bytes", "64M"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
        yield
        assert process.poll() is None, "the load ended early"
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonHandle]:
    path = tmp_path_factory.mktemp("daemon")
    with running_daemon(path, LOCAL_ONLY) as handle:
        yield handle


@pytest.fixture
def client(daemon: DaemonHandle) -> Iterator[towpath.Client]:
    with towpath.connect(str(daemon.socket), timeout=DEADLINE_S) as client:
        yield client


@pytest.fixture
def channel(client: towpath.Client) -> Iterator[str]:
    name = f"kills.{secrets.token_hex(4)}"
    client.declare(name)
    yield name
    client.undeclare(name, force=True)


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(request.param)
    yield place
    place.remove()


def number_of(payload: bytes) -> int:
    [number] = re.findall(rb"\d+", payload)  # nothing torn, nothing of two messages
    return int(number)


@contextlib.contextmanager
def killed_in_the_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


class Heard:
    """What comes on a channel, received in a thread. Use as a context manager."""

    def __init__(self, client: towpath.Client, channel: str) -> None:
        self.numbers: list[int] = []
        self.is_over = False
        self._subscription = client.subscribe(channel)
        self._thread = threading.Thread(target=self._receive)

    def __enter__(self) -> Heard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self._thread.join(DEADLINE_S)
        self._subscription.close()

    def _receive(self) -> None:
        while not self.is_over:
            messages = self._subscription.receive_many(timeout=0.1)
            self.numbers += [number_of(message.payload) for message in messages]

    def wait_more(self, count: int = 1) -> None:
        wanted = len(self.numbers) + count
        wait_until(lambda: len(self.numbers) >= wanted, lambda: f"{len(self.numbers)} of {wanted}")


class Load:
    """Publishes numbers, without end, in a thread. Use as a context manager."""

    def __init__(
        self, client: towpath.Client, channel: str, make: Callable[[int], bytes] = b"%d ".__mod__
    ) -> None:
        self.sent = 0
        self.is_over = False
        self._make = make
        self._publisher = client.publisher(channel)
        self._thread = threading.Thread(target=self._publish)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over = True
        self._thread.join(DEADLINE_S)

    def _publish(self) -> None:
        while not self.is_over:
            with contextlib.suppress(towpath.Timeout):  # nobody takes it at the moment
                self._publisher.publish(self._make(self.sent), timeout=0.05)
                self.sent += 1


def is_counted(numbers: Sequence[int]) -> bool:
    """Whether each number is the one after that before it, or 0: another run."""
    return all(later in (earlier + 1, 0) for earlier, later in itertools.pairwise([-1, *numbers]))


def leave_signals_to_others(pid: int) -> int:
    """Have senders of signals to a process wait when it has many; return its pid."""
    resource.prlimit(pid, resource.RLIMIT_SIGPENDING, (SIGNALS_PENDING_MAX, SIGNALS_PENDING_MAX))
    return pid


# ---- the program that knows nothing of Towpath is killed ---------------------------------------------------


def start_writer(scheme: str, where: str) -> subprocess.Popen[bytes]:
    if scheme == "fifo":
        return subprocess.Popen([program("lines"), "write", where])
    return subprocess.Popen([program(f"{scheme}_send"), where, str(MANY)])


@few_and_a_hundred
@pytest.mark.parametrize("place", ["fifo", "mq", "sysv"], indirect=True)
def test_who_writes_is_killed(
    client: towpath.Client, channel: str, place: Place, tmp_path: Path, kills: int
) -> None:
    """Nothing that was written is lost, and nothing is torn."""
    where = str(tmp_path / "fifo") if place.scheme == "fifo" else place.name
    url = f"{place.scheme}:{where}"
    client.bind(channel, url, direction="in", options=SMALL.get(place.scheme))
    with Heard(client, channel) as heard:
        for _ in range(kills):
            runs = heard.numbers.count(0)
            with killed_in_the_end(start_writer(place.scheme, where)):
                wait_until(lambda: heard.numbers.count(0) > runs)  # noqa: B023
    assert is_counted(heard.numbers) and heard.numbers.count(0) == kills


def test_a_command_is_killed(daemon: DaemonHandle, client: towpath.Client, channel: str) -> None:
    """No more than a few times: the pause before its next start doubles. What a hundred bridges have run is
    below.
    """
    kills = 8
    url = f"pipe:{program('lines')} write -"
    with Heard(client, channel) as heard:
        binding = client.bind(channel, url, direction="in", options={"restart_delay_ms": "10"})
        for run in range(1, kills + 1):
            wait_until(lambda: heard.numbers.count(0) == run)  # noqa: B023
            report = wait_report(
                daemon, binding.id, lambda each: each.state == "running" and "pid" in each.detail
            )
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(report.detail.rpartition("pid ")[2].rstrip(")")), signal.SIGKILL)
        wait_until(lambda: heard.numbers.count(0) == kills + 1)
        report = wait_report(daemon, binding.id, lambda each: each.restarts == kills)
    assert is_counted(heard.numbers)


def start_sender(pid: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen([program("sigqueue_send"), str(pid), str(RT), str(MANY)])


@few_and_a_hundred
def test_who_sends_signals_is_killed(
    daemon: DaemonHandle, client: towpath.Client, channel: str, kills: int
) -> None:
    client.bind(channel, "signal:RTMIN+7", direction="in", options={"format": "text"})
    bridge = leave_signals_to_others(daemon.gateway("bridge").pid)
    with Heard(client, channel) as heard:
        for _ in range(kills):
            runs = heard.numbers.count(0)
            with killed_in_the_end(start_sender(bridge)):
                wait_until(lambda: heard.numbers.count(0) > runs)  # noqa: B023
    assert is_counted(heard.numbers)


@pytest.fixture
def segment() -> Iterator[str]:
    name = f"/towpath-kills-{os.getpid()}-{secrets.token_hex(4)}"
    shm_peer("make", name, 0).wait(DEADLINE_S)
    yield name
    shm_peer("remove", name, 0).wait(DEADLINE_S)


def shm_peer(role: str, name: str, count: int) -> subprocess.Popen[bytes]:
    """A program that counts the generation and wakes who waits for it, and never waits itself."""
    return subprocess.Popen([program("shm_peer"), role, "gf", name, "-", "-", str(count)])


SHM_OPTIONS = {"length_offset": "8", "generation_offset": "0", "futex_offset": "4"}


@few_and_a_hundred
def test_who_writes_shared_memory_is_killed(
    daemon: DaemonHandle, client: towpath.Client, channel: str, segment: str, kills: int
) -> None:
    """Only the newest is shown, whole, wherever in a change the writer is killed; its successor goes on."""
    binding = client.bind(channel, f"shm:{segment}@64", direction="in", options=SHM_OPTIONS)
    with Heard(client, channel) as heard:
        for _ in range(kills):
            with killed_in_the_end(shm_peer("write", segment, MANY)):
                heard.wait_more(2)
        last_begins = len(heard.numbers)
        shm_peer("write", segment, 10_000).wait(DEADLINE_S)
        wait_until(lambda: 9_999 in heard.numbers[last_begins:])
    runs = 1 + sum(later < earlier for earlier, later in itertools.pairwise(heard.numbers))
    assert runs <= kills + 1
    assert wait_report(daemon, binding.id, lambda each: each.state == "running").restarts == 0


def start_reader(scheme: str, where: str, output: IO[bytes]) -> subprocess.Popen[bytes]:
    if scheme == "fifo":
        return subprocess.Popen([program("lines"), "read", where], stdout=output)
    return subprocess.Popen([program(f"{scheme}_receive"), where, str(MANY)], stdout=output)


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


@few_and_a_hundred
@pytest.mark.parametrize("place", ["fifo", "mq", "sysv"], indirect=True)
def test_who_reads_is_killed(
    daemon: DaemonHandle, client: towpath.Client, channel: str, place: Place, tmp_path: Path, kills: int
) -> None:
    """What it had taken is its own, one message at most; the next one goes on there."""
    is_fifo = place.scheme == "fifo"
    where = str(tmp_path / "fifo") if is_fifo else place.name
    options = {"when_absent": "block"} if is_fifo else SMALL.get(place.scheme)
    binding = client.bind(channel, f"{place.scheme}:{where}", direction="out", options=options)
    taken = tmp_path / "taken"
    with taken.open("ab") as output, Load(client, channel, lambda n: b"%030d " % n) as load:
        for _ in range(kills):
            before = taken.stat().st_size
            with killed_in_the_end(start_reader(place.scheme, where, output)):
                wait_until(lambda: taken.stat().st_size > before)  # noqa: B023
        before = taken.stat().st_size
        with killed_in_the_end(start_reader(place.scheme, where, output)):
            wait_until(lambda: taken.stat().st_size > before)
            load.__exit__()
            wait_until(lambda: lines_of(taken)[-1].split()[-1] == b"%030d" % (load.sent - 1))
    numbers = [int(line.split()[-1]) for line in lines_of(taken)]
    assert all(earlier < later for earlier, later in itertools.pairwise(numbers))
    assert load.sent - len(numbers) <= kills
    report = wait_report(daemon, binding.id, lambda each: each.messages_out == load.sent)
    assert report.refused == 0


def start_receiver(pid_file: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [program("sigwait_receive"), str(RT), str(MANY), str(pid_file)]
    return subprocess.Popen(command, stdout=output)


@few_and_a_hundred
def test_who_is_signalled_is_killed(client: towpath.Client, channel: str, tmp_path: Path, kills: int) -> None:
    """The signals that it has not taken die with it; those to the next one are all there."""
    pid_file, taken = tmp_path / "app.pid", tmp_path / "taken"
    options = {"format": "text", "when_absent": "block"}
    client.bind(channel, f"signal:RTMIN+7@{pid_file}", direction="out", options=options)
    runs: list[list[int]] = []
    with Load(client, channel):
        for _ in range(kills):
            with (
                taken.open("wb") as output,
                killed_in_the_end(start_receiver(pid_file, output)) as receiver,
            ):
                leave_signals_to_others(receiver.pid)
                wait_until(lambda: len(lines_of(taken)) > 1)
            runs.append([int(line.split()[0]) for line in lines_of(taken)[1:]])
    for run in runs:
        assert run == list(range(run[0], run[0] + len(run)))
    assert all(earlier[-1] < later[0] for earlier, later in itertools.pairwise(runs))


# ---- the bridge is killed ----------------------------------------------------------------------------------


class Feeder:
    """A thread that puts numbered messages into a mechanism until it is told to stop."""

    def __init__(self, put: Callable[[bytes], bool]) -> None:
        self.count = 0
        self._put = put
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed)

    def __enter__(self) -> Feeder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)

    def _feed(self) -> None:
        while not self._over.is_set():
            if self._put((b"%d " % self.count).ljust(LINE_BYTES - 1, b".") + b"\n"):
                self.count += 1
            else:
                self._over.wait(0.001)  # full: nothing tells when it is not


def fifo_put(path: Path) -> Callable[[bytes], bool]:
    """The FIFO stays open: whoever writes does not notice that the bridge is killed."""
    descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)

    def put(data: bytes) -> bool:
        try:
            return os.write(descriptor, data) == len(data)
        except BlockingIOError:
            return False

    return put


def mq_put(name: str) -> Callable[[bytes], bool]:
    queue = posix_ipc.MessageQueue(name)
    queue.block = False

    def put(data: bytes) -> bool:
        try:
            queue.send(data)
        except posix_ipc.BusyError:
            return False
        return True

    return put


def sysv_put(name: str) -> Callable[[bytes], bool]:
    queue = sysv_ipc.MessageQueue(int(name, 16))

    def put(data: bytes) -> bool:
        try:
            queue.send(data, block=False)
        except sysv_ipc.BusyError:
            return False
        return True

    return put


IN_HAND = {"fifo": READ_BYTES_MAX // LINE_BYTES + 1, "mq": BATCH_COUNT_MAX, "sysv": BATCH_COUNT_MAX + 1}
"""What a bridge that is killed may have taken and not yet published, at most: GUARANTEES, known gaps."""

few_kills_of_the_bridge = pytest.mark.parametrize(
    "kills", [2, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)


def kill_bridge(daemon: DaemonHandle) -> None:
    killed = daemon.gateway("bridge").pid
    os.kill(killed, signal.SIGKILL)
    daemon.wait_gateway("bridge", but_not=killed)


@few_kills_of_the_bridge
def test_the_bridge_is_killed_while_programs_write(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path, kills: int
) -> None:
    """All mechanisms that keep messages at once. What is lost was in its hands; nothing comes twice or in
    another order, and who writes notices nothing."""
    mq, sysv, fifo = Place("mq"), Place("sysv"), tmp_path / "fifo"
    urls = {"fifo": f"fifo:{fifo}", "mq": mq.url, "sysv": sysv.url}
    try:
        for scheme, url in urls.items():
            client.declare(f"killed.{scheme}")
            client.bind(f"killed.{scheme}", url, direction="in", options=SMALL.get(scheme))
        puts = {"fifo": fifo_put(fifo), "mq": mq_put(mq.name), "sysv": sysv_put(sysv.name)}
        with contextlib.ExitStack() as stack:
            heard = {each: stack.enter_context(Heard(client, f"killed.{each}")) for each in urls}
            feeders = {scheme: stack.enter_context(Feeder(put)) for scheme, put in puts.items()}
            for _ in range(kills):
                for each in heard.values():
                    each.wait_more(100)
                kill_bridge(daemon)
            for scheme, feeder in feeders.items():
                heard[scheme].wait_more(100)
                feeder.__exit__()
                wait_until(
                    lambda: heard[scheme].numbers[-1] == feeder.count - 1,  # noqa: B023
                    lambda: f"{scheme}: {heard[scheme].numbers[-1]} of {feeder.count}",  # noqa: B023
                )
        for scheme, each in heard.items():
            pairs = list(itertools.pairwise([-1, *each.numbers]))
            assert all(earlier < later for earlier, later in pairs), scheme
            gaps = [later - earlier - 1 for earlier, later in pairs if later > earlier + 1]
            assert len(gaps) <= kills and max(gaps, default=0) <= IN_HAND[scheme], scheme
    finally:
        for scheme in urls:
            client.undeclare(f"killed.{scheme}", force=True)
        mq.remove()
        sysv.remove()


@few_kills_of_the_bridge
def test_the_bridge_is_killed_while_it_gets_signals_and_runs_a_command(
    daemon: DaemonHandle, client: towpath.Client, kills: int
) -> None:
    """Signals that it has not taken die with it, and its commands do. What came of each run is its
    beginning, without a gap."""
    for name in ("signal", "pipe"):
        client.declare(f"killed.{name}")
    with Heard(client, "killed.signal") as signals, Heard(client, "killed.pipe") as lines:
        client.bind("killed.pipe", f"pipe:{program('lines')} write -", direction="in")
        binding = client.bind("killed.signal", "signal:RTMIN+7", direction="in", options={"format": "text"})
        for run in range(1, kills + 1):
            wait_report(daemon, binding.id, lambda report: report.state == "running")
            bridge = leave_signals_to_others(daemon.gateway("bridge").pid)
            with killed_in_the_end(start_sender(bridge)) as sender:
                wait_until(lambda: signals.numbers.count(0) == run and lines.numbers.count(0) == run)  # noqa: B023
                kill_bridge(daemon)
                assert sender.wait(DEADLINE_S) == 1  # ESRCH: it is told
        wait_until(lambda: lines.numbers.count(0) == kills + 1)
    assert is_counted(signals.numbers) and is_counted(lines.numbers)
    for name in ("signal", "pipe"):
        client.undeclare(f"killed.{name}", force=True)


@few_kills_of_the_bridge
def test_the_bridge_is_killed_while_programs_read_what_was_queued(
    daemon: DaemonHandle, client: towpath.Client, tmp_path: Path, kills: int
) -> None:
    """Out of a queue nothing is lost: what was not acknowledged comes again."""
    mq, sysv, fifo = Place("mq"), Place("sysv"), tmp_path / "fifo"
    urls = {"fifo": f"fifo:{fifo}", "mq": mq.url, "sysv": sysv.url}
    taken = {scheme: tmp_path / scheme for scheme in ("mq", "sysv")}
    taken["fifo"] = tmp_path / "lines"
    try:
        with contextlib.ExitStack() as stack:
            loads: dict[str, Load] = {}
            for scheme, url in urls.items():
                client.declare(f"killed.{scheme}", kind="queue", capacity=10_000)
                client.bind(f"killed.{scheme}", url, direction="out", options=SMALL.get(scheme))
                output = stack.enter_context(taken[scheme].open("ab"))
                if scheme == "fifo":
                    # While the bridge is away nobody writes: it reads the end, and opens the FIFO again.
                    again = ["sh", "-c", 'while :; do "$@"; done', "sh", program("lines"), "read", str(fifo)]
                    reader = subprocess.Popen(again, stdout=output, start_new_session=True)
                    stack.callback(os.killpg, reader.pid, signal.SIGKILL)
                else:
                    where = mq.name if scheme == "mq" else sysv.name
                    reader = start_reader(scheme, where, output)
                stack.enter_context(killed_in_the_end(reader))
                loads[scheme] = stack.enter_context(Load(client, f"killed.{scheme}", lambda n: b"%030d " % n))
            for _ in range(kills):
                for path in taken.values():
                    before = path.stat().st_size
                    wait_until(lambda: path.stat().st_size > before + 100 * LINE_BYTES)  # noqa: B023
                kill_bridge(daemon)
            for scheme, load in loads.items():
                load.__exit__()
                wait_until(lambda: load.sent <= len(numbers_in(taken[scheme])), lambda: scheme)  # noqa: B023
                assert numbers_in(taken[scheme]) == set(range(load.sent)), scheme
    finally:
        for scheme in urls:
            client.undeclare(f"killed.{scheme}", force=True)
        mq.remove()
        sysv.remove()


def numbers_in(path: Path) -> set[int]:
    """The whole ones: a line may have been cut off by the bridge's end."""
    words = [line.split()[-1] for line in lines_of(path) if line.split()]
    return {int(word) for word in words if len(word) == LINE_BYTES - 2}
