"""``towpath call`` asks a service; ``towpath answer`` is one, made of any program.

Theory of operation
    ``answer`` takes requests in as many threads as ``--concurrency`` says, and runs the program once for each
    (``running``): the request on its standard input, the reply from its standard output, what else is known
    in ``TOWPATH_...`` variables. An exit status other than 0 is the caller's error. When the caller does not
    wait any more, the program is ended.

    Asked to leave by a signal, ``answer`` first answers what it has begun, and then ends of that signal.
"""

from __future__ import annotations

import os
import signal
import threading
from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from towpath.cli import report, running, streams
from towpath.cli.connection import connect
from towpath.cli.grammar import mapping
from towpath.errors import ServiceFailed, TowpathError
from towpath.model import Headers

if TYPE_CHECKING:
    import towpath

STOP_S: Final = 10.0
"""How long what was begun may take when ``answer`` is stopped."""


def call(arguments: Namespace) -> int:
    """Ask, and print the reply."""
    payload = _payload(arguments)
    headers = Headers(
        content_type=arguments.content_type,
        key=arguments.key.encode(errors="surrogateescape"),
        user=mapping("--header", arguments.header),
    )
    options: dict[str, object] = {
        "timeout": arguments.timeout,
        "idempotent": arguments.idempotent,
        "wait": arguments.wait,
        "headers": None if headers == Headers() else headers,
    }
    output = streams.Output()
    with connect(arguments) as client:
        streams.leave_when_output_closes()
        for reply in _replies(client, arguments, payload, options):
            output.write([_form(arguments, reply)])
            output.flush()
    return 0


def _replies(
    client: towpath.Client, arguments: Namespace, payload: bytes, options: dict[str, object]
) -> Iterator[towpath.Message]:
    if arguments.stream:
        yield from client.call_stream(arguments.channel, payload, **options)  # type: ignore[arg-type]
    else:
        yield client.call(arguments.channel, payload, **options)  # type: ignore[arg-type]


def _form(arguments: Namespace, reply: towpath.Message) -> bytes:
    if arguments.json:
        return report.message_json_line(reply)
    # One reply is printed as it is, so that it may be any bytes; a terminal, and a stream, want lines.
    is_line = arguments.stream or streams.is_terminal(streams.STDOUT)
    return reply.payload + (b"\n" if is_line and not reply.payload.endswith(b"\n") else b"")


def _payload(arguments: Namespace) -> bytes:
    if arguments.data is not None and arguments.data != "-":
        return os.fsencode(arguments.data)
    if arguments.data is None and streams.is_terminal(streams.STDIN):
        return b""
    return b"".join(streams.read_chunks())


def answer(arguments: Namespace) -> int:
    """Answer requests until stopped."""
    running.check_command(arguments.command)
    with (
        running.Guard() as guard,
        connect(arguments) as client,
        client.serve(arguments.channel, concurrency=arguments.concurrency) as server,
    ):
        bytes_max = client.channel_info(arguments.channel).ring_bytes // 4 - 4096
        begun = _Begun(server)
        if not arguments.quiet:
            streams.note(f"answering {arguments.channel}")

        def handle(request: towpath.Request) -> None:
            with begun:
                try:
                    request.reply(_answered(arguments, request, server, bytes_max, guard))
                except TowpathError as error:
                    request.fail(error)

        server.run(handle)
    if begun.asked is not None:
        raise streams.Asked(begun.asked)
    return 0


def _answered(
    arguments: Namespace,
    request: towpath.Request,
    server: towpath.Server,
    bytes_max: int,
    guard: running.Guard,
) -> bytes:
    outcome = running.run(
        arguments.command,
        request.payload,
        guard=guard,
        environment=_environment(arguments, request),
        output_bytes_max=bytes_max,
        is_cancelled=lambda: request.is_cancelled or server.is_closed,
    )
    failure = outcome.failure(arguments.command[0])
    if failure:
        if not arguments.quiet and not request.is_cancelled:
            streams.warn(failure)
        raise ServiceFailed(failure)
    return outcome.output


def _environment(arguments: Namespace, request: towpath.Request) -> dict[str, str]:
    headers = request.headers
    left = request.time_left
    told = {
        "TOWPATH_CHANNEL": request.channel,
        "TOWPATH_PRINCIPAL": request.principal,
        "TOWPATH_TIMEOUT": "" if left is None else f"{left:.3f}",
        "TOWPATH_CONTENT_TYPE": headers.content_type,
        "TOWPATH_KEY": os.fsdecode(headers.key),
    }
    if arguments.socket:
        told["TOWPATH_SOCKET"] = os.path.abspath(arguments.socket)
    return {name: value for name, value in told.items() if "\0" not in value}


class _Begun:
    """The requests that are being worked on. SIGTERM and SIGINT close the server when they are answered, or
    ``STOP_S`` later, or when a second one comes; then their programs are ended.

    Attributes:
        asked: the first such signal.
    """

    def __init__(self, server: towpath.Server) -> None:
        self._server = server
        self._count = 0
        self._stops = 0
        self.asked: signal.Signals | None = None
        self._changed = threading.Condition()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def _stop(self, number: int, frame: object) -> None:
        self._stops += 1
        self.asked = self.asked or signal.Signals(number)
        # In a thread: the main one may hold what closing needs.
        threading.Thread(target=self._close_when_idle, daemon=True).start()

    def _close_when_idle(self) -> None:
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._count == 0 or self._stops > 1, STOP_S)
        self._server.close()
