"""The small operations of the packed path between its matrix products, and the one implementation in plain torch."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from reft_interventions.folded import SiteKey

from .attention import attend
from .batch import Batch
from .linear import Linear, make_linear


@dataclass(frozen=True)
class Norm:
    """RMSNorm: `x / sqrt(mean(x²) + epsilon) * weight`, summed in float32."""

    weight: Tensor
    epsilon: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.epsilon)


@dataclass(frozen=True)
class AttentionShape:
    """What all layers' attention has in common."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float


@dataclass(frozen=True)
class AttentionLayer:
    """What one layer's attention has of its own."""

    index: int
    query_norm: Norm | None
    key_norm: Norm | None
    sliding_window: int | None


class Step(Protocol):
    """One step as the kernels see it, made by `Kernels.begin`."""

    @property
    def input_ids(self) -> Tensor:
        """`[num_rows]`, int64: the batch's tokens, then padding."""
        ...

    @property
    def sampled(self) -> Tensor:
        """`[num_sampled]` and padding, int64: the rows whose logits are needed."""
        ...


StepT = TypeVar("StepT", bound=Step)


class Kernels(Protocol[StepT]):
    """How the packed path computes. Rows of padding hold anything.

    `hidden` is the residual stream, `[num_rows, hidden_size]`, changed in place. Edits apply where a row's site is
    named, in the order of the sites.
    """

    @property
    def name(self) -> str:
        """For the log."""
        ...

    @property
    def is_paged(self) -> bool:
        """K and V are in pages, not in extents."""
        ...

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A product with a frozen weight `[out_features, in_features]`; the weight may be freed afterwards."""
        ...

    def begin(self, batch: Batch, fewest_rows: int) -> StepT:
        """What the step's kernels share; batches of fewer rows are padded."""
        ...

    def add(self, step: StepT, hidden: Tensor, branch: Tensor, sites: SequenceOf[SiteKey]) -> None:
        """`hidden += branch`, then the edits at `sites`."""
        ...

    def add_norm(
        self, step: StepT, hidden: Tensor, branch: Tensor | None, norm: Norm, sites: SequenceOf[SiteKey]
    ) -> Tensor:
        """`hidden += branch`, then the edits at `sites`, then `norm(hidden)` as a tensor of its own."""
        ...

    def edit(self, step: StepT, rows: Tensor, layer: int, component: str) -> None:
        """The edits of one site, in place."""
        ...

    def attend(self, step: StepT, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        """Rotate queries and keys, write K and V, attend.

        Args:
            qkv: `[num_rows, (num_heads + 2 * num_kv_heads) * head_dim]`; in heads of queries and keys the columns of a
                rotary pair are adjacent.

        Returns:
            `[num_rows, num_heads * head_dim]`.
        """
        ...

    def gate(self, step: StepT, gate_up: Tensor, layer: int) -> Tensor:
        """`silu(gate) * up`, `[num_rows, intermediate_size]`; `mlp_activation` is edited in between."""
        ...


@dataclass(frozen=True)
class TorchStep:
    """A batch, padded."""

    batch: Batch
    input_ids: Tensor
    sampled: Tensor
    rotation: Tensor  # [num_rows, 1, head_dim / 2], complex


class TorchKernels:
    """Plain torch on any device, with K and V in extents.

    Args:
        shape: of the attention.
        rotary: cos + i sin, `[max_model_len, head_dim / 2]`, complex64.
    """

    name = "torch"
    is_paged = False

    def __init__(self, shape: AttentionShape, rotary: Tensor) -> None:
        self._shape = shape
        self._rotary = rotary

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        return make_linear(weight, bias)

    def begin(self, batch: Batch, fewest_rows: int) -> TorchStep:
        # Rows of padding come last; they are in no sequence, so nothing attends to them and nothing reads them.
        padding = (0, max(fewest_rows - batch.num_tokens, 0))
        rotation = self._rotary.index_select(0, F.pad(batch.positions, padding))[:, None]
        sampled = F.pad(batch.sampled_index, (0, max(fewest_rows - len(batch.sampled_rows), 0)))
        return TorchStep(batch, F.pad(batch.input_ids, padding), sampled, rotation)

    def add(self, step: TorchStep, hidden: Tensor, branch: Tensor, sites: SequenceOf[SiteKey]) -> None:
        hidden += branch
        for layer, component in sites:
            step.batch.edits.apply(hidden, layer, component)

    def add_norm(
        self, step: TorchStep, hidden: Tensor, branch: Tensor | None, norm: Norm, sites: SequenceOf[SiteKey]
    ) -> Tensor:
        if branch is not None:
            hidden += branch
        for layer, component in sites:
            step.batch.edits.apply(hidden, layer, component)
        return norm(hidden)

    def edit(self, step: TorchStep, rows: Tensor, layer: int, component: str) -> None:
        step.batch.edits.apply(rows, layer, component)

    def attend(self, step: TorchStep, qkv: Tensor, layer: AttentionLayer) -> Tensor:
        shape, batch = self._shape, step.batch
        heads = qkv.unflatten(-1, (-1, shape.head_dim))  # [num_rows, num_heads + 2 * num_kv_heads, head_dim]
        edit_heads(batch, layer.index, heads, shape)
        num_rotated = shape.num_heads + shape.num_kv_heads
        rotated, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = rotated.split((shape.num_heads, shape.num_kv_heads), dim=1)
            rotated = torch.cat((layer.query_norm(query), layer.key_norm(key)), dim=1)
        rotated = _rotate(rotated, step.rotation)
        query, key = rotated[:, : shape.num_heads], rotated[:, shape.num_heads :]
        window = layer.sliding_window
        return attend(batch, layer.index, query, key, value, scale=shape.scale, sliding_window=window).flatten(1)

    def gate(self, step: TorchStep, gate_up: Tensor, layer: int) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        activation = F.silu(gate)
        step.batch.edits.apply(activation, layer, "mlp_activation")
        return activation.mul_(up)


def edit_heads(batch: Batch, layer: int, heads: Tensor, shape: AttentionShape) -> None:
    """The edits of one layer's queries, keys and values, in place: `[num_rows, heads, head_dim]`, pairs adjacent."""
    num_rotated = shape.num_heads + shape.num_kv_heads
    _edit_columns(batch, layer, "query_output", heads[:, : shape.num_heads], is_rotated=True)
    _edit_columns(batch, layer, "key_output", heads[:, shape.num_heads : num_rotated], is_rotated=True)
    _edit_columns(batch, layer, "value_output", heads[:, num_rotated:], is_rotated=False)


def _edit_columns(batch: Batch, layer: int, component: str, heads: Tensor, *, is_rotated: bool) -> None:
    """Edit a view `[num_tokens, num_heads, head_dim]` in the model's own order of columns."""
    if not batch.edits.has_rows_at(layer, component):
        return
    ordered = heads.unflatten(-1, (-1, 2)).transpose(-1, -2) if is_rotated else heads
    rows = ordered.flatten(1)  # [num_tokens, num_heads * head_dim], a copy
    batch.edits.apply(rows, layer, component)
    ordered.copy_(rows.view(ordered.shape))


def _rotate(heads: Tensor, rotation: Tensor) -> Tensor:
    """Rotary embedding of `[num_tokens, num_heads, head_dim]` whose pairs are adjacent, computed in float32."""
    pairs = torch.view_as_complex(heads.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(heads.dtype)
