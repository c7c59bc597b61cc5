"""A client that says whatever a test wants: frames by hand, over the real socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType

from tests.support.deadlines import DEADLINE_S as DEADLINE_S  # handed on
from towpath import wire
from towpath.v1 import frame_pb2
from towpath.v1.frame_pb2 import Frame


def last_frame(data: bytes) -> Frame:
    """The last of the frames that came one after the other."""
    return wire.FrameDecoder(wire.RESPONSE_BYTES_MAX).feed(data)[-1][0]


class RawClient:
    """One connection to a daemon's socket."""

    def __init__(self, path: Path, *, hello: bool = True) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(path))
        self._decoder = wire.FrameDecoder(wire.RESPONSE_BYTES_MAX)
        self._got: list[wire.Incoming] = []
        self.welcome = frame_pb2.Welcome()
        if hello:
            self.send(Frame(id=1, hello=frame_pb2.Hello(version_min=1, version_max=1, name="raw")))
            self.welcome = self.receive().welcome
            assert self.welcome.session

    def send(self, frame: Frame, *descriptors: int) -> None:
        frame.descriptors = frame.descriptors or len(descriptors)
        owned = [wire.Descriptor(os.dup(each)) for each in descriptors]
        data = wire.encode(frame)
        sent = wire.send_once(self.sock, data, owned)
        if sent < len(data):  # the daemon may have closed already: then an empty send would fail
            self.sock.sendall(data[sent:])

    def receive_all(self) -> wire.Incoming:
        """The next frame with its descriptors. Raises EOFError when the daemon has closed the connection."""
        while not self._got:
            try:
                data, ancillary, _, _ = self.sock.recvmsg(1 << 16, 4096)
            except ConnectionResetError:
                raise EOFError from None
            if not data:
                raise EOFError
            owned = [
                wire.Descriptor(int.from_bytes(payload[at : at + 4], "little"))
                for _, _, payload in ancillary
                for at in range(0, len(payload), 4)
            ]
            self._got += self._decoder.feed(data, owned)
        return self._got.pop(0)

    def receive(self) -> Frame:
        return self.receive_all()[0]

    def ask(self, frame: Frame, *descriptors: int) -> Frame:
        """Send a request and return its answer; notices in between are dropped."""
        self.send(frame, *descriptors)
        while (answer := self.receive()).id != frame.id:
            pass
        return answer

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
