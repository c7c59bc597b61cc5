"""Words for people that the library, the command line and the daemon share.

Not here: text for a terminal (``cli.text``); what an error says beyond a number of things (``errors``).
"""

from __future__ import annotations


def plural(number: int, noun: str, several: str = "") -> str:
    """Write ``1 message`` or ``12,000 messages``.

    Args:
        several: the noun's plural, where it is not an s more.
    """
    return f"{number:,} {noun if number == 1 else several or noun + 's'}"
