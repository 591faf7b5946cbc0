"""The structures of `csrc/`, as ctypes lays them out. `library.py` compares their sizes with the compiled ones."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, c_float, c_int64, c_void_p


class Linear(Structure):
    """`struct linear`: a frozen weight in panels."""

    _fields_ = (
        ("panels", c_void_p),
        ("scale", c_void_p),
        ("bias", c_void_p),
        ("inputs", c_int64),
        ("outputs", c_int64),
        ("weight_type", c_int64),
        ("is_gated", c_int64),
    )


class Layer(Structure):
    """`struct layer`."""

    _fields_ = (
        ("input_norm", c_void_p),
        ("query_norm", c_void_p),
        ("key_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("qkv", Linear),
        ("attention_output", Linear),
        ("gate_up", Linear),
        ("down", Linear),
        ("sliding_window", c_int64),
    )


class AttentionShape(Structure):
    """`struct attention_shape`."""

    _fields_ = (("num_heads", c_int64), ("num_kv_heads", c_int64), ("head_dim", c_int64), ("scale", c_float))


class Config(Structure):
    """`struct config`."""

    _fields_ = (
        ("num_layers", c_int64),
        ("hidden_size", c_int64),
        ("intermediate_size", c_int64),
        ("attention", AttentionShape),
        ("epsilon", c_float),
        ("embedding", c_void_p),
        ("cosine", c_void_p),
        ("sine", c_void_p),
        ("final_norm", c_void_p),
        ("head", Linear),
        ("layers", POINTER(Layer)),
    )


class Step(Structure):
    """`struct step`."""

    _fields_ = (
        ("num_tokens", c_int64),
        ("num_spans", c_int64),
        ("num_sampled", c_int64),
        ("token_ids", c_void_p),
        ("sampled_rows", c_void_p),
        ("spans", c_void_p),
        ("hidden", c_void_p),
        ("inputs", c_void_p),
        ("branch", c_void_p),
        ("heads", c_void_p),
        ("attended", c_void_p),
        ("gated", c_void_p),
        ("up", c_void_p),
        ("logits", c_void_p),
    )


SPAN_FIELDS = 10
"""Of `struct span`, each of 8 bytes: first_token, num_tokens, first_position, the own segment's layers, row and
capacity, the shared segment's, num_shared."""

SIZES = (
    ctypes.sizeof(Linear),
    ctypes.sizeof(Layer),
    ctypes.sizeof(Config),
    8 * SPAN_FIELDS,
    ctypes.sizeof(Step),
)
