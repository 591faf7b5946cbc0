"""The choice of the next tokens, for a whole batch at once, each row with its own request's settings.

`sample` decides on the host what is to be done and waits for the result. `choose` is the part of it that a device can
do alone, in a CUDA graph: the same functions over all rows, with nothing read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .logprobs import Logprobs, pick_logprobs
from .sequence import Sequence
from .types import SamplingParams

NUM_CANDIDATES = 256
"""Likeliest tokens that a truncated row is drawn from; one whose nucleus is wider is sorted whole."""

NUM_DRAW_VALUES = 6
NOT_FINITE = -1
TOO_WIDE = -2


class SampledToken(NamedTuple):
    """The token chosen for one row; `is_finite` False means that the logits held NaN or infinity.

    `is_late`: it was chosen on the host after its step, so that a step which was launched meanwhile has not seen it.
    """

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    is_finite: bool = True
    is_late: bool = False


@dataclass(frozen=True)
class DrawSettings:
    """How rows are drawn: a column `[num_rows, 1]` each, on the logits' device.

    Attributes:
        temperature: float32; 0 = the largest logit.
        uniform: float64: a number in [0, 1) for each row.
        top_k: int64; the vocabulary's size = all.
        top_p: float32.
        min_p: float32.
        is_truncated: bool: only a part of the vocabulary may be drawn.
    """

    temperature: Tensor
    uniform: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    is_truncated: Tensor

    @staticmethod
    def values(sampling: SamplingParams, uniform: float, vocab_size: int) -> tuple[float, ...]:
        """A row's column of `unpack`'s argument."""
        # A denormal temperature would divide to infinity; at this bound the draw is the largest logit already.
        temperature = max(sampling.temperature, 1e-5) if sampling.temperature > 0 else 0.0
        top_k = sampling.top_k if 0 < sampling.top_k < vocab_size else vocab_size
        return temperature, uniform, top_k, sampling.top_p, sampling.min_p, is_truncated(sampling, vocab_size)

    @classmethod
    def unpack(cls, packed: Tensor) -> DrawSettings:
        """Settings out of `[NUM_DRAW_VALUES, num_rows]`, float64."""
        temperature, uniform, top_k, top_p, min_p, truncated = packed[:, :, None]
        return cls(temperature.float(), uniform, top_k.long(), top_p.float(), min_p.float(), truncated > 0)

    def rows(self, rows: list[int]) -> DrawSettings:
        columns = (self.temperature, self.uniform, self.top_k, self.top_p, self.min_p, self.is_truncated)
        return DrawSettings(*(column[rows] for column in columns))


def is_truncated(sampling: SamplingParams, vocab_size: int) -> bool:
    """Whether a row is drawn from a part of the vocabulary."""
    return 0 < sampling.top_k < vocab_size or sampling.top_p < 1.0 or sampling.min_p > 0.0


@torch.inference_mode()
def sample(logits: Tensor, sequences: tuple[Sequence, ...]) -> list[SampledToken]:
    """Choose one token per row.

    Semantics: first a sequence's `logits_processor` changes its row. `temperature` 0 then takes the largest logit, the
    lowest id among equals. Otherwise the distribution softmax(logits / temperature), cut to `min_p`, to `top_k` and
    then to the smallest set reaching `top_p`, is drawn from by inverting its cumulative sum at the sequence's own next
    random number; a row's draw doesn't depend on the others.

    Args:
        logits: `[num_rows, vocab_size]`; rows that have a `logits_processor` change.
        sequences: one per row.
    """
    uniforms = {row: one.random.random() for row, one in enumerate(sequences) if one.sampling.temperature > 0}
    try:
        return _sample(logits.float(), sequences, uniforms)
    except Exception:
        for row, number in reversed(uniforms.items()):  # the step is run again
            sequences[row].random.give_back(number)
        raise


def _sample(logits: Tensor, sequences: tuple[Sequence, ...], uniforms: Mapping[int, float]) -> list[SampledToken]:
    largest, chosen = _largest(logits)  # NaN counts as the largest, so it shows here
    is_finite = torch.isfinite(largest).tolist()
    with_logprobs = [i for i, s in enumerate(sequences) if s.sampling.num_logprobs is not None and is_finite[i]]
    logprobs = logits[with_logprobs].log_softmax(dim=-1) if with_logprobs else None  # the raw distribution's
    for row, sequence in enumerate(sequences):
        if sequence.logits_processor is not None and is_finite[row]:
            sequence.logits_processor(logits[row], sequence.token_ids)
            chosen[row] = logits[row].argmax()
    random_rows = [row for row in uniforms if is_finite[row]]
    if random_rows:
        drawn = [(sequences[row].sampling, uniforms[row]) for row in random_rows]
        chosen[random_rows] = _draw(logits[random_rows], drawn)
    token_ids: list[int] = chosen.tolist()
    found: dict[int, Logprobs] = {}
    if logprobs is not None:
        counts = [sequences[row].sampling.num_logprobs or 0 for row in with_logprobs]
        ids = [token_ids[row] for row in with_logprobs]
        found = dict(zip(with_logprobs, pick_logprobs(logprobs, ids, counts), strict=True))
    tokens = []
    for row, token_id in enumerate(token_ids):
        logprob, top_logprobs = found.get(row, (None, ()))
        tokens.append(SampledToken(token_id, logprob, top_logprobs, is_finite[row]))
    return tokens


def choose(logits: Tensor, settings: DrawSettings, *, has_plain: bool, has_truncated: bool) -> Tensor:
    """Choose a token per row as `sample` does, without the host: `[num_rows]`, int64.

    A row gets `NOT_FINITE` where its logits are not, and `TOO_WIDE` where it is truncated and needs `draw_wide`.

    Args:
        logits: `[num_rows, vocab_size]`, float32.
        has_plain: a row may be drawn from the whole vocabulary.
        has_truncated: a row may be drawn from a part of it. Where neither holds, all rows take their largest logit.
    """
    largest, chosen = logits.max(dim=-1)
    if has_plain or has_truncated:
        probabilities = _probabilities(logits, settings.temperature)
        drawn = _invert(probabilities, settings.uniform) if has_plain else chosen
        if has_truncated:
            likeliest, is_enough = _draw_likeliest(probabilities, settings, min(NUM_CANDIDATES, logits.shape[-1]))
            likeliest = likeliest.masked_fill(~is_enough, TOO_WIDE)  # `where` would copy the number from the host
            drawn = likeliest.where(settings.is_truncated[:, 0], drawn)
        chosen = drawn.where(settings.temperature[:, 0] > 0, chosen)
    return chosen.masked_fill(~torch.isfinite(largest), NOT_FINITE)


@torch.inference_mode()
def draw_wide(logits: Tensor, sampling: SamplingParams, uniform: float) -> int:
    """The token of a row, `[1, vocab_size]`, for which `choose` has said `TOO_WIDE`."""
    vocab_size = logits.shape[-1]
    values = DrawSettings.values(sampling, uniform, vocab_size)
    settings = DrawSettings.unpack(torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None])
    drawn, _ = _draw_likeliest(_probabilities(logits, settings.temperature), settings, vocab_size)
    return int(drawn)


def _largest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit of each row and its lowest id. numpy's takes 0.1 ms for 32 by 49,152, torch's 1.3 ms."""
    if logits.device.type != "cpu":
        return logits.max(dim=-1)
    chosen = torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.gather(1, chosen[:, None])[:, 0], chosen


def _draw(logits: Tensor, rows: SequenceOf[tuple[SamplingParams, float]]) -> Tensor:
    """Token ids, `[num_rows]`, by each row's settings and random number."""
    vocab_size, device = logits.shape[-1], logits.device
    values = [DrawSettings.values(sampling, uniform, vocab_size) for sampling, uniform in rows]
    settings = DrawSettings.unpack(torch.tensor(values, dtype=torch.float64, device=device).t())
    probabilities = _probabilities(logits, settings.temperature)
    out = torch.empty(len(rows), dtype=torch.int64, device=device)
    truncated = [i for i, (sampling, _) in enumerate(rows) if is_truncated(sampling, vocab_size)]
    plain = [i for i, (sampling, _) in enumerate(rows) if not is_truncated(sampling, vocab_size)]
    if plain:
        out[plain] = _invert(probabilities[plain], settings.uniform[plain])
    num_candidates = NUM_CANDIDATES
    while truncated:
        num_candidates = min(num_candidates, vocab_size)
        drawn, is_enough = _draw_likeliest(probabilities[truncated], settings.rows(truncated), num_candidates)
        out[truncated] = drawn
        truncated = [row for row, is_row_enough in zip(truncated, is_enough.tolist(), strict=True) if not is_row_enough]
        num_candidates = vocab_size
    return out


def _probabilities(logits: Tensor, temperature: Tensor) -> Tensor:
    """softmax(logits / temperature), float32; rows of temperature 0 are not drawn, whatever they hold."""
    return (logits / temperature.masked_fill(temperature == 0, 1.0)).softmax(dim=-1)


def _draw_likeliest(probabilities: Tensor, settings: DrawSettings, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Draw each row from its likeliest tokens: ids, and whether the cuts fall among the candidates; `[num_rows]` each.

    A row's result is that of the whole vocabulary where the candidates are enough, whatever the other rows are.
    """
    vocab_size = probabilities.shape[-1]
    top_k, top_p, min_p = settings.top_k, settings.top_p, settings.min_p
    kept, token_ids = probabilities.topk(num_candidates, dim=-1)
    ranks = torch.arange(num_candidates, device=probabilities.device)
    is_cut = (ranks >= top_k) | (kept < min_p * kept[:, :1])
    # The first cuts fall within the candidates, or the nucleus of all tokens does: nothing else is needed.
    is_bounded = (top_k <= num_candidates) | is_cut[:, -1:]
    kept = kept.masked_fill(is_cut, 0.0)
    total = kept.sum(dim=-1, keepdim=True)
    is_filtered = (top_k < vocab_size) | (min_p > 0)
    is_enough = is_bounded | (~is_filtered & (total >= top_p))
    # top_p counts within what the others have left, as vLLM does: filters apply in order.
    scale = total.masked_fill(~is_filtered, 1.0)
    is_cut = (kept.cumsum(dim=-1) - kept >= top_p * scale) & (ranks > 0)
    drawn = _invert(kept.masked_fill(is_cut, 0.0), settings.uniform)
    return token_ids.gather(1, drawn[:, None])[:, 0], is_enough[:, 0]


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Index whose span of the cumulative weights holds `uniform` in [0, 1) of the total; float64, `[num_rows]`."""
    cumulative = weights.double().cumsum(dim=-1)
    target = uniform * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    last = weights.shape[-1] - 1 - (weights.flip(-1) > 0).int().argmax(dim=-1)  # never a token of weight 0
    return torch.minimum(index, last)
