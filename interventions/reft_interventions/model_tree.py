"""Where the parts of a transformers decoder are, whatever the architecture calls them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .components import RowSizes, check_component, whole_component
from .errors import UnsupportedComponentError
from .validation import BaseModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INNER_NAMES = ("model", "transformer", "gpt_neox", "language_model", "text_model", "decoder", "base_model")
_LAYERS_NAMES = ("layers", "h")
_ATTENTION_NAMES = ("self_attn", "attn", "attention")
_MLP_NAMES = ("mlp", "feed_forward", "block_sparse_moe")
_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act")
_OUTPUT_NAMES = ("o_proj", "c_proj", "dense", "out_proj")
_PROJECTIONS = ("query_output", "key_output", "value_output")
_FUSED_PROJECTIONS = MappingProxyType({"gpt2": "c_attn", "gpt_neox": "query_key_value", "phi3": "qkv_proj"})
_CONFIG_FIELDS = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "intermediate_size", "vocab_size", "hidden_act", "hidden_activation", "rms_norm_eps", "layer_norm_eps",
    "sliding_window", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
    "use_parallel_residual", "partial_rotary_factor", "tie_word_embeddings",
)  # fmt: skip
_SAMPLE_SIZE = 64
_EMBEDDING_SAMPLE_SIZE = 4096


Columns = slice | Tensor
"""Columns of a row: a range, or an index `[num_columns]`, int64."""


@dataclass(frozen=True)
class ComponentHook:
    """A component as a module and which side of it: its first argument (`is_input`) or its output.

    `columns` are the component's where a product is fused, in the component's own order; None = all.
    """

    module: nn.Module
    is_input: bool
    columns: Columns | None = None


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


def use_exact_attention(model: PreTrainedModel) -> None:
    """Keep attention's soft cap (Gemma 2): before 5.21 transformers takes SDPA by default, which leaves it out."""
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None) is not None and config._attn_implementation == "sdpa":
        model.set_attn_implementation("eager")


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
    """The module whose input or output is `component` of decoder layer `layer`; of a `head_*` one, the whole's.

    Raises:
        UnsupportedComponentError: the component is not served, the layer is out of range, or the architecture has no
            such part.
    """
    check_component(component)
    component = whole_component(component)
    layers = decoder_layers(model)
    if not 0 <= layer < len(layers):
        raise UnsupportedComponentError(f"layer {layer} is outside the model's {len(layers)} layers", param="layer")
    block = layers[layer]
    if component.startswith("block_"):
        return ComponentHook(block, component == "block_input")
    if component.startswith("mlp_"):
        mlp = _child(block, _MLP_NAMES, "mlp")
        if component == "mlp_activation":
            return ComponentHook(_child(mlp, _ACTIVATION_NAMES, component), is_input=False)
        return ComponentHook(mlp, component == "mlp_input")
    attention = _child(block, _ATTENTION_NAMES, "attention")
    if component in ("attention_input", "attention_output"):
        return ComponentHook(attention, component == "attention_input")
    if component == "attention_value_output":
        return ComponentHook(_child(attention, _OUTPUT_NAMES, component), is_input=True)
    return _projection(model, attention, component)


def _child(parent: nn.Module, names: tuple[str, ...], part: str) -> nn.Module:
    for name in names:
        module = getattr(parent, name, None)
        if isinstance(module, nn.Module):
            return module
    raise UnsupportedComponentError(f"{type(parent).__name__} has no {part} module", param="component")


def _projection(model: nn.Module, attention: nn.Module, component: str) -> ComponentHook:
    """Where queries, keys or values leave their product: before norms on heads, and before they are rotated."""
    config, sizes = _text_config(model), row_sizes(model)
    width = sizes.width(component, int(config.hidden_size))
    num_query, num_key = sizes.num_attention_heads * sizes.head_dim, sizes.num_key_value_heads * sizes.head_dim
    which = _PROJECTIONS.index(component)
    name = _FUSED_PROJECTIONS.get(config.model_type)
    if name is None:
        module = _child(attention, (f"{component[0]}_proj",), component)
        if getattr(module, "out_features", width) != width:
            raise UnsupportedComponentError(
                f"{component} of {type(attention).__name__} holds more than the projection", param="component"
            )
        return ComponentHook(module, is_input=False)
    module = _child(attention, (name,), component)
    if config.model_type == "gpt_neox":  # head by head: its query, its key, its value
        heads = torch.arange(sizes.num_attention_heads)[:, None] * 3 + which
        return ComponentHook(module, False, (heads * sizes.head_dim + torch.arange(sizes.head_dim)).flatten())
    start = (0, num_query, num_query + num_key)[which]
    return ComponentHook(module, False, slice(start, start + width))


def base_model_spec(model: nn.Module, model_id: str) -> BaseModelSpec:
    """What validation needs to know about a resident transformers model."""
    config = _text_config(model)
    num_layers = len(decoder_layers(model))
    return BaseModelSpec(model_id, fingerprint(model), int(config.hidden_size), num_layers, row_sizes(model))


def row_sizes(model: nn.Module) -> RowSizes:
    """A transformers model's sizes besides `hidden_size`, from its configuration."""
    config = _text_config(model)
    num_heads = int(getattr(config, "num_attention_heads", 0) or 0)
    num_kv_heads = int(getattr(config, "num_key_value_heads", 0) or num_heads)
    head_dim = int(getattr(config, "head_dim", 0) or (config.hidden_size // num_heads if num_heads else 0))
    intermediate_size = getattr(config, "intermediate_size", 0) or getattr(config, "n_inner", 0)
    if not intermediate_size and config.model_type == "gpt2":
        intermediate_size = 4 * config.hidden_size
    return RowSizes(int(intermediate_size or 0), num_heads, num_kv_heads, head_dim)


def site_width(model: nn.Module, component: str) -> int:
    """How many numbers one row of `component` has in this model; of a `head_*` one, of one head.

    Raises:
        UnsupportedComponentError: no such component is served, or the model's configuration does not tell.
    """
    check_component(component)
    return row_sizes(model).width(component, int(_text_config(model).hidden_size))


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
