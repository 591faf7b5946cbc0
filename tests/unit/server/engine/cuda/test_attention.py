"""The choice of attention, and the calls of those that come from elsewhere: functions with their signatures and the
documented semantics stand in for them, because the real ones need a GPU.
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from reft_server.engine.build import build_engine
from reft_server.engine.cuda import GraphedModel, TritonKernels, choose_attention
from reft_server.engine.cuda.attention import (
    Attention,
    AttentionUnavailableError,
    FlashAttention3,
    TorchAttention,
    TritonAttention,
)
from reft_server.engine.cuda.attention_probe import check_attention, make_probe, plain_attention
from reft_server.engine.kernels import AttentionShape
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.settings import EngineSettings
from reft_server.engine.single import run_alone
from reft_server.errors import ConfigurationError
from tests.recorded_graphs import RecordedGraphs

SHAPE = AttentionShape(4, 2, 16, 0.3)
CPU = torch.device("cpu")


@torch.library.custom_op("reft_tests::attention", mutates_args=())
def documented(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor,
    lengths: Tensor,
    tables: Tensor,
    max_num_queries: int,
    window: list[int],
    scale: float,
) -> Tensor:
    """Query i of s sees key j of k when i + k - s - left <= j <= i + k - s + right; -1 = no bound.

    One operation, as the real ones are: a recorded graph holds the call, and nothing of its inside.
    """
    with torch._C.DisableTorchFunction():
        assert starts.dtype == lengths.dtype == tables.dtype == torch.int32
        assert starts.is_contiguous()
        assert lengths.is_contiguous()
        assert tables.stride(-1) == keys.stride(-1) == values.stride(-1) == query.stride(-1) == 1
        assert max_num_queries == int(starts.diff().max())
        out = torch.zeros_like(query)
        left, right = window
        for i, length in enumerate(lengths.tolist()):
            first, last = int(starts[i]), int(starts[i + 1])
            past_keys, past_values = (
                one[tables[i]].flatten(0, 1)[:length].double().repeat_interleave(query.shape[1] // one.shape[2], 1)
                for one in (keys, values)
            )
            for row in range(first, last):
                middle = row - first + length - (last - first)
                begin = 0 if left < 0 else max(middle - left, 0)
                end = length if right < 0 else middle + right + 1
                scores = torch.einsum("hd,khd->hk", query[row].double(), past_keys[begin:end]) * scale
                out[row] = torch.einsum("hk,khd->hd", scores.softmax(-1), past_values[begin:end])
        return out


def fake_varlen_attn(*args: Any, **kwargs: Any) -> Tensor:
    """`varlen_attn`, called as torch's own can be."""
    call = inspect.signature(varlen_attn).bind(*args, **kwargs)
    call.apply_defaults()
    given = SimpleNamespace(**call.arguments)
    assert given.cu_seq_k is None
    assert given.max_k == given.block_table.shape[1] * given.key.shape[1]
    assert given.enable_gqa
    return documented(
        given.query,
        given.key,
        given.value,
        given.cu_seq_q,
        given.seqused_k,
        given.block_table,
        given.max_q,
        list(given.window_size),
        given.scale,
    )


def fake_flash_attn_with_kvcache(  # the arguments of flash_attn_interface's, of FlashAttention-3
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
) -> Tensor:
    assert cache_seqlens is not None
    assert page_table is not None
    assert cu_seqlens_q is not None
    assert softmax_scale is not None
    assert max_seqlen_q is not None
    window = [window_size[0], 0] if causal else list(window_size)
    return documented(q, k_cache, v_cache, cu_seqlens_q, cache_seqlens, page_table, max_seqlen_q, window, softmax_scale)


BACKENDS: dict[str, Callable[[AttentionShape], Attention]] = {
    "triton": TritonAttention,
    "fa3": lambda shape: FlashAttention3(shape, fake_flash_attn_with_kvcache),
}
if "block_table" in inspect.signature(varlen_attn).parameters:  # from torch 2.13; `choose_attention` looks too
    BACKENDS["torch"] = lambda shape: TorchAttention(shape, fake_varlen_attn, 1)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("window", [None, 9])
def test_attention_equals_plain_torch(name: str, window: int | None) -> None:
    probe = make_probe(SHAPE, torch.float32, CPU)
    found = BACKENDS[name](SHAPE).attend(probe.varlen, probe.query, probe.pages, window)
    expected = plain_attention(probe, SHAPE, window)
    assert found.shape == probe.query.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 9])
def test_plain_attention_means_what_the_libraries_document(window: int | None) -> None:
    probe = make_probe(SHAPE, torch.float32, CPU)
    keys, values = probe.pages.keys.transpose(1, 2), probe.pages.values.transpose(1, 2)
    bounds = [-1 if window is None else window - 1, 0]
    varlen = probe.varlen
    expected = documented(
        probe.query, keys, values, varlen.query_starts, varlen.lengths, varlen.tables, 20, bounds, SHAPE.scale
    )
    torch.testing.assert_close(plain_attention(probe, SHAPE, window), expected, rtol=0, atol=1e-5)


class _Broken:
    """Attention that fails in one way."""

    name = "broken"

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        self.attend = attend


def without_window(varlen: Any, query: Tensor, pages: Any, window: int | None) -> Tensor:
    return BACKENDS["fa3"](SHAPE).attend(varlen, query, pages, None)


def wrong_where_keys_are_split(varlen: Any, query: Tensor, pages: Any, window: int | None) -> Tensor:
    lengths = varlen.lengths.clamp(max=256)
    return BACKENDS["fa3"](SHAPE).attend(replace(varlen, lengths=lengths), query, pages, window)


def of_other_pages(*_: Any) -> Tensor:
    raise RuntimeError("Paged KV cache block size must be divisible by 256\nException raised from mha_varlen_fwd")


def not_a_number(varlen: Any, query: Tensor, pages: Any, window: int | None) -> Tensor:
    return torch.full_like(query, float("nan"))


@pytest.mark.parametrize(
    ("attend", "message"),
    [
        (without_window, "values differ from plain torch's"),
        (wrong_where_keys_are_split, "values differ"),
        (not_a_number, "by nan"),
        (of_other_pages, r"must be divisible by 256$"),
    ],
)
def test_probe_finds_what_does_not_work(attend: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(AttentionUnavailableError, match=message):
        check_attention(_Broken(attend), SHAPE, torch.float32, CPU)


def test_probe_names_what_fails_without_a_message() -> None:
    def refuse(*_: Any) -> Tensor:
        raise AssertionError  # as a bare `assert` does

    with pytest.raises(AttentionUnavailableError, match="AssertionError"):
        check_attention(_Broken(refuse), SHAPE, torch.float32, CPU)


def test_auto_takes_our_own_where_nothing_else_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert choose_attention("auto", SHAPE, torch.float32, CPU).name == "triton"
    assert "attention chosen backend=triton" in caplog.messages
    assert [message.split(" reason=")[0] for message in caplog.messages[:-1]] == [
        "attention unavailable backend=fa3",
        "attention unavailable backend=torch",
    ]


def test_auto_takes_flash_attention_3_where_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(flash_attn_with_kvcache=fake_flash_attn_with_kvcache)
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    assert choose_attention("auto", SHAPE, torch.float32, CPU).name == "fa3"
    assert choose_attention("triton", SHAPE, torch.float32, CPU).name == "triton"


@pytest.mark.parametrize(("choice", "message"), [("fa3", "flash_attn_interface"), ("torch", "attention=auto")])
def test_attention_that_cannot_be_had_is_refused(choice: Any, message: str) -> None:
    """Torch's own runs on GPUs only, so the probe fails here with torch's words."""
    with pytest.raises(ConfigurationError, match=message) as caught:
        choose_attention(choice, SHAPE, torch.float32, CPU)
    assert caught.value.param == "engine_attention"


def test_attention_without_pages_is_refused(tiny_model: Any) -> None:
    settings = EngineSettings(attention="triton", model_path="packed", kernels="torch")
    with pytest.raises(ConfigurationError, match="needs the packed path with Triton's kernels"):
        build_engine(copy.deepcopy(tiny_model("llama", num_hidden_layers=1)), "tiny", settings)


@pytest.mark.parametrize("name", sorted(BACKENDS.keys() - {"triton"}))
def test_model_with_attention_from_elsewhere_equals_plain_torch(name: str, tiny_model: Any) -> None:
    """Chunks of a prompt, then a step in a bucket; mistral has a window."""
    model = tiny_model("mistral", num_hidden_layers=1)
    packed = PackedModel(
        copy.deepcopy(model), 64, lambda shape, rotary: TritonKernels(shape, rotary, BACKENDS[name](shape))
    )
    graphed = GraphedModel(packed, max_num_seqs=4, max_model_len=64, capture=RecordedGraphs())
    found, expected = (
        run_alone(one, list(range(28)), chunk_sizes=(9, 18, 1))
        for one in (graphed, PackedModel(copy.deepcopy(model), 64))
    )
    assert graphed.num_replays == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
