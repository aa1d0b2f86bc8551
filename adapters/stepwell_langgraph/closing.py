"""What is used in a `with` block, sync or async, and closed at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from stepwell_langgraph.offload import offload


class Closing:
    """A context manager that calls `close`; a coroutine's block closes in a thread."""

    def close(self) -> None:
        """Give back what is held."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await offload(self.close)
