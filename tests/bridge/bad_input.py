"""What can be wrong with a binding's place, and with what comes from there: one case each, and real.

A case is given a rig and a place of its own, starts the adapter that its URL names, and returns the error
that came of it. ``test_bad_input`` holds them against what is expected.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import posix_ipc
import sysv_ipc

from tests.bridge.rig import Rig, write_all
from tests.bridge.unix_rig import connected, listening
from towpath.bindings import check_options, parse_url
from towpath.errors import (
    BadFrame,
    BindingFailed,
    FrameTooLarge,
    InvalidArgument,
    MessageTooLarge,
    PermissionDenied,
    TowpathError,
)
from towpath.model import BindingInfo, BindingReport, Direction
from towpath_broker.gateways.bridge.making import make_adapter

NOBODY: Final = 65_534


class Site:
    """Where a case happens.

    Attributes:
        path: in a folder of its own, where nothing is.
        name: of a queue, a segment or a semaphore, that nobody has.
        key: the same for System V.
    """

    def __init__(self, rig: Rig, path: Path) -> None:
        self.rig = rig
        self.path = path
        self.name = f"/towpath-bad-{os.getpid()}-{os.urandom(4).hex()}"
        self.key = int.from_bytes(os.urandom(3), "big") | 0x70000000

    def bind(self, url: str, direction: Direction, *, principal: str = "uid:0", **options: str) -> None:
        """Start the adapter that a URL names, as the daemon does."""
        scheme, _ = parse_url(url)
        stated = check_options(scheme, direction, options)
        info = BindingInfo(1, "test", url, direction, stated, principal, BindingReport())
        rig = self.rig
        rig.start(make_adapter(info, rig.carrier, rig.tally, rig.watcher, rig.keeping))

    async def raised(self) -> TowpathError:
        """The error with which the adapter ends."""
        try:
            await self.rig.ended()
        except TowpathError as error:
            return error
        raise AssertionError("the adapter ended without an error")

    async def told(self) -> TowpathError:
        """The error that a running adapter notes of what it did not carry."""
        rig = self.rig
        await rig.until(lambda: rig.tally.last_error is not None)
        error = rig.tally.last_error
        assert error is not None and rig.tally.refused == 1
        await rig.stop()
        return error

    async def running(self) -> None:
        """Wait until the adapter carries, or waits for somebody."""
        await self.rig.until(lambda: self.rig.tally.state != "pending")

    def clean(self) -> None:
        """Remove what a case has left."""
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_message_queue(self.name)
        with contextlib.suppress(posix_ipc.ExistentialError):
            posix_ipc.unlink_shared_memory(self.name)
        with contextlib.suppress(sysv_ipc.ExistentialError):
            sysv_ipc.MessageQueue(self.key).remove()


Bring = Callable[[Site], Awaitable[TowpathError]]


@dataclass(frozen=True)
class Case:
    """One thing that can be wrong.

    Attributes:
        scheme: of the adapter.
        what: in words; the published table has them.
        error: its class.
        text: a part of its message.
        retryable: whether it is tried again.
    """

    scheme: str
    what: str
    error: type[TowpathError]
    text: str
    retryable: bool
    bring: Bring


CASES: Final[list[Case]] = []


def case(
    scheme: str, what: str, error: type[TowpathError], text: str, *, retryable: bool = False
) -> Callable[[Bring], Bring]:
    """Register what brings a case about."""

    def register(bring: Bring) -> Bring:
        CASES.append(Case(scheme, what, error, text, retryable, bring))
        return bring

    return register


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Be somebody whom permissions concern; a user other than root is that already."""
    if os.geteuid() != 0:
        yield
        return
    os.setresgid(NOBODY, NOBODY, 0)
    os.setresuid(NOBODY, NOBODY, 0)  # the saved one leads back
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)


async def denied(site: Site, url: str, direction: Direction, **options: str) -> TowpathError:
    """Bind without the permissions that it takes."""
    os.chmod(site.path.parent, 0o755)
    with without_privileges():
        site.bind(url, direction, **options)
        return await site.raised()


def file_at(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


# -- fifo ----------------------------------------------------------------------------------------------------


@case("fifo", "a file that is no FIFO", BindingFailed, "is not a FIFO")
async def _(site: Site) -> TowpathError:
    file_at(site.path)
    site.bind(f"fifo:{site.path}", "in")
    return await site.raised()


@case("fifo", "a symbolic link", BindingFailed, "symbolic link")
async def _(site: Site) -> TowpathError:
    os.symlink("/dev/null", site.path)
    site.bind(f"fifo:{site.path}", "out")
    return await site.raised()


@case("fifo", "a folder that is not there", BindingFailed, "No such file", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"fifo:{site.path}/x", "in")
    return await site.raised()


@case("fifo", "permissions", BindingFailed, "Permission denied", retryable=True)
async def _(site: Site) -> TowpathError:
    os.mkfifo(site.path, 0o000)
    return await denied(site, f"fifo:{site.path}", "in")


@case("fifo", "a frame that is too long", FrameTooLarge, "11 bytes; 10 are allowed")
async def _(site: Site) -> TowpathError:
    site.bind(f"fifo:{site.path}", "in", frame_bytes_max="10", framing="length")
    await site.running()
    with open_fifo(site.path) as end:
        await write_all(end, b"\0\0\0\x0b" + b"x" * 11)
        return await site.told()


@case("fifo", "a frame that is cut short", BadFrame, "stopped inside a frame, 1 bytes")
async def _(site: Site) -> TowpathError:
    site.bind(f"fifo:{site.path}", "in")
    await site.running()
    with open_fifo(site.path) as end:
        await write_all(end, b"one\nt")
        await site.rig.until_published(1)
    await site.rig.stop()
    assert site.rig.tally.last_error is not None
    return site.rig.tally.last_error


@case("fifo", "a path that is removed", BindingFailed, "was removed or replaced", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"fifo:{site.path}", "in")
    await site.running()
    os.unlink(site.path)
    return await site.raised()


@contextlib.contextmanager
def open_fifo(path: Path) -> Iterator[int]:
    end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield end
    finally:
        os.close(end)


# -- pipe ----------------------------------------------------------------------------------------------------


@case("pipe", "a command that is not there", BindingFailed, "No such file")
async def _(site: Site) -> TowpathError:
    site.bind(f"pipe:{site.path}", "in")
    return await site.raised()


@case("pipe", "permissions", BindingFailed, "Permission denied")
async def _(site: Site) -> TowpathError:
    file_at(site.path)
    site.bind(f"pipe:{site.path}", "in")
    return await site.raised()


@case("pipe", "a frame that is too long", FrameTooLarge, "6 bytes; 5 are allowed")
async def _(site: Site) -> TowpathError:
    site.bind("pipe:sh -c 'echo 123456; exec sleep 1000'", "in", frame_bytes_max="5")
    return await site.told()


@case("pipe", "a frame that is cut short", BadFrame, "ended inside a frame, after 2 bytes")
async def _(site: Site) -> TowpathError:
    site.bind("pipe:printf '\\000\\000'", "in", framing="length", restart="never")
    await site.rig.ended()
    assert site.rig.tally.last_error is not None
    return site.rig.tally.last_error


@case("pipe", "a command that fails", BindingFailed, "exited with 3")
async def _(site: Site) -> TowpathError:
    site.bind("pipe:sh -c 'exit 3'", "in", restart="never")
    await site.rig.ended()
    assert site.rig.tally.last_error is not None
    return site.rig.tally.last_error


# -- mq ------------------------------------------------------------------------------------------------------


@case("mq", "a name that cannot be", InvalidArgument, "one slash")
async def _(site: Site) -> TowpathError:
    return refused(site, f"mq:{site.name}/x", "in")


@case("mq", "a queue that is not there", BindingFailed, "there is no message queue", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"mq:{site.name}", "in", create="false")
    return await site.raised()


@case("mq", "more than the host allows", BindingFailed, "is more than fs.mqueue.msg")
async def _(site: Site) -> TowpathError:
    site.bind(f"mq:{site.name}", "in", msgsize=str(16 << 20))
    return await site.raised()


@case("mq", "permissions", BindingFailed, "may not be read", retryable=True)
async def _(site: Site) -> TowpathError:
    queue = posix_ipc.MessageQueue(site.name, posix_ipc.O_CREX, mode=0, max_messages=1, max_message_size=8)
    queue.close()
    return await denied(site, f"mq:{site.name}", "in")


@case("mq", "a message that is too long", MessageTooLarge, "9 bytes; the queue takes 8")
async def _(site: Site) -> TowpathError:
    site.bind(f"mq:{site.name}", "out", msgsize="8", maxmsg="2")
    await site.running()
    site.rig.carrier.send([b"123456789"])
    return await site.told()


@case("mq", "a piece of a message, and not its rest", BadFrame, "no piece of one")
async def _(site: Site) -> TowpathError:
    site.bind(f"mq:{site.name}", "in", split="true", maxmsg="2", msgsize="64")
    await site.running()
    queue = posix_ipc.MessageQueue(site.name)
    queue.send(b"x")
    queue.close()
    return await site.told()


@case("mq", "a queue that is removed", BindingFailed, "was removed", retryable=True)
async def _(site: Site) -> TowpathError:
    posix_ipc.MessageQueue(site.name, posix_ipc.O_CREX, max_messages=1, max_message_size=8).close()
    site.bind(f"mq:{site.name}", "in", create="false")
    await site.running()
    posix_ipc.unlink_message_queue(site.name)
    return await site.raised()


# -- sysv ----------------------------------------------------------------------------------------------------


@case("sysv", "a key that cannot be", InvalidArgument, "no key")
async def _(site: Site) -> TowpathError:
    return refused(site, "sysv:0", "in")


@case("sysv", "a file for its key that is not there", BindingFailed, "no key for", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"sysv:{site.path}:65", "in")
    return await site.raised()


@case("sysv", "a queue that is not there", BindingFailed, "there is no System V", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"sysv:{site.key:#x}", "in", create="false")
    return await site.raised()


@case("sysv", "permissions", BindingFailed, "may not use", retryable=True)
async def _(site: Site) -> TowpathError:
    sysv_ipc.MessageQueue(site.key, sysv_ipc.IPC_CREX, mode=0)
    return await denied(site, f"sysv:{site.key:#x}", "in")


@case("sysv", "a message that is too long", MessageTooLarge, "the queue takes")
async def _(site: Site) -> TowpathError:
    site.bind(f"sysv:{site.key:#x}", "out")
    await site.running()
    site.rig.carrier.send([b"x" * (1 << 20)])
    return await site.told()


@case("sysv", "a queue that is removed", BindingFailed, "System V message queue", retryable=True)
async def _(site: Site) -> TowpathError:
    queue = sysv_ipc.MessageQueue(site.key, sysv_ipc.IPC_CREX)
    site.bind(f"sysv:{site.key:#x}", "in", create="false")
    await site.running()
    queue.remove()
    return await site.raised()


# -- signal --------------------------------------------------------------------------------------------------


@case("signal", "a signal that is none", InvalidArgument, "names no signal")
async def _(site: Site) -> TowpathError:
    return refused(site, "signal:NONE", "in")


@case("signal", "a signal that the bridge needs itself", InvalidArgument, "means something to the bridge")
async def _(site: Site) -> TowpathError:
    return refused(site, "signal:TERM", "in")


@case("signal", "a process that has ended", BindingFailed, "has ended")
async def _(site: Site) -> TowpathError:
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    site.bind(f"signal:USR1@{ended.pid}", "out")
    return await site.raised()


@case("signal", "a process that ends", BindingFailed, "has ended")
async def _(site: Site) -> TowpathError:
    process = await asyncio.create_subprocess_exec("cat", stdin=asyncio.subprocess.PIPE)
    site.rig.keeping.is_new = True
    site.bind(f"signal:USR1@{process.pid}", "out")
    await site.running()
    process.kill()
    await process.wait()
    return await site.raised()


@case("signal", "a pid file that is none", BindingFailed, "is no pid file", retryable=True)
async def _(site: Site) -> TowpathError:
    site.path.write_text("none\n")
    site.bind(f"signal:USR1@{site.path}", "out")
    return await site.raised()


@case("signal", "permissions", PermissionDenied, "may not signal process")
async def _(site: Site) -> TowpathError:
    site.rig.keeping.is_new = True
    site.bind(f"signal:USR1@{os.getpid()}", "out", principal="uid:4000000000")
    return await site.raised()


@case("signal", "a message without a value", BadFrame, "no value for a signal")
async def _(site: Site) -> TowpathError:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        site.rig.keeping.is_new = True
        site.bind(f"signal:USR1@{os.getpid()}", "out", format="text")
        await site.running()
        site.rig.carrier.send([b"forty-two"])
        return await site.told()
    finally:
        signal.signal(signal.SIGUSR1, before)


# -- shm -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def segment(site: Site, size: int, mode: int = 0o600) -> Iterator[int]:
    """A segment of shared memory, by its descriptor."""
    made = posix_ipc.SharedMemory(site.name, posix_ipc.O_CREX, mode=mode, size=size)
    try:
        yield made.fd
    finally:
        made.close_fd()


@case("shm", "a segment that is not there", BindingFailed, "No such file", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"shm:{site.name}", "in")
    return await site.raised()


@case(
    "shm",
    "a segment that is too short",
    BindingFailed,
    "100 bytes, and the binding needs 164",
    retryable=True,
)
async def _(site: Site) -> TowpathError:
    with segment(site, 100):
        site.bind(f"shm:{site.name}@64", "in", length="100")
        return await site.raised()


@case("shm", "permissions", BindingFailed, "Permission denied", retryable=True)
async def _(site: Site) -> TowpathError:
    with segment(site, 100, 0):
        return await denied(site, f"shm:{site.name}", "in")


@case("shm", "a segment that is made shorter", BindingFailed, "the binding needs", retryable=True)
async def _(site: Site) -> TowpathError:
    with segment(site, 8192) as memory:
        site.bind(f"shm:{site.name}", "in", poll_ms="1")
        await site.running()
        os.ftruncate(memory, 100)
        return await site.raised()


@case("shm", "a segment that is removed", BindingFailed, "was removed or replaced", retryable=True)
async def _(site: Site) -> TowpathError:
    with segment(site, 100):
        site.bind(f"shm:{site.name}", "in")
        await site.running()
        posix_ipc.unlink_shared_memory(site.name)
        return await site.raised()


@case("shm", "a message that is too long", MessageTooLarge, "101 bytes; the region 100")
async def _(site: Site) -> TowpathError:
    with segment(site, 100):
        site.bind(f"shm:{site.name}", "out")
        await site.running()
        site.rig.carrier.send([b"x" * 101])
        return await site.told()


@case("shm", "a length that cannot be", BadFrame, "the length says 4294967295 bytes")
async def _(site: Site) -> TowpathError:
    with segment(site, 128) as memory:
        site.bind(f"shm:{site.name}@64", "in", length_offset="8", generation_offset="0", poll_ms="1")
        await site.running()
        os.pwrite(memory, b"\xff\xff\xff\xff", 8)
        os.pwrite(memory, b"\x02\0\0\0", 0)
        return await site.told()


# -- unix ----------------------------------------------------------------------------------------------------


@case("unix", "a path that is too long", InvalidArgument, "more than 107 bytes")
async def _(site: Site) -> TowpathError:
    return refused(site, f"unix:/{'x' * 107}", "in")


@case("unix", "a file that is no socket", BindingFailed, "is not a socket")
async def _(site: Site) -> TowpathError:
    file_at(site.path)
    site.bind(f"unix:{site.path}", "in")
    return await site.raised()


@case("unix", "a file that is no socket, to connect to", BindingFailed, "is not a socket")
async def _(site: Site) -> TowpathError:
    file_at(site.path)
    site.bind(f"unix:{site.path}", "out", role="connect")
    return await site.raised()


@case("unix", "a folder that is not there", BindingFailed, "No such file", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"unix:{site.path}/x", "in")
    return await site.raised()


@case("unix", "permissions to make it", BindingFailed, "Permission denied", retryable=True)
async def _(site: Site) -> TowpathError:
    os.mkdir(site.path)
    os.chmod(site.path, 0o555)
    return await denied(site, f"unix:{site.path}/x", "in")


@case("unix", "permissions to connect", BindingFailed, "Permission denied", retryable=True)
async def _(site: Site) -> TowpathError:
    with listening(site.path):
        os.chmod(site.path, 0)
        return await denied(site, f"unix:{site.path}", "out", role="connect")


@case("unix", "permissions to give it away", BindingFailed, "Operation not permitted", retryable=True)
async def _(site: Site) -> TowpathError:
    os.mkdir(site.path)
    os.chmod(site.path, 0o777)
    return await denied(site, f"unix:{site.path}/x", "in", owner="0")


@case("unix", "an owner who does not exist", InvalidArgument, "there is no user")
async def _(site: Site) -> TowpathError:
    site.bind(f"unix:{site.path}", "in", owner="no-such-user")
    return await site.raised()


@case("unix", "a socket that another program has", BindingFailed, "another program has", retryable=True)
async def _(site: Site) -> TowpathError:
    with listening(site.path):
        site.bind(f"unix:{site.path}", "in")
        return await site.raised()


@case("unix", "a socket of another type", BindingFailed, "of another type than stream")
async def _(site: Site) -> TowpathError:
    with listening(site.path, "dgram"):
        site.bind(f"unix:{site.path}", "out", role="connect")
        return await site.raised()


@case("unix", "a direction that it cannot have", InvalidArgument, "carries in only")
async def _(site: Site) -> TowpathError:
    return refused(site, f"unix:{site.path}", "out", socket="dgram")


@case("unix", "a frame that is too long", FrameTooLarge, "11 bytes; 10 are allowed")
async def _(site: Site) -> TowpathError:
    return await sent(site, b"x" * 11 + b"\n", frame_bytes_max="10")


@case("unix", "a packet that is too long", FrameTooLarge, "11 bytes; 10 are allowed")
async def _(site: Site) -> TowpathError:
    return await sent(site, b"x" * 11, socket="dgram", packet_bytes_max="10")


@case("unix", "a frame that is cut short", BadFrame, "stopped inside a frame, 3 bytes")
async def _(site: Site) -> TowpathError:
    return await sent(site, b"abc")


@case("unix", "a socket that is removed", BindingFailed, "was removed or replaced", retryable=True)
async def _(site: Site) -> TowpathError:
    site.bind(f"unix:{site.path}", "in")
    await site.running()
    os.unlink(site.path)
    return await site.raised()


async def sent(site: Site, data: bytes, **options: str) -> TowpathError:
    """Send something to a binding and go away."""
    site.bind(f"unix:{site.path}", "in", **options)
    await site.running()
    with connected(site.path, options.get("socket", "stream")) as end:
        await asyncio.get_running_loop().sock_sendall(end, data)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_WR)
        return await site.told()


def refused(site: Site, url: str, direction: Direction, **options: str) -> TowpathError:
    """The error with which a definition is refused, before anything is tried."""
    try:
        site.bind(url, direction, **options)
    except TowpathError as error:
        return error
    raise AssertionError("it was not refused")
