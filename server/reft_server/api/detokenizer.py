"""Token ids to text, piece by piece: no broken character mid-stream, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class IncrementalDetokenizer:
    """The text of a growing list of token ids, as far as it is settled.

    The pieces joined equal `decode` of all ids, for byte-level BPE (what may still become a character is held
    back) and for byte-fallback vocabularies (a run of byte tokens is held back, because one bad byte in it turns
    the whole run into replacement characters).

    Args:
        decode: token ids to text.
        byte_token_ids: ids of byte-fallback tokens (`<0x00>` ...); empty for other vocabularies.
        special_token_ids: ids that `decode` leaves out.
        looks_back: a token's text may depend on what stands before it; not so in byte-level BPE.
    """

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        byte_token_ids: frozenset[int] = frozenset(),
        special_token_ids: frozenset[int] = frozenset(),
        *,
        looks_back: bool = True,
    ) -> None:
        self._decode = decode
        self._byte_token_ids = byte_token_ids
        self._special_token_ids = special_token_ids
        self._looks_back = looks_back
        self._context: list[int] = []  # tokens whose text is out; decoders look at what stands before
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Add a token; the text that is settled now and was not before."""
        if token_id in self._special_token_ids:
            return ""
        self._pending.append(token_id)
        if token_id in self._byte_token_ids:
            return ""
        text = self._decode(self._context + self._pending)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._context_text):
            return ""
        return self._settle(text)

    def flush(self) -> str:
        """The rest, complete or not; call once, at the end."""
        return self._settle(self._decode(self._context + self._pending)) if self._pending else ""

    def _settle(self, text: str) -> str:
        delta = text[len(self._context_text) :]
        if self._looks_back:
            self._context, self._context_text = self._pending, self._decode(self._pending)
        self._pending = []
        return delta


class StopStringFilter:
    """Passes text on up to the first stop string, whatever pieces it arrives in.

    Of several stop strings, the one that ends first in the text counts (of those, the longest). What may be the
    beginning of one is held back until it is decided. The stop string itself is not passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_stopped = False

    def push(self, text: str) -> str:
        """Add text; what may be passed on now. After a stop nothing is."""
        if self.is_stopped or not text:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.is_stopped = True
            self._held = ""
            return text[: min(found)[1]]
        num_held = max(num_open(text, stop) for stop in self._stops)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """What was held back and turned out to be no stop string; call once, at the end."""
        held, self._held = self._held, ""
        return held


def num_open(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
