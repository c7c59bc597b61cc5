"""What every object of the asyncio client has in common that is closed after use."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


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
