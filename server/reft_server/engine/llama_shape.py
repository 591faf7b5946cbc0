"""What the packed and the native path share: which models they know, and how they take one over."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the packed and native paths know this architecture in all its details."""
    config = model.config
    rope_type = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in _MODEL_TYPES
        and getattr(config, "hidden_act", None) == "silu"
        and rope_type in ("default", "linear", "llama3")
        and getattr(config, "attention_dropout", 0.0) is not None
    )


def rotary_table(rotary: Any, max_model_len: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """cos + i sin of every position, `[max_model_len, head_dim / 2]`, complex64, from the model's own module."""
    positions = torch.arange(max_model_len, device=device)[None]
    cos, sin = rotary(torch.zeros(1, dtype=dtype, device=device), positions)
    half = cos.shape[-1] // 2
    return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())


def sliding_window(attention: Any) -> int | None:
    window = getattr(attention, "sliding_window", None)
    if window is None and attention.config.model_type == "mistral":
        window = attention.config.sliding_window
    return None if window is None else int(window)


def free_weight(module: nn.Linear) -> None:
    """Drop a weight that lives on in packed form, so that the base model is in memory once."""
    module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
