"""deploy/container, tried with the kernel's namespaces: who shares what compose.yaml says joins; what is not
shared is lost.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import towpath
from tests.container.containers import DEPLOY, ROOT, Host, Service, inner_pid, instructions, services
from tests.support.daemon import wait_until

SERVICES = services()
LIBRARY = SERVICES["library"]
KERNEL = SERVICES["kernel"]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """The daemon in a container of its own, with the command of the image."""
    host = Host(tmp_path_factory.mktemp("host"))
    try:
        (command,) = (json.loads(rest) for word, rest in instructions() if word == "CMD")
        daemon = host.start(SERVICES["towpath"], *command)
        assert daemon.stderr is not None
        for line in daemon.stderr:
            if " daemon.ready " in line:
                break
        else:
            raise AssertionError(f"the daemon ended: {daemon.poll()}")
        yield host
    finally:
        host.close()


@pytest.fixture(scope="module")
def client(host: Host) -> Iterator[towpath.Client]:
    """A client outside of all containers, for what is not to be tried."""
    # Not by its own path, which may be longer than that of a socket can be.
    place = os.open(host.volume("run"), os.O_PATH)
    with towpath.connect(f"/proc/self/fd/{place}/towpath.sock") as client:
        yield client
    os.close(place)


def wait_subscribed(client: towpath.Client, channel: str, count: int = 1) -> None:
    wait_until(lambda: client.channel_info(channel).subscribers == count)


def test_the_socket_alone_joins_programs_of_two_containers(host: Host, client: towpath.Client) -> None:
    """Over rings: neither /dev/shm, nor the IPC, PID or network namespace is shared."""
    host.run(LIBRARY, "towpath", "declare", "plant.temp")
    subscriber = host.start(LIBRARY, "towpath", "sub", "plant.temp", "--count", "20000")
    wait_subscribed(client, "plant.temp")
    host.run(LIBRARY, "sh", "-c", "seq 20000 | towpath pub plant.temp")
    output, complaints = subscriber.communicate(timeout=60)
    assert output == "".join(f"{number}\n" for number in range(1, 20_001)), complaints


def test_a_pid_is_hidden_and_a_death_is_seen_all_the_same(host: Host, client: towpath.Client) -> None:
    client.declare("plant.hidden")
    subscriber = host.start(LIBRARY, "towpath", "sub", "plant.hidden")
    wait_subscribed(client, "plant.hidden")
    (session,) = (each for each in client.status().session_list if each.name == "towpath sub")
    assert (session.pid, session.principal) == (0, f"uid:{os.getuid()}")
    os.kill(inner_pid(subscriber), signal.SIGKILL)
    subscriber.communicate(timeout=60)
    wait_subscribed(client, "plant.hidden", 0)
    # A publisher is not held up by it.
    host.run(LIBRARY, "sh", "-c", "seq 100000 | towpath pub plant.hidden")


def test_a_fifo_below_the_shared_directory(host: Host, client: towpath.Client) -> None:
    client.declare("host.load")
    client.bind("host.load", "fifo:/run/towpath/load.fifo", direction="in")
    subscriber = host.start(LIBRARY, "towpath", "sub", "host.load", "--count", "2")
    wait_subscribed(client, "host.load")
    writer = host.start(SERVICES["files"])
    output, _ = subscriber.communicate(timeout=60)
    assert len(output.splitlines()) == 2 and "/" in output
    writer.kill()


def test_a_message_queue_of_the_shared_namespace(host: Host, client: towpath.Client) -> None:
    client.declare("plant.alarms")
    client.bind("plant.alarms", "mq:/plant-alarms", direction="in")
    subscriber = host.start(LIBRARY, "towpath", "sub", "plant.alarms", "--count", "1")
    wait_subscribed(client, "plant.alarms")
    host.run(KERNEL)
    assert subscriber.communicate(timeout=60)[0] == "too hot\n"
    # The same program in a namespace of its own does not find it.
    assert "ExistentialError" in host.run(Service("alone"), *KERNEL.command, status=1)


WRITE_REGION = """
import mmap, posix_ipc
memory = posix_ipc.SharedMemory("/frame", posix_ipc.O_CREX, size=4096)
ready = posix_ipc.Semaphore("/frame-ready", posix_ipc.O_CREX, initial_value=0)
region = mmap.mmap(memory.fd, 4096)
print("made", flush=True)
posix_ipc.Semaphore("/frame-go", posix_ipc.O_CREAT).acquire(timeout=60)
region[:5] = b"frame"
ready.release()
posix_ipc.Semaphore("/frame-done", posix_ipc.O_CREAT).acquire(timeout=60)
"""
POST = "import posix_ipc, sys; posix_ipc.Semaphore(sys.argv[1], posix_ipc.O_CREAT).release()"


def test_shared_memory_and_semaphores_of_the_shared_namespace(host: Host, client: towpath.Client) -> None:
    client.declare("camera")
    owner = host.start(KERNEL, "python", "-c", WRITE_REGION)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "made\n"
    client.bind("camera", "shm:/frame", direction="in", options={"semaphore": "/frame-ready", "length": "5"})
    subscriber = host.start(LIBRARY, "towpath", "sub", "camera", "--count", "1")
    wait_subscribed(client, "camera")
    host.run(KERNEL, "python", "-c", POST, "/frame-go")
    assert subscriber.communicate(timeout=60)[0] == "frame\n"
    host.run(KERNEL, "python", "-c", POST, "/frame-done")
    assert owner.wait(60) == 0


def test_the_network_is_not_shared(host: Host) -> None:
    """What the gateways offer on 127.0.0.1 is the daemon's container's own."""
    complaints = host.run(LIBRARY, "towpath", "status", "--url", "grpc://127.0.0.1:50551", status=69)
    assert "127.0.0.1:50551" in complaints


# ---- what is written


def test_the_containerfile_copies_what_there_is_and_starts_what_there_is() -> None:
    known = {"FROM", "RUN", "COPY", "WORKDIR", "USER", "ENV", "VOLUME", "STOPSIGNAL", "CMD"}
    assert {word for word, _ in instructions()} == known
    stages = set()
    for word, rest in instructions():
        if word == "FROM" and " AS " in rest:
            stages.add(rest.rpartition(" ")[2])
        if word == "COPY":
            source = rest.split()[0]
            assert (
                source.removeprefix("--from=") in stages
                if source.startswith("--")
                else (ROOT / source).exists()
            )
        if word == "RUN":
            subprocess.run(["sh", "-n", "-c", rest], check=True)
    text = (DEPLOY / "Containerfile").read_text()
    extras = set(re.findall(r"\[([a-z,]+)\]", text))
    assert extras == {"broker,zmq,grpc,mq,sysv"}


def test_compose_is_what_the_page_says() -> None:
    assert set(SERVICES) == {"towpath", "library", "files", "kernel"}
    assert (SERVICES["towpath"].ipc, KERNEL.ipc) == ("shareable", "towpath")
    assert Service("library", {"run": "/run/towpath"}, command=LIBRARY.command) == LIBRARY
    assert KERNEL.volumes == {}
    text = (DEPLOY / "compose.yaml").read_text()
    named = {volume for service in SERVICES.values() for volume in service.volumes}
    assert set(re.findall(r"^  (\w+):$", text.partition("\nvolumes:\n")[2], re.MULTILINE)) == named
    assert "\t" not in text
    context, file = re.findall(r"^      (?:context|dockerfile): (\S+)$", text, re.MULTILINE)
    assert (DEPLOY / context).resolve() == ROOT
    assert (ROOT / file) == DEPLOY / "Containerfile"
    page = (DEPLOY / "README.md").read_text()
    for words in ("-v run:/run/towpath", "--ipc container:towpath", "--ipc shareable"):
        assert words in page


def test_nothing_of_the_host_is_left(tmp_path: Path) -> None:
    """A container's root is empty but for what it was given."""
    host = Host(tmp_path)
    try:
        listed = host.run(Service("alone"), "ls", "/dev/shm", "/run").split()
        assert [name for name in listed if name != "mount"] == ["/dev/shm:", "/run:"]  # mount(8) notes things
        assert host.run(Service("alone"), "sh", "-c", "echo $$; cd /proc; echo [0-9]*") == "1\n1\n"
    finally:
        host.close()
