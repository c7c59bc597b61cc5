"""POSIX named semaphores, by the C library: what joined locks and their repair need of them.

The errors are the C library's, as ``OSError``: FileNotFoundError (there is none of the name),
PermissionError, BlockingIOError (its value is 0, and it was not to be waited for).

Source: sem_overview(7), sem_open(3), sem_wait(3).
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

MODE: Final = 0o600
_LIBRARY: Final = ctypes.CDLL(None, use_errno=True)
_LIBRARY.sem_open.restype = ctypes.c_void_p
_LIBRARY.sem_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_uint]
for _function in ("sem_wait", "sem_trywait", "sem_post", "sem_close"):
    getattr(_LIBRARY, _function).argtypes = [ctypes.c_void_p]
_LIBRARY.sem_getvalue.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]


class Semaphore:
    """An open semaphore.

    Args:
        name: with a slash at its beginning.
        is_made: make it, with the value 1, where there is none.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, name: str, *, is_made: bool = False) -> None:
        flags = os.O_CREAT if is_made else 0
        self._address = _LIBRARY.sem_open(os.fsencode(name), flags, MODE, 1)
        if self._address is None:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), name)

    def wait(self, *, is_waiting: bool) -> None:
        """Take one; BlockingIOError where that would wait and must not. The interpreter goes on meanwhile."""
        function = _LIBRARY.sem_wait if is_waiting else _LIBRARY.sem_trywait
        while function(self._address):
            if (number := ctypes.get_errno()) != errno.EINTR:
                raise OSError(number, os.strerror(number))

    def post(self) -> None:
        """Give one."""
        if _LIBRARY.sem_post(self._address):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    @property
    def value(self) -> int:
        """How many there are."""
        value = ctypes.c_int()
        _LIBRARY.sem_getvalue(self._address, ctypes.byref(value))
        return value.value

    def close(self) -> None:
        """Use it no more. Once."""
        _LIBRARY.sem_close(self._address)


def post(name: str) -> None:
    """Give one to a semaphore that there is.

    Raises:
        OSError: it cannot be opened.
    """
    semaphore = Semaphore(name)
    try:
        semaphore.post()
    finally:
        semaphore.close()
