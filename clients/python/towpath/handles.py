"""What every object of the clients has in common that is closed after use.

A module of its own, below both clients: services, states and locks build on it, and the clients on them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class Handle(ABC):
    """Something that is closed when it is no longer used; a context manager."""

    @abstractmethod
    def close(self) -> None:
        """Give it up. More than once is fine."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncHandle(ABC):
    """Something that is closed when it is no longer used; an asynchronous context manager."""

    @abstractmethod
    async def close(self) -> None:
        """Give it up. More than once is fine."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
