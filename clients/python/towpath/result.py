"""Errors as values: ``Ok`` or ``Err``, for programs that would rather match than catch.

    match client.try_publisher("jobs"):
        case Ok(publisher):
            ...
        case Err(error):
            print(error.code, error.hint)

Theory of operation
    Each method that can fail in a way that a program may expect has a twin, ``try_`` and its name, which
    returns what the method returns as ``Ok(value)``, and what it raises as ``Err(error)``, where that is a
    :class:`towpath.errors.TowpathError`. The twin is made of the method, in one line of the class
    (``try_receive = attempt(receive)``), with the same parameters; so the two cannot drift apart. A type
    checker knows that a ``Result`` is one or the other, and lets nobody use a value without having looked.

Invariants
    A bug (any other exception) is raised by both. What is absent is ``None``, typed, never an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from towpath.errors import TowpathError

T_co = TypeVar("T_co", covariant=True)
E_co = TypeVar("E_co", bound=TowpathError, covariant=True)
S = TypeVar("S")
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ok(Generic[T_co]):
    """It went well.

    Attributes:
        value: what the method returns.
    """

    value: T_co


@dataclass(frozen=True, slots=True)
class Err(Generic[E_co]):
    """It did not.

    Attributes:
        error: what the method raises.
    """

    error: E_co


Result = Ok[T] | Err[TowpathError]
"""What a ``try_`` method returns."""


class attempt(Generic[S, P, T]):
    """Make the ``try_`` twin of a method, as a line of its class: ``try_receive = attempt(receive)``.

    A subclass that has another ``receive`` has another ``try_receive`` with it.
    """

    def __init__(self, method: Callable[Concatenate[S, P], T]) -> None:
        self._name = method.__name__
        self.__doc__ = f"As :meth:`{self._name}`, but returns ``Ok(value)`` or ``Err(error)``."

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> attempt[S, P, T]: ...

    @overload
    def __get__(self, instance: S, owner: type[Any]) -> Callable[P, Result[T]]: ...

    def __get__(self, instance: S | None, owner: type[Any]) -> attempt[S, P, T] | Callable[P, Result[T]]:
        if instance is None:
            return self
        method: Callable[P, T] = getattr(instance, self._name)

        def attempted(*args: P.args, **kwargs: P.kwargs) -> Result[T]:
            try:
                return Ok(method(*args, **kwargs))
            except TowpathError as error:
                return Err(error)

        return attempted


class attempt_async(Generic[S, P, T]):
    """The same for a coroutine method."""

    def __init__(self, method: Callable[Concatenate[S, P], Awaitable[T]]) -> None:
        self._name = method.__name__
        self.__doc__ = f"As :meth:`{self._name}`, but returns ``Ok(value)`` or ``Err(error)``."

    @overload
    def __get__(self, instance: None, owner: type[Any]) -> attempt_async[S, P, T]: ...

    @overload
    def __get__(self, instance: S, owner: type[Any]) -> Callable[P, Awaitable[Result[T]]]: ...

    def __get__(
        self, instance: S | None, owner: type[Any]
    ) -> attempt_async[S, P, T] | Callable[P, Awaitable[Result[T]]]:
        if instance is None:
            return self
        method: Callable[P, Awaitable[T]] = getattr(instance, self._name)

        async def attempted(*args: P.args, **kwargs: P.kwargs) -> Result[T]:
            try:
                return Ok(await method(*args, **kwargs))
            except TowpathError as error:
                return Err(error)

        return attempted
