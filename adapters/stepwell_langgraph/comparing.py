"""Whether the log holds what a source gave, byte by byte, without putting together what lies in pieces."""

from __future__ import annotations

from collections.abc import Mapping

from stepwell.fold import State
from stepwell.patch import Array, New, Ref, Value, array_header, read_content, references
from stepwell.reader import Payloads
from stepwell_langgraph.addresses import CHECKPOINT, METADATA
from stepwell_langgraph.sources import StoredCheckpoint
from stepwell_langgraph.whole import Span, Typed


class Comparison:
    """Compares values of one thread.

    Of a list that was compared and only grew since, the elements that are there in the log by the very same
    references need not be read again: that the source has the same bytes there as before is all there is to see.
    """

    def __init__(self, payloads: Payloads) -> None:
        self._payloads = payloads
        self._proven: dict[str, tuple[tuple[New, ...], Span, int]] = {}

    def difference(
        self, checkpoint: StoredCheckpoint, state: State, parent: State, begins_with: Mapping[str, Span]
    ) -> str | None:
        """What of a checkpoint is not in the log as the source has it; None if all is.

        Args:
            checkpoint: What the source gave.
            state: What the log has.
            parent: What the log has of its parent, for channels that the source says are the parent's.
            begins_with: Lists that were seen to stand at the beginning of the source's, by channel.
        """
        for name in state.channels:
            if name not in checkpoint.channels and name not in checkpoint.unchanged:
                return f"the log has a value of channel {name!r}, the source has none"
        for name, typed in checkpoint.channels.items():
            value = state.channels.get(name)
            if value is None or not self.is_same(value, typed, name, begins_with.get(name)):
                return f"the log has another value of channel {name!r} than the source"
        for name in checkpoint.unchanged:
            if state.channels.get(name) != parent.channels.get(name):
                return f"channel {name!r} changed in the log, and did not in the source"
        for name, typed in ((CHECKPOINT, checkpoint.core), (METADATA, checkpoint.metadata)):
            value = state.fields.get(name)
            if value is None or not self.is_same(value, typed):
                what = "metadata" if name == METADATA else "fields of the checkpoint"
                return f"the log has other {what} than the source"
        return None

    def is_same(self, value: Value, typed: Typed, name: str | None = None, begins_with: Span | None = None) -> bool:
        """Whether a stored value is these bytes.

        Args:
            value: The value.
            typed: A type and bytes.
            name: Under which name what is compared now is remembered for the next value; None for none.
            begins_with: A list whose elements the bytes were seen to begin with.
        """
        type_, span = typed
        if value.type != type_:
            return False
        if not isinstance(value, Array) or value.wrapped:
            return span.equals(self._payloads.payload(value))
        header = array_header(value.count)
        if not span.begins_with(header):
            return False
        proven = None if name is None else self._proven.get(name)
        end = self._pieces_end(value.pieces, span, len(header), proven, begins_with)
        if name is not None and end == span.length:
            self._proven[name] = value.pieces, span, len(header)
        return end == span.length

    def _pieces_end(
        self,
        pieces: tuple[New, ...],
        span: Span,
        at: int,
        proven: tuple[tuple[New, ...], Span, int] | None,
        begins_with: Span | None,
    ) -> int:
        """Where the pieces end that stand in a span from `at` on; -1 if they do not."""
        if proven is not None:
            before, known, start = proven
            # That megabytes are the same need not be seen twice.
            if pieces[: len(before)] == before and (begins_with is known or span.begins_with(known.view(start), at)):
                pieces, at = pieces[len(before) :], at + known.length - start
        self._payloads.fetch(ref.sequence for ref in references(Array("", False, 0, pieces)))
        for piece in pieces:
            content = piece.content
            data = (
                self._payloads.view(content) if isinstance(content, Ref) else read_content(content, self._payloads.read)
            )
            if not span.begins_with(data, at):
                return -1
            at += len(data)
        return at
