"""The generic model path: any transformers decoder, its module tree untouched, through the attention interface."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from reft_interventions.model_tree import Columns, decoder_layers, resolve_component
from reft_server.errors import UnsupportedModelError

from .attention import attend
from .batch import Batch
from .kv_memory import KVLayout

ATTENTION_NAME = "reft_serve"
# The attention function gets no user data, so the running step reaches it through the engine thread's own context.
_current_batch: ContextVar[Batch] = ContextVar("current_batch")
_probed_layout: ContextVar[dict[int, tuple[int, int, int]]] = ContextVar("probed_layout")
_HARMLESS = frozenset(
    {
        "dropout",
        "is_causal",
        "position_ids",
        "use_cache",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
    }
)


class GenericModel:
    """A frozen transformers decoder that runs flat batches.

    Args:
        model: any `…ForCausalLM`; its attention implementation is switched to ours.

    Raises:
        UnsupportedModelError: the architecture doesn't go through the attention interface.
    """

    supports_shared_prefixes = False

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        AttentionInterface.register(ATTENTION_NAME, _attention_function)
        try:
            model.set_attn_implementation(ATTENTION_NAME)
        except ValueError as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} has no replaceable attention, so it can't be served: {error}"
            ) from error
        self.kv_layout = self._probe_layout()

    @torch.inference_mode()
    def forward(self, batch: Batch) -> Tensor:
        """Logits of the sampled rows, `[num_sampled, vocab_size]`, model dtype; K and V land in the cache."""
        token = _current_batch.set(batch)
        try:
            with self._edits_hooked(batch):
                output = self._model(
                    input_ids=batch.input_ids[None],
                    position_ids=batch.positions[None],
                    use_cache=False,
                    logits_to_keep=batch.sampled_index,
                )
        finally:
            _current_batch.reset(token)
        logits: Tensor = output.logits[0]
        return logits

    @contextmanager
    def _edits_hooked(self, batch: Batch) -> Iterator[None]:
        """Hooks at the edited sites of this step only, so that untouched layers run as they are."""
        handles = []
        try:
            for layer, component in batch.edits.sites:
                hook = resolve_component(self._model, layer, component)
                if hook.is_input:
                    function = _input_hook(batch, layer, component)
                    handles.append(hook.module.register_forward_pre_hook(function, with_kwargs=True))
                else:
                    function = _output_hook(batch, layer, component, hook.columns)
                    handles.append(hook.module.register_forward_hook(function))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def _probe_layout(self) -> KVLayout:
        """Run one token and note the shapes of every layer's K and V."""
        shapes: dict[int, tuple[int, int, int]] = {}
        token = _probed_layout.set(shapes)
        try:
            self._model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self._model.device), use_cache=False)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnsupportedModelError(
                f"{type(self._model).__name__} can't run with replaced attention, so it can't be served: {error}"
            ) from error
        finally:
            _probed_layout.reset(token)
        num_layers = len(decoder_layers(self._model))
        if sorted(shapes) != list(range(num_layers)):
            raise UnsupportedModelError(
                f"{type(self._model).__name__} has {num_layers} layers, of which {len(shapes)} use replaceable "
                "attention; models with other token mixers can't be served exactly"
            )
        return KVLayout(tuple(shapes[i] for i in range(num_layers)), self._model.dtype, self._model.device)


def _attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention: q, k, v `[1, heads, num_tokens, dim]` in, `[1, num_tokens, heads, dim]` out."""
    unknown = sorted(name for name, setting in kwargs.items() if setting is not None and name not in _HARMLESS)
    if unknown:
        raise UnsupportedModelError(f"the model's attention uses {', '.join(unknown)}, which can't be served exactly")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    shapes = _probed_layout.get(None)
    if shapes is not None:
        shapes[layer] = (key.shape[1], key.shape[3], value.shape[3])
        return value.repeat_interleave(query.shape[1] // key.shape[1], 1).transpose(1, 2), None
    out = attend(
        _current_batch.get(),
        layer,
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=scaling if scaling is not None else query.shape[-1] ** -0.5,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return out[None], None


def _input_hook(batch: Batch, layer: int, component: str) -> Any:
    def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()  # others may hold the module's input
        batch.edits.apply(hidden[0], layer, component)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    return hook


def _output_hook(batch: Batch, layer: int, component: str, columns: Columns | None) -> Any:
    def hook(_module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        hidden = (output[0] if isinstance(output, tuple) else output)[0]
        if columns is None:
            batch.edits.apply(hidden, layer, component)
            return
        rows = hidden[:, columns]  # [num_tokens, width], a copy where the columns aren't a range
        batch.edits.apply(rows, layer, component)
        hidden[:, columns] = rows

    return hook
