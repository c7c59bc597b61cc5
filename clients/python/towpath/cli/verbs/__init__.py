"""The verbs of the command line: each with its summary, arguments, help and examples, in one table.

Theory of operation
    A family of verbs is a module: ``daemon``, ``messages``, ``requests``, ``locks``, ``channels``,
    ``choosing``, ``shell``, in the order of the general help. ``VERBS`` is the single place that names a
    verb; the parsers, the general help, completion and the manual page are made of it. What a placeholder is
    called decides how it is completed (``completion``): CHANNEL by the channels there are, PATH by files.

Not here: how a command line is taken apart (``grammar``), what verbs do.
"""

from __future__ import annotations

from typing import Final

from . import channels, choosing, daemon, locks, messages, requests, shell
from .verb import FRAMINGS, Verb

__all__ = ["FRAMINGS", "VERBS", "Verb"]

VERBS: Final = {
    verb.name: verb
    for family in (daemon, messages, requests, locks, channels, choosing, shell)
    for verb in family.VERBS
}
