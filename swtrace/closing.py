"""What holds files, threads or shared memory is closed at the end of a ``with`` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self


class Closing(ABC):
    """Something with a :meth:`close`, as a context manager that calls it."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything that is held; idempotent."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it, whatever happened in between."""
        self.close()
