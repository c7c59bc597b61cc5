"""``towpath pub NAME DATA ...`` without the rest of Towpath: what a shell's loop runs a thousand times.

Theory of operation
    Most of such a process's time goes into importing modules: protobuf, argparse and the client take far
    longer than to say one thing to the daemon. So the plain form, a name and a few words with ``--socket`` at
    most, is taken here. It writes the three frames that it needs byte by byte (hello, who subscribes if there
    is a terminal to tell, publish) and imports nothing that is not compiled into the interpreter.

    Whatever is not plain, other options, a name that is not surely one, no daemon, an answer that is not what
    was expected, is left to the whole command line, which says everything it has to say. That is possible as
    long as nothing was published. After that there is one answer left, and if it is a refusal, its text is
    read with protobuf.

Invariants
    The frames are those of the contract, byte for byte what protobuf makes of them; a test compares.
    What the whole command line would do, this does: output, exit code, order of messages.

Not here: everything else (``app``). Ctrl-C ends the process by SIGINT, as nothing here catches it.
"""

from __future__ import annotations

import _socket
import os

TYPE_CHECKING = False  # typing takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

HELLO_S = 5.0
"""As the whole command line waits for the daemon's welcome."""
BYTES_MAX = 64 << 10
PAYLOADS_MAX = 1_000
FRAME_BYTES_MAX = 1 << 20
_HELLO, _WELCOME, _GET_CHANNEL, _CHANNEL, _PUBLISH, _PUBLISHED = 7, 8, 24, 25, 40, 41
"""Fields of ``Frame``; see protos/towpath/v1/frame.proto."""


class _NotPlain(Exception):
    """The whole command line is to take over. Nothing was published."""


def run(arguments: Sequence[str]) -> int | None:
    """Publish, if that is all that is asked for.

    Args:
        arguments: what follows the program's name.

    Returns:
        The exit code; None when the whole command line is to do it.

    Raises:
        TowpathError: the daemon refused what was sent, or the connection broke then.
    """
    try:
        channel, payloads, path = _understand(arguments)
        sock = _connect(path)
    except _NotPlain:
        return None
    try:
        note = _prepare(sock, channel)
    except (_NotPlain, OSError):
        sock.close()
        return None
    if note:
        _tell(note)
    _publish(sock, channel, payloads)
    return 0


def _tell(note: bytes) -> None:
    try:  # noqa: SIM105  # contextlib would have to be imported
        os.write(2, note)
    except OSError:
        pass  # nobody to tell


def _understand(arguments: Sequence[str]) -> tuple[str, list[bytes], str]:
    """Return the channel, what to publish, and the socket's path, which may be empty.

    Raises:
        _NotPlain: there is more to it.
    """
    words = list(arguments)
    if not words or words[0] != "pub":
        raise _NotPlain
    path = ""
    if "--socket" in words:
        place = words.index("--socket")
        path = "".join(words[place + 1 : place + 2])
        del words[place : place + 2]
        if not path:
            raise _NotPlain
    if len(words) < 3 or len(words) > PAYLOADS_MAX or any(word.startswith("-") for word in words):
        raise _NotPlain
    channel = words[1]
    plain = channel.replace(".", "").replace("-", "").replace("_", "")
    if not (channel.isascii() and plain.isalnum() and len(channel) < 200) or channel[0] == "_":
        raise _NotPlain
    if "." in channel and not all(channel.split(".")):
        raise _NotPlain
    payloads = [os.fsencode(word) for word in words[2:]]
    if sum(map(len, payloads)) > BYTES_MAX:
        raise _NotPlain
    return channel, payloads, path


def _connect(path: str) -> _socket.socket:
    """Connect to the daemon, which is looked for as everywhere (``towpath.addresses``)."""
    environment = os.environ
    if not path and environment.get("TOWPATH_GATEWAY_FD"):
        raise _NotPlain
    try:
        for descriptor in (0, 1, 2):
            os.fstat(descriptor)
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    except OSError:
        raise _NotPlain from None
    for each in [path] if path else _candidates():
        try:
            sock.connect(each)
        except (OSError, ValueError):
            continue
        sock.settimeout(HELLO_S)
        return sock
    sock.close()
    raise _NotPlain


def _candidates() -> list[str]:
    if given := os.environ.get("TOWPATH_SOCKET"):
        return [given]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    paths = [f"{runtime}/towpath/towpath.sock"] if runtime else []
    return [*paths, "/run/towpath/towpath.sock", f"/tmp/towpath-{os.getuid()}/towpath.sock"]


def _prepare(sock: _socket.socket, channel: str) -> bytes:
    """Say hello, and ask who subscribes if somebody at a terminal would like to know; return the note for
    them.

    Raises:
        _NotPlain, OSError: not what was expected.
    """
    sock.sendall(hello_frame())
    welcome = _answer(sock, _WELCOME)
    if dict(fields(welcome)).get(1) != 1:
        raise _NotPlain
    if not os.isatty(2):
        return b""
    sock.sendall(channel_frame(channel))
    answer = dict(fields(_answer(sock, _CHANNEL))).get(1, b"")
    if not isinstance(answer, bytes):
        raise _NotPlain
    if dict(fields(answer)).get(5, 0):
        return b""
    return f"note: nobody subscribes to {channel} at the moment\n".encode()


def _publish(sock: _socket.socket, channel: str, payloads: list[bytes]) -> None:
    """Publish, and wait as long as it takes until the daemon has it."""
    sock.settimeout(None)
    try:
        sock.sendall(publish_frame(channel, payloads))
        body = _receive(sock)
    except OSError as error:
        raise _broken(error.strerror or "it was closed") from None
    if _PUBLISHED not in dict(fields(body)):
        from towpath import convert
        from towpath.v1.frame_pb2 import Frame

        raise convert.error_from_proto(Frame.FromString(body).error)


def _broken(why: str) -> Exception:
    from towpath.errors import ConnectionLost

    return ConnectionLost(
        f"the connection broke: {why}", hint="it is not known whether the message was published"
    )


# ---- frames


def hello_frame() -> bytes:
    """Hello, from ``towpath pub``."""
    from towpath._version import __version__

    software, name = f"towpath-python/{__version__}".encode(), b"towpath pub"
    return _frame(1, _HELLO, _number(1, 1) + _number(2, 1) + _bytes(3, software) + _bytes(4, name))


def channel_frame(channel: str) -> bytes:
    """What channel is this?"""
    return _frame(2, _GET_CHANNEL, _bytes(1, channel.encode()))


def publish_frame(channel: str, payloads: Sequence[bytes]) -> bytes:
    """Publish these."""
    body = _bytes(1, channel.encode()) + b"".join([_bytes(2, payload) for payload in payloads])
    return _frame(3, _PUBLISH, body)


def _frame(call: int, field: int, body: bytes) -> bytes:
    frame = _number(1, call) + _bytes(field, body)
    return len(frame).to_bytes(4, "little") + frame


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first."""
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)


def _answer(sock: _socket.socket, wanted: int) -> bytes:
    """Receive a frame, and return the body that it must have."""
    body = dict(fields(_receive(sock))).get(wanted)
    if not isinstance(body, bytes):
        raise _NotPlain
    return body


def _receive(sock: _socket.socket) -> bytes:
    """Receive the next frame that is an answer.

    Raises:
        OSError: the connection broke, or nothing came in time.
    """
    while True:
        length = int.from_bytes(_exactly(sock, 4), "little")
        if length > FRAME_BYTES_MAX:
            raise OSError("a frame that is too long")
        body = _exactly(sock, length)
        if dict(fields(body)).get(1):
            return body  # others are notices


def _exactly(sock: _socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise OSError(0, "the daemon closed it")
        data += piece
    return data


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield a message's fields: number, and value of numbers or content of everything that has a length.

    What it does not know (groups) ends it; what is cut short is given as far as it goes.
    """
    position = 0
    while position < len(message):
        tag, position = _varint_at(message, position)
        kind = tag & 7
        if kind == 0:
            value, position = _varint_at(message, position)
            yield tag >> 3, value
        elif kind == 2:
            length, position = _varint_at(message, position)
            yield tag >> 3, message[position : position + length]
            position += length
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
            yield tag >> 3, int.from_bytes(message[position : position + length], "little")
            position += length
        else:
            return


def _varint_at(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return value, position
