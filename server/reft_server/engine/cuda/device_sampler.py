"""The choice of tokens on the device, replayed from CUDA graphs, and their way to the host and to the next step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reft_server.engine.batch import Batch
from reft_server.engine.launched import LaunchedStep
from reft_server.engine.memory import to_host
from reft_server.engine.sampler import NUM_CANDIDATES, NUM_DRAW_VALUES, DrawSettings, choose, is_truncated
from reft_server.engine.sequence import Sequence

from .graph_capture import Capture, smallest_size

_UNIFORM = 1  # the row of `DrawSettings.unpack`'s argument that changes from step to step


@dataclass(frozen=True)
class _Rows:
    """How a step's rows choose.

    Args:
        orders: which sequences they are; naming them so keeps none of them alive.
        columns: `[NUM_DRAW_VALUES, size]`, as `DrawSettings.unpack` takes them.
    """

    orders: list[tuple[float, int]]
    columns: NDArray[np.float64]
    has_plain: bool
    has_truncated: bool
    may_be_wide: bool


class DeviceSampler:
    """Chooses the tokens of a launched step: a graph for each batch size, and for each way in which its rows choose.

    Attributes:
        logits: `[max_rows, vocab_size]`, float32: where a step leaves the logits of the rows that it samples.
        tokens: `[max_rows]`, int64: what `choose` gave for the last launched step.

    Args:
        sizes: numbers of rows that have a graph, in order; the last one is the most.
        capture: records a graph.
    """

    def __init__(self, sizes: list[int], vocab_size: int, device: torch.device, capture: Capture) -> None:
        max_rows = sizes[-1]
        self.logits = torch.zeros(max_rows, vocab_size, dtype=torch.float32, device=device)
        self.tokens = torch.zeros(max_rows, dtype=torch.int64, device=device)
        self._settings = torch.zeros(NUM_DRAW_VALUES * max_rows, dtype=torch.float64, device=device)
        self._sizes = sizes
        self._capture = capture
        self._rows: _Rows | None = None
        self._replays: dict[tuple[int, bool, bool], Callable[[], None]] = {}

    def launch(self, batch: Batch, uniforms: Mapping[Sequence, float]) -> LaunchedStep:
        """Choose a token for each of the batch's sampled sequences, whose rows of `logits` are being computed.

        Args:
            uniforms: a number for each sequence that draws.
        """
        sequences = batch.sampled_sequences
        num_rows, may_be_wide = len(sequences), False
        if sequences:
            size = smallest_size(self._sizes, num_rows)
            rows = self._update_rows(size, sequences)
            may_be_wide = rows.may_be_wide
            if uniforms:
                rows.columns[_UNIFORM, :num_rows] = [uniforms.get(one, 0.0) for one in sequences]
                columns = to_host(rows.columns, torch.float64, self._settings.device)
                self._packed(size).copy_(columns, non_blocking=True)
            self._replay(size, has_plain=rows.has_plain, has_truncated=rows.has_truncated)()
        logits = self.logits[:num_rows].clone() if may_be_wide else None  # the next step overwrites them
        chosen = torch.empty(num_rows, dtype=torch.int64, pin_memory=self.tokens.device.type == "cuda")
        chosen.copy_(self.tokens[:num_rows], non_blocking=True)
        return LaunchedStep(batch, chosen, _fence(self.tokens.device), uniforms, logits)

    def prepare(self, size: int) -> None:
        """Record the graphs of one of the sizes."""
        for has_plain in (False, True):
            for has_truncated in (False, True):
                self._replay(size, has_plain=has_plain, has_truncated=has_truncated)

    def _update_rows(self, size: int, sequences: tuple[Sequence, ...]) -> _Rows:
        """How the sequences choose; worked out again only where they are others than in the last step."""
        orders = [one.order for one in sequences]
        if self._rows is None or self._rows.orders != orders or self._rows.columns.shape[1] != size:
            vocab_size = self.logits.shape[-1]
            values = [DrawSettings.values(one.sampling, 0.0, vocab_size) for one in sequences]
            values += [(0.0,) * NUM_DRAW_VALUES] * (size - len(sequences))
            drawn = [one.sampling for one in sequences if one.sampling.temperature > 0]
            truncated = [one for one in drawn if is_truncated(one, vocab_size)]
            self._rows = _Rows(
                orders,
                np.array(values, np.float64).T.copy(),
                has_plain=len(truncated) < len(drawn),
                has_truncated=bool(truncated),
                may_be_wide=any(not 0 < one.top_k <= NUM_CANDIDATES for one in truncated),
            )
        return self._rows

    def _replay(self, size: int, *, has_plain: bool, has_truncated: bool) -> Callable[[], None]:
        key = (size, has_plain, has_truncated)
        if key not in self._replays:

            def run() -> Tensor:
                settings = DrawSettings.unpack(self._packed(size))
                chosen = choose(self.logits[:size], settings, has_plain=has_plain, has_truncated=has_truncated)
                return self.tokens[:size].copy_(chosen)

            self._replays[key], _ = self._capture(run)
        return self._replays[key]

    def _packed(self, size: int) -> Tensor:
        return self._settings[: NUM_DRAW_VALUES * size].view(NUM_DRAW_VALUES, size)


def _fence(device: torch.device) -> Callable[[], None]:
    """Waits until the device has done all that was launched so far."""
    if device.type != "cuda":
        return _wait_for_nothing
    event = torch.cuda.Event()
    event.record()
    return event.synchronize


def _wait_for_nothing() -> None:
    """A CPU has done what was launched."""
