"""A step that was launched and not waited for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from .batch import Batch
from .sampler import NOT_FINITE, TOO_WIDE, SampledToken, draw_wide
from .sequence import Sequence


class LaunchedStep:
    """A step that the device works on; its tokens are read once the step behind it has been launched.

    It keeps its batch, and so the weights that its kernels read, until it is done.

    Args:
        batch: of sequences that don't need the host between two steps.
        chosen: `[num_sampled]`, int64, on the host: what `sampler.choose` gives, valid after `wait`.
        wait: returns when the device has done the step.
        uniforms: the numbers that rows were drawn by.
        logits: `[num_sampled, vocab_size]`, float32, for rows that are drawn again; None = no row can be `TOO_WIDE`.
    """

    def __init__(
        self,
        batch: Batch,
        chosen: Tensor,
        wait: Callable[[], None],
        uniforms: Mapping[Sequence, float],
        logits: Tensor | None,
    ) -> None:
        self.batch = batch
        self.wait = wait
        self.rows = {sequence: row for row, sequence in enumerate(batch.sampled_sequences)}
        self._chosen = chosen
        self._uniforms = uniforms
        self._logits = logits
        self._void: set[Sequence] = set()

    def void(self, sequence: Sequence) -> None:
        """The step has computed a sequence's row from a wrong token: the row runs again, with the same number."""
        if sequence in self.rows:
            self._void.add(sequence)
            if sequence in self._uniforms:
                sequence.random.give_back(self._uniforms[sequence])

    def read(self) -> list[tuple[Sequence, SampledToken]]:
        """Wait for the step, and give the tokens of the sequences that have not ended meanwhile."""
        self.wait()
        chosen: list[int] = self._chosen.tolist()
        return [
            (sequence, self._token(row, sequence, chosen[row]))
            for sequence, row in self.rows.items()
            if not sequence.is_finished and sequence not in self._void
        ]

    def _token(self, row: int, sequence: Sequence, chosen: int) -> SampledToken:
        if chosen != TOO_WIDE:
            return SampledToken(chosen, is_finite=chosen != NOT_FINITE)
        assert self._logits is not None  # a row was expected to be drawn again
        token_id = draw_wide(self._logits[row : row + 1], sequence.sampling, self._uniforms[sequence])
        return SampledToken(token_id, is_late=True)
