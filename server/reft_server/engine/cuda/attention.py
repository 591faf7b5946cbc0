"""Attention over pages: our own kernels, torch's varlen attention, or FlashAttention-3; chosen once, at start.

The others read our pages, `[num_pages, num_kv_heads, page_size, head_dim]`, through views with heads and tokens
exchanged: both take any strides as long as a row is contiguous.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reft_server.engine.kernels import AttentionShape
from reft_server.engine.kv_memory import BLOCK_SIZE
from reft_server.engine.settings import AttentionChoice
from reft_server.errors import ConfigurationError

from . import attention_launch
from .attention_launch import Pages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Varlen:
    """Whose a step's rows are. Those that decode come first, one row each; then prompts' chunks; then padding.

    Attributes:
        query_starts: `[num_sequences + 1]`, int32: the first row of each sequence, and the one behind the last.
        lengths: `[num_sequences]`, int32: keys, this step's included; 0 = padding.
        tables: `[num_sequences, max_pages]`, int32: pages, in order.
        num_decode: sequences that decode.
        max_num_queries: rows of one sequence.
        prefill_tiles: see `prefill_tiles`; None = no prompts.
    """

    query_starts: Tensor
    lengths: Tensor
    tables: Tensor
    num_decode: int
    max_num_queries: int = 1
    prefill_tiles: Tensor | None = None


class Attention(Protocol):
    """Causal attention of a step's queries to all keys in their sequences' pages, which hold this step's already."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    def attend(self, varlen: Varlen, query: Tensor, pages: Pages, window: int | None) -> Tensor:
        """Values for each query, `[num_rows, num_heads, head_dim]`, like `query`. Rows of padding hold anything.

        Safe in a CUDA graph: all that differs from step to step is in the tensors of `varlen`.

        Args:
            window: keys that a query sees, its own included; None = all.
        """
        ...


class AttentionUnavailableError(Exception):
    """This machine, or this torch, has no such attention over our pages; the message says why."""


class TritonAttention:
    """Our own kernels: one for rows that decode, one for prompts."""

    name = "triton"

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape

    def attend(self, varlen: Varlen, query: Tensor, pages: Pages, window: int | None) -> Tensor:
        out = torch.empty_like(query)
        count = varlen.num_decode
        if count:
            attention_launch.decode(
                query[:count], pages, varlen.tables[:count], varlen.lengths[:count], self._shape, window, out[:count]
            )
        if varlen.prefill_tiles is not None:
            attention_launch.prefill(
                query, pages, varlen.tables[count:], varlen.prefill_tiles, self._shape, window, out
            )
        return out


class TorchAttention:
    """`torch.nn.attention.varlen.varlen_attn` with a block table, from torch 2.13.

    Args:
        function: `varlen_attn`, or one with its arguments.
        num_splits: of a sequence's keys; None = torch chooses.
    """

    name = "torch"

    def __init__(self, shape: AttentionShape, function: Callable[..., Any], num_splits: int | None) -> None:
        self._shape = shape
        self._function = function
        self._num_splits = num_splits

    def attend(self, varlen: Varlen, query: Tensor, pages: Pages, window: int | None) -> Tensor:
        out: Tensor = self._function(
            query,
            pages.keys.transpose(1, 2),
            pages.values.transpose(1, 2),
            varlen.query_starts,
            None,  # the lengths of keys are in `seqused_k`
            varlen.max_num_queries,
            varlen.tables.shape[1] * BLOCK_SIZE,
            scale=self._shape.scale,
            window_size=(-1 if window is None else window - 1, 0),
            enable_gqa=self._shape.num_heads != self._shape.num_kv_heads,
            seqused_k=varlen.lengths,
            block_table=varlen.tables,
            num_splits=self._num_splits,
        )
        return out


class FlashAttention3:
    """`flash_attn_interface.flash_attn_with_kvcache`, for Hopper; pages of any size.

    Args:
        function: `flash_attn_with_kvcache`, or one with its arguments.
    """

    name = "fa3"

    def __init__(self, shape: AttentionShape, function: Callable[..., Any]) -> None:
        self._shape = shape
        self._function = function

    def attend(self, varlen: Varlen, query: Tensor, pages: Pages, window: int | None) -> Tensor:
        out: Tensor = self._function(
            query,
            pages.keys.transpose(1, 2),
            pages.values.transpose(1, 2),
            cache_seqlens=varlen.lengths,
            page_table=varlen.tables,
            cu_seqlens_q=varlen.query_starts,
            max_seqlen_q=varlen.max_num_queries,
            softmax_scale=self._shape.scale,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            num_splits=0,  # chosen on the device, by the lengths
        )
        return out


def choose_attention(
    choice: AttentionChoice, shape: AttentionShape, dtype: torch.dtype, device: torch.device
) -> Attention:
    """The attention that was asked for; for `auto` the first of FA3, torch's and our own that works here.

    Raises:
        ConfigurationError: the one that was asked for can't be had.
    """
    from .attention_probe import check_attention  # it needs the protocol above

    candidates = {"auto": ("fa3", "torch"), "triton": ()}.get(choice, (choice,))
    for name in candidates:
        try:
            attention: Attention = _flash_attention_3(shape) if name == "fa3" else _torch_attention(shape)
            check_attention(attention, shape, dtype, device)
        except AttentionUnavailableError as error:
            if choice != "auto":
                raise ConfigurationError(
                    f"attention={choice}: {error}; attention=auto takes what works", param="engine_attention"
                ) from error
            logger.info("attention unavailable backend=%s reason=%s", name, error)
        else:
            break
    else:
        attention = TritonAttention(shape)
    logger.info("attention chosen backend=%s", attention.name)
    return attention


def _torch_attention(shape: AttentionShape) -> TorchAttention:
    """Torch's own FA2 takes pages of 256 tokens and more, so FA3 is switched on below it where that is installed.

    Split keys are left to FA3: FA2's are wrong over pages when sequences have different lengths
    (github.com/Dao-AILab/flash-attention/issues/1217, github.com/pytorch/pytorch/issues/194167).
    """
    try:
        from torch.nn import attention as implementations
        from torch.nn.attention.varlen import varlen_attn
    except ImportError as error:
        raise AttentionUnavailableError(str(error)) from error
    if not {"block_table", "seqused_k", "num_splits"} <= inspect.signature(varlen_attn).parameters.keys():
        raise AttentionUnavailableError(f"varlen_attn of torch {torch.__version__} has no block tables; 2.13 has")
    if importlib.util.find_spec("flash_attn_interface") is not None:
        implementations.activate_flash_attention_impl("FA3")
    is_fa3 = implementations.current_flash_attention_impl() == "FA3"
    return TorchAttention(shape, varlen_attn, None if is_fa3 else 1)


def _flash_attention_3(shape: AttentionShape) -> FlashAttention3:
    try:
        module = importlib.import_module("flash_attn_interface")
    except (ImportError, OSError) as error:  # OSError: a wheel for another CUDA
        raise AttentionUnavailableError(str(error)) from error
    return FlashAttention3(shape, module.flash_attn_with_kvcache)
