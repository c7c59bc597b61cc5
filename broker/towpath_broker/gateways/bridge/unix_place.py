"""A UNIX socket's address: making a socket there, and going to one that is there.

Theory of operation
    *Making.* bind(2) makes the file. Its permissions are those of the unbound socket, less the umask, so
    nobody may connect before owner and mode are what the binding says. A file that is there already is in the
    way: it is removed only if it is a socket that nobody has bound any more, as a program leaves it that was
    killed; that is found out by connecting to it.

    *Keeping.* The supervisor keeps the socket open, with who waits in its backlog (and, of a dgram socket,
    with what was sent to it), while the bridge is started again; its successor goes on with it. Which file is
    the socket's own is kept beside it, as device and inode: those are nobody else's while the socket is open.

    *Going.* connect(2) of such a socket ends at once, well or badly.

Invariants
    Nothing is removed but a socket that nobody answers on, and the very file that was made here.

Sources: unix(7), connect(2), bind(2); Linux's net/unix/af_unix.c for the mode of the file.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from typing import Final

from towpath.bindings.unix import SocketType, UnixOptions
from towpath.errors import BindingFailed, InvalidArgument, LimitExceeded
from towpath_broker.gateways.bridge.keeping import BindingKeeping

BACKLOG_PEERS: Final = 128
"""Who may wait to be accepted."""
SOCKET_TYPES: Final = {
    SocketType.STREAM: socket.SOCK_STREAM,
    SocketType.DGRAM: socket.SOCK_DGRAM,
    SocketType.SEQPACKET: socket.SOCK_SEQPACKET,
}
NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The host has no descriptor or memory left; that may pass."""
_SOCKET: Final = "unix socket"
_FILE: Final = "unix file"


class Away(Exception):
    """Nobody is there to connect to, now; the text says how that shows."""


def open_socket(kind: SocketType) -> socket.socket:
    """Make an unbound socket, non-blocking."""
    try:
        return socket.socket(socket.AF_UNIX, SOCKET_TYPES[kind] | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise no_room(error) from error


def no_room(error: OSError) -> LimitExceeded:
    """The error for a host that has no more descriptors."""
    return LimitExceeded(
        f"no further socket: {os.strerror(error.errno or 0)}",
        hint="raise ulimit -n (LimitNOFILE= of the service), or lower peers_max",
        retryable=True,
    )


def _failed(what: str, error: OSError, hint: str | None = None) -> BindingFailed:
    return BindingFailed(f"{what}: {os.strerror(error.errno or 0)}", hint=hint, retryable=True)


class Address:
    """Where a socket is.

    Args:
        place: a path, or ``@`` and an abstract name.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.is_abstract = place.startswith("@")
        self.raw: str | bytes = b"\0" + place[1:].encode() if self.is_abstract else place

    def __str__(self) -> str:
        return self.place

    def connect(self, kind: SocketType) -> socket.socket:
        """Connect to what is there.

        Raises:
            Away: nobody is there, or whoever is accepts nobody now.
            BindingFailed: what is there is no such socket (not retryable), or may not be connected to.
        """
        end = open_socket(kind)
        try:
            end.connect(self.raw)
            return end
        except OSError as error:
            end.close()
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                raise Away(f"{self} is not there") from error
            if error.errno == errno.EAGAIN:
                raise Away(f"whoever listens on {self} accepts nobody") from error
            if error.errno == errno.EPROTOTYPE:
                others = " or ".join(f"socket={other}" for other in SocketType if other != kind)
                raise BindingFailed(
                    f"{self} is a socket of another type than {kind.value}", hint=f"state {others}"
                ) from error
            if error.errno == errno.ECONNREFUSED:
                self._check_is_socket()
                raise Away(f"nobody listens on {self}") from error
            raise _failed(f"cannot connect to {self}", error) from error

    def _check_is_socket(self) -> None:
        """Linux says of a file that is no socket what it says of a socket that nobody has."""
        if self.is_abstract:
            return
        with contextlib.suppress(OSError):
            if not stat.S_ISSOCK(os.stat(self.place).st_mode):
                raise not_a_socket(self.place)


def not_a_socket(path: str) -> BindingFailed:
    """The error for a path that something else has."""
    return BindingFailed(
        f"{path} exists and is not a socket", hint="it was left alone; choose another path", retryable=False
    )


class Listener:
    """A socket of one's own, to which others come.

    Args:
        address: where.
        options: the binding's.
        keeping: the binding's.

    Attributes:
        socket: bound, and listening if it is of a type that does.

    Raises:
        BindingFailed: it cannot be made: something else is there, or somebody listens there.
        InvalidArgument: there is no such user or group, or an abstract name has no file to own.
        LimitExceeded: no descriptor is left.
    """

    def __init__(self, address: Address, options: UnixOptions, keeping: BindingKeeping) -> None:
        self.address = address
        self._options = options
        self._keeping = keeping
        self._handle = -1  # the file, opened O_PATH; -1 for none
        self._is_left = False
        kept = self._take_kept()
        self.socket = kept if kept is not None else open_socket(options.socket)
        try:
            if kept is None:
                self._bind()
            if options.socket is not SocketType.DGRAM:
                self.socket.listen(BACKLOG_PEERS)
            self._keep()
        except BaseException:
            self.close()
            raise

    # -- making ----------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        user, group = _number_of_user(self._options.user), _number_of_group(self._options.group)
        os.fchmod(self.socket.fileno(), self._options.mode & 0o600)
        try:
            self._bind_once()
        except FileExistsError:
            self._clear_away()
            try:
                self._bind_once()
            except FileExistsError:
                raise self._in_use() from None
        if self.address.is_abstract:
            return
        path = self.address.place
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            made = os.fstat(handle)
            if not stat.S_ISSOCK(made.st_mode) or made.st_uid != os.geteuid() or made.st_nlink != 1:
                os.close(handle)  # somebody else's, and not to be removed
                raise BindingFailed(f"{path} was replaced while it was made", retryable=True)
            self._handle = handle
            if user >= 0 or group >= 0:
                os.chown(self.link, user, group)
            os.chmod(self.link, self._options.mode)
        except OSError as error:
            self.unlink()
            raise _failed(f"cannot set the owner and permissions of {path}", error) from error

    def _bind_once(self) -> None:
        try:
            self.socket.bind(self.address.raw)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                if self.address.is_abstract:
                    raise self._in_use() from error
                raise FileExistsError from error
            raise _failed(f"cannot make {self.address}", error) from error

    def _clear_away(self) -> None:
        """Remove the socket that a program has left, if it is one.

        Raises:
            BindingFailed: it is something else, or somebody has it.
        """
        path = self.address.place
        try:
            found = os.lstat(path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            raise not_a_socket(path)
        try:
            self.address.connect(self._options.socket).close()
        except Away as away:
            if isinstance(away.__cause__, OSError) and away.__cause__.errno == errno.EAGAIN:
                raise self._in_use() from None
        except BindingFailed as failed:
            raise self._in_use() if not failed.retryable else failed from None
        else:
            raise self._in_use()
        try:
            if os.path.samestat(os.lstat(path), found):
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(f"nobody listens on {path}, but it cannot be removed", error) from error

    def _in_use(self) -> BindingFailed:
        return BindingFailed(
            f"another program has the socket {self.address}",
            hint="role=connect goes to it; to listen, end that program or choose another place",
            retryable=True,
        )

    # -- keeping ---------------------------------------------------------------------------------------------

    def _take_kept(self) -> socket.socket | None:
        """Return the socket that a predecessor had, if it is one that this binding would make."""
        descriptor, file = self._keeping.take(_SOCKET), self._keeping.take_bytes(_FILE).decode()
        if descriptor < 0:
            return None
        kept = socket.socket(fileno=descriptor)
        kept.setblocking(False)
        if kept.type == SOCKET_TYPES[self._options.socket] and kept.getsockname() == self.address.raw:
            if self.address.is_abstract:
                return kept
            with contextlib.suppress(OSError):
                handle = os.open(self.address.place, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
                if _identity(handle) == file:
                    self._handle = handle
                    return kept
                os.close(handle)
        self._keeping.forget(_SOCKET)
        kept.close()
        return None

    def _keep(self) -> None:
        self._keeping.store(_SOCKET, self.socket.fileno())
        self._keeping.store_bytes(_FILE, _identity(self._handle).encode())

    def admits(self, uid: int, gid: int) -> bool:
        """Whether somebody may come. Of a file the kernel decides; an abstract name has no permissions, and
        everybody on the host could come: there ``mode`` is held against who it is, as it would be of a file.
        """
        if not self.address.is_abstract or uid in (0, os.geteuid()):
            return True
        return bool(self._options.mode & (0o020 if gid == os.getegid() else 0o002))

    def leave(self) -> None:
        """Leave the socket, and who waits there, to a successor."""
        self._is_left = True

    # -- what is there ---------------------------------------------------------------------------------------

    @property
    def link(self) -> str:
        """A path that leads to the very file; empty for an abstract name."""
        return f"/proc/self/fd/{self._handle}" if self._handle >= 0 else ""

    def is_there(self) -> bool:
        """Whether the path still leads to this socket."""
        if self._handle < 0:
            return self.address.is_abstract
        try:
            return os.path.samestat(os.lstat(self.address.place), os.fstat(self._handle))
        except OSError:
            return False

    def close(self) -> None:
        """Close the socket and remove its file if it is still the one; unless it is left to a successor."""
        if not self._is_left:
            self.unlink()
            for what in (_SOCKET, _FILE):
                self._keeping.forget(what)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self.socket.close()

    def unlink(self) -> None:
        """Remove the file if it is still the one that was made."""
        if self._handle >= 0 and self.is_there():
            with contextlib.suppress(OSError):
                os.unlink(self.address.place)


def _identity(handle: int) -> str:
    """Which file this is, as text; empty for none."""
    if handle < 0:
        return ""
    found = os.fstat(handle)
    return f"{found.st_dev}:{found.st_ino}"


def _number_of_user(name: str) -> int:
    try:
        return -1 if not name else int(name) if name.isdecimal() else pwd.getpwnam(name).pw_uid
    except KeyError:
        raise InvalidArgument(
            f"option owner: there is no user {name}", hint="a name that getent(1) knows, or a number"
        ) from None


def _number_of_group(name: str) -> int:
    try:
        return -1 if not name else int(name) if name.isdecimal() else grp.getgrnam(name).gr_gid
    except KeyError:
        raise InvalidArgument(
            f"option owner: there is no group {name}", hint="a name that getent(1) knows, or a number"
        ) from None
