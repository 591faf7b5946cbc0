"""A try of attention at start: what a wheel or a torch gets wrong on this device shows before the first request."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reft_server.engine.kernels import AttentionShape
from reft_server.engine.kv_memory import BLOCK_SIZE

from .attention import Attention, AttentionUnavailableError, Varlen
from .attention_launch import Pages, prefill_block, prefill_tiles
from .launch import first_line

_SEQUENCES = ((1, 700), (1, 5), (20, 50), (7, 7))
"""Queries and keys: two that decode, one of them long enough to be split; a later and a first chunk of a prompt."""
_WINDOW = 9
_TOLERANCE = 2e-2  # of the spread; a product of bfloat16 is right within 1e-2


@dataclass(frozen=True)
class Probe:
    """What attention reads."""

    query: Tensor  # [num_rows, num_heads, head_dim]
    pages: Pages
    varlen: Varlen


def check_attention(attention: Attention, shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> None:
    """Compare attention with plain torch in float32, with a window and without.

    Raises:
        AttentionUnavailableError: it refuses the shapes, the dtype, the page size or the device; or it is wrong.
    """
    probe = make_probe(shape, dtype, device)
    for window in (None, _WINDOW):
        expected = plain_attention(probe, shape, window)
        try:
            found = attention.attend(probe.varlen, probe.query, probe.pages, window).float()
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:  # what such libraries refuse with
            raise AttentionUnavailableError(first_line(error)) from error
        difference = float((found - expected).abs().max() / (expected.max() - expected.min()))
        if not difference <= _TOLERANCE:  # NaN fails too
            raise AttentionUnavailableError(f"values differ from plain torch's by {difference:.1e} of their spread")


def make_probe(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> Probe:
    """The sequences above over pages in no order."""
    num_pages = [-(-num_keys // BLOCK_SIZE) for _, num_keys in _SEQUENCES]
    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device, dtype)

    page_size = (shape.num_kv_heads, BLOCK_SIZE, shape.head_dim)
    order = torch.randperm(sum(num_pages), generator=generator).split(num_pages)
    starts = torch.tensor([0, *(num_queries for num_queries, _ in _SEQUENCES)]).cumsum(0)
    num_decode = sum(num_queries == 1 for num_queries, _ in _SEQUENCES)
    chunks = [
        (int(start), num_keys - num_queries, num_queries)
        for start, (num_queries, num_keys) in zip(starts, _SEQUENCES, strict=False)
    ]
    block = prefill_block(dtype, shape.head_dim, device)
    varlen = Varlen(
        query_starts=starts.to(device, torch.int32),
        lengths=torch.tensor([num_keys for _, num_keys in _SEQUENCES], dtype=torch.int32, device=device),
        tables=torch.nn.utils.rnn.pad_sequence(order, batch_first=True).to(device, torch.int32),
        num_decode=num_decode,
        max_num_queries=max(num_queries for num_queries, _ in _SEQUENCES),
        prefill_tiles=torch.tensor(
            prefill_tiles(chunks[num_decode:], block.num_queries), dtype=torch.int32, device=device
        ),
    )
    return Probe(
        query=random(int(starts[-1]), shape.num_heads, shape.head_dim),
        pages=Pages(random(sum(num_pages), *page_size), random(sum(num_pages), *page_size)),
        varlen=varlen,
    )


def plain_attention(probe: Probe, shape: AttentionShape, window: int | None) -> Tensor:
    """What `attend` must give, in float32, one sequence after the other."""
    varlen, parts = probe.varlen, []
    starts, lengths = varlen.query_starts.tolist(), varlen.lengths.tolist()
    for sequence, length in enumerate(lengths):
        table = varlen.tables[sequence, : -(-length // BLOCK_SIZE)]
        keys, values = (
            pages[table].transpose(0, 1).flatten(1, 2)[:, :length].float()  # [num_kv_heads, length, head_dim]
            for pages in (probe.pages.keys, probe.pages.values)
        )
        query = probe.query[starts[sequence] : starts[sequence + 1]].float().transpose(0, 1)
        places = torch.arange(length, device=query.device)
        positions = places[length - query.shape[1] :, None]
        visible = places <= positions
        if window is not None:
            visible &= places > positions - window
        grouped = query.unflatten(0, (shape.num_kv_heads, -1))
        scores = torch.einsum("ghqd,gkd->ghqk", grouped, keys) * shape.scale
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        parts.append(torch.einsum("ghqk,gkd->ghqd", weights, values).flatten(0, 1).transpose(0, 1))
    return torch.cat(parts)
