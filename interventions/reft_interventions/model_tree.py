"""Where the parts of a transformers decoder are, whatever the architecture calls them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .components import check_component
from .errors import UnsupportedComponentError
from .validation import BaseModelSpec

_INNER_NAMES = ("model", "transformer", "gpt_neox", "language_model", "text_model", "decoder", "base_model")
_LAYERS_NAMES = ("layers", "h")
_ATTENTION_NAMES = ("self_attn", "attn", "attention")
_MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe")
_CONFIG_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps",
    "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
    "use_parallel_residual", "partial_rotary_factor", "tie_word_embeddings",
)  # fmt: skip
_SAMPLE_SIZE = 64
_EMBEDDING_SAMPLE_SIZE = 4096


@dataclass(frozen=True)
class ComponentHook:
    """A component as a module and which side of it: its first argument (`is_input`) or its output."""

    module: nn.Module
    is_input: bool


def decoder(model: nn.Module) -> nn.Module:
    """The module that holds the decoder layers: the one whose `forward` takes `input_ids` and the mask.

    Raises:
        UnsupportedComponentError: none is found.
    """
    module: nn.Module | None = model
    for _ in range(4):
        if module is None:
            break
        if any(isinstance(getattr(module, name, None), nn.ModuleList) for name in _LAYERS_NAMES):
            return module
        module = next(
            (
                inner
                for name in _INNER_NAMES
                if isinstance(inner := getattr(module, name, None), nn.Module) and inner is not module
            ),
            None,
        )
    raise UnsupportedComponentError(f"{type(model).__name__} has no list of decoder layers that can be edited")


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The decoder layers in order.

    Raises:
        UnsupportedComponentError: the architecture keeps them where we can't find them.
    """
    inner = decoder(model)
    for name in _LAYERS_NAMES:
        layers = getattr(inner, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise UnsupportedComponentError(f"{type(model).__name__} has no list of decoder layers that can be edited")


def resolve_component(model: nn.Module, layer: int, component: str) -> ComponentHook:
    """The module whose input or output is `component` of decoder layer `layer`.

    Raises:
        UnsupportedComponentError: the component is not served, the layer is out of range, or the architecture has no
            such part.
    """
    check_component(component)
    layers = decoder_layers(model)
    if not 0 <= layer < len(layers):
        raise UnsupportedComponentError(f"layer {layer} is outside the model's {len(layers)} layers", param="layer")
    block = layers[layer]
    part, _, side = component.rpartition("_")
    if part == "block":
        return ComponentHook(block, side == "input")
    for name in _MLP_NAMES if part == "mlp" else _ATTENTION_NAMES:
        module = getattr(block, name, None)
        if isinstance(module, nn.Module):
            return ComponentHook(module, side == "input")
    raise UnsupportedComponentError(f"{type(block).__name__} has no {part} module", param="component")


def base_model_spec(model: nn.Module, model_id: str) -> BaseModelSpec:
    """What validation needs to know about a resident transformers model."""
    config = _text_config(model)
    return BaseModelSpec(model_id, fingerprint(model), int(config.hidden_size), len(decoder_layers(model)))


def fingerprint(model: nn.Module) -> str:
    """Identify a base model by its shape and a sample of its weights.

    SHA-256 of the configuration fields that change its function and of evenly spaced elements, as float32, of the
    embedding and of every parameter of the decoder layers. The attention implementation, the paths it was loaded from
    and library versions do not enter; another checkpoint of the same architecture differs. The same weights loaded in
    bfloat16 and float32 agree when the stored ones are bfloat16.

    Returns:
        `sha256:<hex>`.
    """
    hasher = hashlib.sha256(json.dumps(_config_fields(model), sort_keys=True).encode())
    samples = [_sample(_embedding(model), _EMBEDDING_SAMPLE_SIZE)]
    for layer in decoder_layers(model):
        named = sorted(layer.named_parameters(), key=lambda item: item[0])
        samples.extend(_sample(parameter, _SAMPLE_SIZE) for _, parameter in named)
    hasher.update(torch.cat([sample.to(torch.float32) for sample in samples]).cpu().numpy().tobytes())
    return f"sha256:{hasher.hexdigest()}"


def _embedding(model: nn.Module) -> Tensor:
    inner = decoder(model)
    for name in ("embed_tokens", "wte", "embed_in"):
        weight = getattr(getattr(inner, name, None), "weight", None)
        if isinstance(weight, Tensor):
            return weight
    raise UnsupportedComponentError(f"{type(model).__name__} has no token embedding that we know")


def _sample(parameter: Tensor, size: int) -> Tensor:
    """`size` evenly spaced elements (all of a smaller tensor), by index so that no copy of the whole is made."""
    values = parameter.detach()
    count = min(size, values.numel())
    flat = torch.arange(count, device=values.device) * (values.numel() // max(count, 1))
    return values[torch.unravel_index(flat, values.shape)]


def _text_config(model: nn.Module) -> Any:
    config: Any = model.config
    return config.get_text_config()


def _config_fields(model: nn.Module) -> dict[str, Any]:
    config = _text_config(model)
    named = {name: getattr(config, name, None) for name in _CONFIG_FIELDS}
    fields = {name: value for name, value in named.items() if value is not None}
    # transformers 5 keeps RoPE's settings in `rope_parameters`, earlier releases in `rope_theta` and `rope_scaling`.
    rope = getattr(config, "rope_parameters", None) or {}
    theta = rope.get("rope_theta") or getattr(config, "rope_theta", None)
    return {**fields, "rope_theta": theta, "rope": _plain(rope)}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, int | float | str | bool | None) else str(value)
