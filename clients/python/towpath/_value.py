"""``Value``: from the C extension where there is one, and from here otherwise (a purely remote client). Both
look the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from towpath import model


@dataclass(frozen=True, slots=True)
class PurePythonValue:
    """What a state channel held at one moment.

    Attributes:
        payload: what was set; empty when there is nothing.
        version: grows by one with each set and each delete; 0: nothing was ever set.
        changed_at_ns: when it was set or deleted, nanoseconds since the epoch.
        headers_raw: serialized ``towpath.v1.Headers``; empty when there are none.
        is_set: False: nothing was ever set, or it was deleted.
    """

    payload: bytes
    version: int
    changed_at_ns: int
    headers_raw: bytes = b""
    is_set: bool = True

    @property
    def headers(self) -> model.Headers:
        """The headers, decoded."""
        from towpath.convert import decode_headers

        return decode_headers(self.headers_raw) if self.headers_raw else model.NO_HEADERS


if TYPE_CHECKING:
    from towpath._ring import Value as Value
else:
    import towpath._message  # noqa: F401 (it tells the extension how headers are decoded)

    try:
        from towpath._ring import Value
    except ImportError:
        Value = PurePythonValue
