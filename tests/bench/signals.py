"""How soon a message is a signal in the process that subscribed, beside a direct sigqueue(3).

Theory of operation
    The receiver, a C program, sleeps in sigwaitinfo(2). Either another C program sends it signals by itself;
    or it publishes (C client), and the bridge, whose binding is to the directory of pid files in which the
    receiver has put its own, makes signals of the messages. Beside it a Python program publishes, which is
    shown and not judged: what Python does until it sleeps again is not the channel's. The value is the time
    of sending, so each way's whole delay is measured by one clock. Between two messages there is a pause: all
    sleep when one is sent. All ways take turns, in a placement; the median of their medians' ratios is the
    figure.

    Where each end has a core of its own, the bridge is where the scheduler likes. In free placement a pair is
    put on one core or on two, and three are not put alike: that is shown, and not judged.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench.cases import PAUSE_NS
from tests.bench.results import Results
from tests.bench.site import PLACEMENTS, Daemon, Site, wait_for
from tests.support.daemon import LOCAL_ONLY

SIGNAL: Final = 3
"""Above RTMIN."""
CHANNEL: Final = "bench.signal"
HEADERS: Final = Path(__file__).resolve().parents[2] / "clients" / "c"
SKIPPED: Final = 50
WAIT_S: Final = 60.0


def measure(results: Results, count: int, rounds: int) -> None:
    """Measure ``count`` signals a run, and note medians and ratios."""
    for placement in PLACEMENTS:
        taken: dict[str, list[float]] = {}
        with Site(placement) as site, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            ways = _ways(site, Path(folder), stack, count + SKIPPED)
            for _ in range(rounds):
                for name, way in ways.items():
                    taken.setdefault(name, []).append(way())
        for name, times_us in taken.items():
            results.singles[f"{name}, {placement}, p50 us"] = statistics.median(times_us)
        results.singles[f"signal by sigqueue, {placement}"] = statistics.median(
            ours / theirs
            for ours, theirs in zip(taken["signal of a message"], taken["sigqueue"], strict=True)
        )


def _ways(site: Site, folder: Path, stack: ExitStack, count: int) -> dict[str, Callable[[], float]]:
    import towpath

    program = str(folder / "signal_ends")
    source = str(Path(__file__).parent / "mechanisms" / "signal_ends.c")
    flags = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", f"-I{HEADERS}")
    subprocess.run(["gcc", *flags, "-o", program, source], check=True)
    pid_file = folder / "subscribers" / "receiver.pid"
    pid_file.parent.mkdir()
    daemon = Daemon(folder, LOCAL_ONLY)
    stack.callback(daemon.close)
    client = stack.enter_context(towpath.connect(daemon.socket))
    client.declare(CHANNEL)
    client.bind(CHANNEL, f"signal:RTMIN+{SIGNAL}@{pid_file.parent}/", direction="out")
    publisher = stack.enter_context(client.publisher(CHANNEL))
    site.pin(0)  # and the senders with it; the daemon is where it likes
    there = ["taskset", "-c", str(site.core(1))] if site.placement == "two cores" else []

    def run(send: Callable[[int], None]) -> float:
        command = [*there, program, "receive", str(SIGNAL), str(count), str(SKIPPED), str(pid_file)]
        receiver = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            wait_for(pid_file.exists, "the receiver")
            send(receiver.pid)
            told, _ = receiver.communicate(timeout=WAIT_S)
        finally:
            receiver.kill()
            receiver.wait()
            pid_file.unlink(missing_ok=True)
        return float(json.loads(told)["p50_us"])

    def send(how: str, what: object, whither: object) -> None:
        command = [program, how, str(what), str(count), str(PAUSE_NS), str(whither)]
        subprocess.run(command, check=True, timeout=WAIT_S)

    def publish(_: int) -> None:
        for _ in range(count):
            time.sleep(PAUSE_NS / 1e9)
            publisher.publish(time.monotonic_ns().to_bytes(8, "little"))

    return {
        "sigqueue": lambda: run(lambda pid: send("send", SIGNAL, pid)),
        "signal of a message": lambda: run(lambda _: send("publish", CHANNEL, daemon.socket)),
        "signal of a message from Python": lambda: run(publish),
    }
