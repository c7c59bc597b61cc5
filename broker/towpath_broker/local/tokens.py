"""Resume tokens: proof that whoever takes up a source or a reader again is the one who had it.

Theory of operation
    A client that comes back after a restart of the core resumes the ids it had. The core that gave them is
    dead by then, and the ring that comes along proves nothing: every subscriber has a descriptor of it. So
    whoever attaches an end is given a token, the first 16 bytes of HMAC-SHA256 over its id and its principal
    with a key that only the daemon knows; whoever resumes it must show that token, on behalf of the same
    principal. The door keeps no list: it computes each token anew.

    The key is made at random when there is none, and kept in the state directory, readable for the daemon's
    uid alone: so sessions survive a restart of the whole daemon, as the ids do.

Invariants
    A token tells nothing about another one's. Comparing takes as long whatever is wrong.

Not here: which ids may be resumed at all (``core.sessions``).
Source: RFC 2104.
"""

from __future__ import annotations

import hmac
import os
import secrets
from pathlib import Path
from typing import Final

from towpath.errors import PermissionDenied

KEY_BYTES: Final = 32
TOKEN_BYTES: Final = 16


class ResumeTokens:
    """Makes and checks tokens.

    Args:
        key: the secret, ``KEY_BYTES`` long.
    """

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES
        self._key = key

    def token(self, identifier: int, principal: str) -> bytes:
        """Return the token of a source or reader: ``TOKEN_BYTES`` bytes."""
        return hmac.digest(self._key, f"{identifier} {principal}".encode(), "sha256")[:TOKEN_BYTES]

    def check(self, identifier: int, principal: str, shown: bytes) -> None:
        """Let nobody through but who was given the id, acting for the same principal.

        Raises:
            PermissionDenied: the token is missing, or another one's.
        """
        if not hmac.compare_digest(self.token(identifier, principal), shown):
            raise PermissionDenied(
                f"id {identifier} cannot be resumed without the token that was given with it",
                hint="only the session that had it may take it up again; others attach with ids of their own",
            )


def read_key(path: Path) -> bytes:
    """Return the daemon's key, made and kept when there is none that could be one.

    Raises:
        OSError: it can be neither read nor written.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _make_key(path)
    with open(descriptor, "rb") as file:
        key = file.read(KEY_BYTES + 1)
    return key if len(key) == KEY_BYTES else _make_key(path)


def _make_key(path: Path) -> bytes:
    """Whole or not at all: it is written beside its place, and moved there."""
    key = secrets.token_bytes(KEY_BYTES)
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(descriptor)
    new.rename(path)
    return key
