"""Where sequences have their K and V: a slot that grows, and what the prefix cache saves them from computing."""

from __future__ import annotations

from collections.abc import Iterable

from .kv_memory import KVAllocator
from .prefix_cache import PrefixCache
from .sequence import Sequence
from .shared_prefixes import SharedPrefixes

_DECODE_HEADROOM = 64  # tokens reserved past the known ones; more is allocated as it is needed
_WORTH_WAITING = 64  # prompt tokens: for as many, a request waits until another has computed them


class Placement:
    """Gives running sequences their KV and takes it back.

    Args:
        prefix_cache: None = no reuse.
        shares_prefixes: the model attends to shared prefixes in place.
    """

    def __init__(
        self, kv_cache: KVAllocator, prefix_cache: PrefixCache | None = None, *, shares_prefixes: bool = False
    ) -> None:
        self._kv_cache = kv_cache
        self._prefix_cache = prefix_cache
        self._shared = SharedPrefixes(kv_cache, prefix_cache) if shares_prefixes and prefix_cache is not None else None

    def leader(self, sequence: Sequence, running: Iterable[Sequence]) -> tuple[Sequence, int] | None:
        """The running sequence worth waiting for, and how many of its prompt's tokens will be this one's too."""
        cache, best = self._prefix_cache, None
        if cache is None:
            return None
        num_tokens = 0
        for other in running:
            if other.num_computed_tokens < other.prompt_length and other.cached_block is not None:
                num_common = cache.num_common_tokens(sequence, other)
                if num_common > max(num_tokens, other.num_computed_tokens):
                    best, num_tokens = other, num_common
        if best is None or num_tokens - cache.match(sequence).num_tokens < _WORTH_WAITING:
            return None
        return best, num_tokens

    def place(self, sequence: Sequence) -> bool:
        """Give a sequence a slot, with what is cached of its tokens; False when there is no room."""
        num_tokens = min(sequence.max_num_tokens, len(sequence.token_ids) + _DECODE_HEADROOM)
        cache = self._prefix_cache
        if cache is None:
            sequence.slot = self._kv_cache.allocate(num_tokens)
            return sequence.slot is not None
        match = cache.match(sequence)
        if self._shared is not None:
            sequence.shared_prefix = self._shared.acquire(match)
        sequence.slot = self._kv_cache.allocate(num_tokens - sequence.num_shared_tokens)
        if sequence.slot is None and sequence.shared_prefix is not None:
            # The prefix's own slot may be what takes the room.
            self._release_shared(sequence)
            sequence.slot = self._kv_cache.allocate(num_tokens)
        if sequence.slot is None:
            return False
        cache.start(sequence, match)
        cache.load(match, sequence.slot, first=sequence.num_shared_tokens)
        sequence.num_computed_tokens = match.num_tokens
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = match.num_tokens
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Make the slot large enough for every known token; False when there is no room."""
        assert sequence.slot is not None  # running sequences have one
        num_shared = sequence.num_shared_tokens
        num_tokens = len(sequence.token_ids) - num_shared
        if sequence.slot.capacity >= num_tokens:
            return True
        reserve = min(sequence.max_num_tokens - num_shared, num_tokens + _DECODE_HEADROOM)
        larger = self._kv_cache.grow(sequence.slot, reserve, sequence.num_computed_tokens - num_shared)
        if larger is None:
            return False
        sequence.slot = larger
        return True

    def keep_prompt(self, sequence: Sequence) -> None:
        """Let others reuse what is computed of a prompt."""
        if self._prefix_cache is not None:
            self._prefix_cache.extend(sequence, min(sequence.num_computed_tokens, sequence.prompt_length))

    def release(self, sequence: Sequence, *, is_sound: bool = True, with_tail: bool = False) -> None:
        """Take everything back that a sequence has, if it has anything.

        Args:
            is_sound: False after a failure: nothing of it is kept, and its slot is scrubbed.
            with_tail: also keep the last block for reuse, full or not.
        """
        if self._prefix_cache is not None:
            if is_sound:
                self._prefix_cache.extend(sequence, sequence.num_computed_tokens, with_tail=with_tail)
            self._prefix_cache.release(sequence)
        if sequence.slot is not None:
            self._kv_cache.free(sequence.slot, scrub=not is_sound)
            sequence.slot = None
        self._release_shared(sequence)
        sequence.num_computed_tokens = 0

    def _release_shared(self, sequence: Sequence) -> None:
        if sequence.shared_prefix is not None and self._shared is not None:
            self._shared.release(sequence.shared_prefix)
            sequence.shared_prefix = None
