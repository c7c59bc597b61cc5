"""What every object of the synchronous client has in common that is closed after use."""

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
