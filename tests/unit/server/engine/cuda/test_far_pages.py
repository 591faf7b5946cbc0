"""Pages beyond the first 2^31 values of a pool, which a GPU's 60 GB have: no address may be counted in 32 bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from reft_server.engine.cuda import attention_launch
from reft_server.engine.kernels import AttentionLayer, AttentionShape
from reft_server.engine.memory import lazy_zeros

SHAPE = AttentionShape(num_heads=2, num_kv_heads=1, head_dim=64, scale=0.125)
NEAR, FAR = 3, (1 << 31) // (16 * 64) + 5
CPU = torch.device("cpu")


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> attention_launch.Pages:
    """4 GiB each, of which the system gives what is touched; the interpreter otherwise copies whole tensors back."""
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)  # what it ran on is the tensors themselves
    keys, values = (lazy_zeros((FAR + 1, 1, 16, 64), torch.bfloat16, CPU) for _ in range(2))
    return attention_launch.Pages(keys, values)


def write(pages: attention_launch.Pages, page: int, qkv: Tensor) -> Tensor:
    """Rotated queries, `[16, 2, 64]`, of a page's tokens, whose keys and values are written."""
    rotary = torch.stack([torch.ones(16, 32), torch.zeros(16, 32)], dim=-1)
    positions = torch.arange(16)
    layer = AttentionLayer(0, None, None, None)
    return attention_launch.rope_write(qkv, pages, rotary, positions, page * 16 + positions, layer, None, SHAPE)


def test_kernels_reach_pages_at_the_end_of_a_large_pool(pages: attention_launch.Pages) -> None:
    qkv = torch.randn(16, 4 * 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    query = write(pages, NEAR, qkv)
    assert torch.equal(write(pages, FAR, qkv), query)
    for one in (pages.keys, pages.values):
        assert torch.equal(one[FAR], one[NEAR])
        assert bool(one[NEAR].any())
    decoded, prefilled = [], []
    for page in (NEAR, FAR):
        tables, lengths = torch.tensor([[page]], dtype=torch.int32), torch.tensor([16], dtype=torch.int32)
        out = torch.empty_like(query[:1])
        attention_launch.decode(query[15:], pages, tables, lengths, SHAPE, None, out)
        decoded.append(out)
        block = attention_launch.prefill_block(query.dtype, SHAPE.head_dim, CPU)
        tiles = torch.tensor(attention_launch.prefill_tiles([(0, 0, 16)], block.num_queries), dtype=torch.int32)
        out = torch.empty_like(query)
        attention_launch.prefill(query, pages, tables, tiles, SHAPE, None, out, block)
        prefilled.append(out)
    assert torch.equal(decoded[0], decoded[1])
    assert torch.equal(prefilled[0], prefilled[1])
    assert bool(decoded[0].any())
