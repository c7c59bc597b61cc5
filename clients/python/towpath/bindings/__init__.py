"""What a binding's URL and options may say. Pure; one vocabulary for the core, the command line and the
adapters.

Theory of operation
    A URL is a scheme and a place: ``fifo:/run/x`` names a path, ``pipe:vmstat 1`` a command line.
    :func:`parse_url` takes it apart and refuses what no adapter could use. Options are strings on the wire
    and in the journal; :func:`check_options` brings stated options into their canonical spelling, and
    :func:`parse_options` gives an adapter typed values with every default filled in.

Files
    ``grammar``: what an option and a scheme are. ``framings``: the options that byte streams share.
    ``fifo``, ``pipe``, ...: one scheme each. ``schemes``: which there are.

Not here: whether the path can be opened or the command be found. Only the bridge can tell, and it reports
it.
"""

from __future__ import annotations

from towpath.bindings.fifo import FIFO, FifoOptions, WhenAbsent
from towpath.bindings.framings import parse_framing
from towpath.bindings.grammar import Option, Scheme, format_bytes, parse_bytes
from towpath.bindings.mq import MQ, MqOptions
from towpath.bindings.pipe import COMMAND_BYTES_MAX, PIPE, PipeOptions, Restart, parse_command
from towpath.bindings.schemes import (
    DESCRIBED_OPTIONS,
    OPTION_TYPES,
    REGISTERED,
    SCHEMES,
    check_options,
    parse_options,
    parse_url,
    place_key,
)
from towpath.bindings.shm import SHM, ShmOptions
from towpath.bindings.signal import SIGNAL, SignalOptions
from towpath.bindings.sysv import SYSV, SysvOptions, parse_sysv_place
from towpath.bindings.unix import UNIX, UnixOptions

__all__ = [
    "COMMAND_BYTES_MAX",
    "DESCRIBED_OPTIONS",
    "FIFO",
    "MQ",
    "OPTION_TYPES",
    "PIPE",
    "REGISTERED",
    "SCHEMES",
    "SHM",
    "SIGNAL",
    "SYSV",
    "UNIX",
    "FifoOptions",
    "MqOptions",
    "Option",
    "PipeOptions",
    "Restart",
    "Scheme",
    "ShmOptions",
    "SignalOptions",
    "SysvOptions",
    "UnixOptions",
    "WhenAbsent",
    "check_options",
    "format_bytes",
    "parse_bytes",
    "parse_command",
    "parse_framing",
    "parse_options",
    "parse_sysv_place",
    "parse_url",
    "place_key",
]
