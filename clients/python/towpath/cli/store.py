"""``towpath store``: what is stored of queues, states and durable topics: shown, checked, copied, compacted.

Theory of operation
    The store is a file; it is read directly, whether the daemon runs or not. Only ``compact`` writes it, and
    that while no daemon runs. So these verbs are for the host's operator, who may read the daemon's state
    directory, and need the daemon's package.

Exit codes: 0 when all is well; 74 when something is damaged, which standard output tells of; 78 when there is
no store.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.cli import report, streams
from towpath.cli.grammar import UsageError
from towpath.cli.progress import Progress
from towpath.cli.text import Style, ago, byte_size, table
from towpath.errors import TABLE, Code, Unavailable
from towpath.wording import plural

if TYPE_CHECKING:
    from towpath_broker.store.check import Report


def run(arguments: Namespace) -> int:
    """Show, check, copy or compact a store."""
    try:
        from towpath_broker.store import check, rewriting
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("towpath_broker"):
            raise
        raise Unavailable(
            "the daemon is not installed, only the client library",
            hint="install it with: pip install 'towpath[broker]'",
        ) from None
    path = _path(arguments)
    if arguments.action == "backup":
        if arguments.target is None:
            raise UsageError("backup needs a PATH to copy to", "towpath store backup PATH")
        shown = _Shown(arguments)
        size = check.backup(path, Path(arguments.target), shown.tell)
        shown.progress.finish()
        streams.note(f"{byte_size(size)} in {arguments.target}")
        return 0
    if arguments.target is not None:
        raise UsageError(f"{arguments.action} takes no PATH", "--state-dir DIR says where the store is")
    if arguments.action == "compact":
        before, after = rewriting.compact(path)
        streams.note(f"{byte_size(before)} before, {byte_size(after)} now")
        return 0
    if arguments.action == "show":
        _print(arguments, check.summarize(path))
        return 0
    shown = _Shown(arguments)
    found = check.check(path, shown.tell)
    shown.progress.finish()
    _print(arguments, found)
    return TABLE[Code.STORE_DAMAGED].exit_code if found.findings else 0


def _path(arguments: Namespace) -> Path:
    from towpath_broker.host.directories import find_state_dir
    from towpath_broker.store.database import STORE_NAME

    return find_state_dir(arguments.state_dir or "", os.environ, os.getuid()) / STORE_NAME


class _Shown:
    """A progress line, where somebody sees it."""

    def __init__(self, arguments: Namespace) -> None:
        is_quiet = arguments.json or not streams.is_terminal(streams.STDERR)
        self.progress = Progress(
            None, show=_show_nothing if is_quiet else streams.show, columns=streams.columns(streams.STDERR)
        )

    def tell(self, done: int, total: int) -> None:
        """So much is done."""
        self.progress.total_bytes = total
        self.progress.advance(0, max(done - self.progress.read_bytes, 0))


def _show_nothing(text: str) -> None:
    pass


def _print(arguments: Namespace, found: Report) -> None:
    if arguments.json:
        document = {**asdict(found), "is_whole": not found.findings}
        if arguments.action == "show":
            del document["findings"], document["is_whole"]
        streams.emit(report.to_json(document))
        return
    style = Style(streams.is_terminal(streams.STDOUT) and not os.environ.get("NO_COLOR"))
    lines = [f"{found.path}: {byte_size(found.file_bytes)}, and {byte_size(found.log_bytes)} of log"]
    if found.channels:
        now_ns = time.time_ns()
        rows = [
            (
                channel.name,
                channel.kind,
                f"{channel.messages:,}",
                byte_size(channel.content_bytes),
                f"{channel.oldest_seq:,}",
                f"{channel.next_seq:,}",
                str(channel.places),
                ago(channel.declared_at_ns, now_ns),
            )
            for channel in found.channels
        ]
        headings = ("CHANNEL", "KIND", ">MESSAGES", ">BYTES", ">OLDEST", ">NEXT", ">PLACES", "DECLARED")
        lines += ["", *table(headings, rows, style)]
    if arguments.action == "check":
        lines += ["", *(f"{each.channel or 'the file'}: {each.text}" for each in found.findings)]
        lines.append(
            f"{plural(len(found.findings), 'thing')} found" if found.findings else "everything is whole"
        )
    streams.emit("\n".join(lines) + "\n")
