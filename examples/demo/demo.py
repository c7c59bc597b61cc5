"""`make demo`: programs that know nothing of each other talk through Towpath, and every line is counted.

Starts a daemon of its own in a temporary directory, on free ports, and ends it again; nothing else on the
machine is touched. Exits with 0 only if every route carried every line, in order.

Reading order: `main` tells the story; `routes.py` starts the programs of a route and checks what they saw;
the other files are those programs, each a few lines that could be yours.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from routes import BULK, HERE, PER_SECOND, Daemon, Route, carry_back, carry_in

import towpath

CONFIG = """
[daemon]
runtime_dir = "{root}/run"
state_dir = "{root}/state"
[zeromq]
sub = "tcp://127.0.0.1:0"
push = "tcp://127.0.0.1:0"
rpc = "tcp://127.0.0.1:0"
[grpc]
listen = "127.0.0.1:0"
"""

SAMPLES = 3
"""Lines of each real program that the demo waits for."""


@contextlib.contextmanager
def running_daemon(root: Path) -> Iterator[Daemon]:
    """Start `towpath serve`, wait until it is ready, and stop it at the end."""
    config = root / "towpath.toml"
    config.write_text(CONFIG.format(root=root))
    log = (root / "daemon.log").open("wb")
    command = [sys.executable, "-m", "towpath", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        socket = root / "run" / "towpath.sock"
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not start:\n{(root / 'daemon.log').read_text()}")
            time.sleep(0.02)
        client = towpath.connect(str(socket), timeout=30, name="demo")
        while True:
            gateways = {gateway.name: gateway for gateway in client.status().gateways}
            if gateways and all(gateway.state == "running" for gateway in gateways.values()):
                break
            if time.monotonic() > deadline:
                raise RuntimeError(f"a gateway did not start:\n{(root / 'daemon.log').read_text()}")
            time.sleep(0.05)
        zeromq, grpc = gateways["zeromq"].endpoints, gateways["grpc"].endpoints
        yield Daemon(client, str(socket), zeromq["sub"], zeromq["push"], grpc["listen"], root)
        client.close()
    finally:
        process.terminate()
        process.wait(15)
        log.close()


def step(number: int, text: str) -> None:
    print(f"\n{number}. {text}", flush=True)


def table(routes: list[Route]) -> str:
    """Lay the results out."""
    rows = [("from", "through", "to", "lines", "lost", "in order", "p50 ms", "p99 ms")]
    for route in routes:
        rows.append(
            (
                route.origin,
                route.through,
                route.to,
                f"{route.count:,}",
                f"{route.expected - route.count:,}",
                "no" if route.wrong else "yes",
                "-" if route.p50_us is None else f"{route.p50_us / 1000:.2f}",
                "-" if route.p99_us is None else f"{route.p99_us / 1000:.2f}",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join("   " + line for line in lines)


def real_program() -> str:
    """A command that writes a line a second."""
    if shutil.which("vmstat"):
        return "vmstat 1"
    return "sh -c 'while :; do cat /proc/loadavg; sleep 1; done'"


def story(daemon: Daemon) -> list[Route]:
    """Run every route; returns them with what they saw."""
    command = real_program()
    step(
        2,
        f"Two real programs: `{command}` on a pipe, and a log file that is being written, followed by\n"
        "   `tail -f` into a FIFO. Neither knows Towpath. Three programs listen to each: one over shared\n"
        "   memory, one with a plain ZeroMQ SUB socket, one on a gRPC stream.",
    )
    with subprocess.Popen(
        [sys.executable, str(HERE / "write_log.py"), str(daemon.root / "app.log")]
    ) as writer:
        try:
            routes = carry_in(daemon, "vmstat", f"pipe:{command}", "pipe", None, SAMPLES, show=True)
            follow = ["tail", "-n", "+1", "-f", str(daemon.root / "app.log")]
            routes += carry_in(daemon, "log", "", "FIFO", follow, SAMPLES, show=True)
        finally:
            writer.terminate()

    step(3, f"The same routes with {BULK:,} numbered lines each, written at {PER_SECOND:,} a second.")
    count = [sys.executable, str(HERE / "count.py"), str(BULK), str(PER_SECOND)]
    pipe = "pipe:" + " ".join(count)
    routes += carry_in(daemon, "bulk.pipe", pipe, "pipe", None, BULK, show=False)
    routes += carry_in(daemon, "bulk.fifo", "", "FIFO", count, BULK, show=False)

    step(
        4,
        f"The way back: {BULK:,} lines published by gRPC, and {BULK:,} pushed by a plain ZeroMQ PUSH\n"
        "   socket, come out of FIFOs, where a shell reads them with `read`.",
    )
    routes += [
        carry_back(daemon, "back.grpc", "gRPC", ["send_grpc.py", daemon.grpc], count),
        carry_back(daemon, "back.zeromq", "ZeroMQ PUSH", ["send_zeromq.py", daemon.push], count),
    ]
    return routes


def main() -> int:
    start = time.monotonic()
    print("Towpath's demo. It starts a daemon of its own, in a temporary directory, and ends it again.")
    with tempfile.TemporaryDirectory(prefix="towpath-demo-") as directory:
        step(1, "Starting `towpath serve`: the core, and the gateways bridge, zeromq and grpc.")
        with running_daemon(Path(directory)) as daemon:
            print(f"   ready after {time.monotonic() - start:.1f} s: socket {daemon.socket},")
            print(f"   ZeroMQ {daemon.sub} (SUB) and {daemon.push} (PUSH), gRPC {daemon.grpc}")
            routes = story(daemon)
            step(
                5,
                "What each route carried. Times are from the moment a line was written, or published,\n"
                "   to the moment its receiver had it.",
            )
            print(table(routes))
    bad = [route for route in routes if not route.is_good]
    for route in bad:
        print(f"\nFAILED: {route.origin} -> {route.to}: {route.count} of {route.expected}; {route.trouble}")
    total = sum(route.count for route in routes)
    if bad:
        print(f"\n{len(bad)} of {len(routes)} routes lost or reordered something.")
        return 1
    print(
        f"\nAll {len(routes)} routes carried every line in order: {total:,} lines in "
        f"{time.monotonic() - start:.0f} s.\nNext: the README's first steps, with .venv/bin/towpath serve."
    )
    return 0


if __name__ == "__main__":
    os.chdir(HERE)
    sys.exit(main())
