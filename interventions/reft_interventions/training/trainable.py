"""An intervention set whose tensors are being trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from ..components import ROW_KINDS, is_head
from ..errors import TrainingError
from ..formulas import FORMULAS, Formula
from ..hooks import RowFunction, SiteEdit
from ..intervention_set import InterventionSet
from ..manifest import InterventionSpec, Manifest
from ..positions import Part
from ..validation import BaseModelSpec
from .batches import Batch
from .das import SourceRows, check_sources
from .data import TokenizedExample
from .options import INTERCHANGE, TrainingOptions
from .subspaces import delta_by_subspace, num_edited, parse_subspaces

ROTATION = "rotate_layer"


class TrainableSet:
    """Live parameters and the edits that use them: a group per layer, two when untied, fewer when layers share.

    R is a plain `[hidden_size, low_rank_dimension]` parameter. `project_gradients` before the optimizer step and
    `retract` after it keep its columns orthonormal, so there is no parametrization to recompute in each forward pass,
    and a saved R can be trained on.

    Args:
        options: what to train.
        base: the base model's sizes.
        device: where the base model is; parameters are float32 there.
    """

    def __init__(self, options: TrainingOptions, base: BaseModelSpec, device: torch.device) -> None:
        self._options = options
        self._formula: Formula = FORMULAS[options.formula]
        parts: tuple[Part, ...] = ("both",) if options.is_tied else ("prefix", "suffix")
        self._subspaces = parse_subspaces(options.subspaces, options.low_rank_dimension)
        width = base.row_sizes.width(options.component, base.hidden_size)
        if options.rank > width:
            raise TrainingError(
                f"low_rank_dimension {options.rank} exceeds the {width} numbers of a row of {options.component}",
                param="low_rank_dimension",
            )
        is_hidden = options.component in ROW_KINDS and ROW_KINDS[options.component] == "hidden"
        num_heads = base.row_sizes.num_heads(options.component) if is_head(options.component) else 0
        in_layer = list(itertools.product(options.head_numbers(num_heads), parts))
        self.specs = tuple(
            self._spec(
                layer,
                part,
                index if options.is_tied_across_layers else first + index,
                head=head,
                width=None if is_hidden else width,
            )
            for first, layer in zip(
                itertools.count(0, len(in_layer)), options.layer_numbers(base.num_layers), strict=False
            )
            for index, (head, part) in enumerate(in_layer)
        )
        self._sources: SourceRows | None = None
        generator = torch.Generator().manual_seed(options.seed)
        self.groups = tuple(
            {name: nn.Parameter(tensor.to(device)) for name, tensor in self._initial(width, generator).items()}
            for _ in {spec.parameters for spec in self.specs}
        )

    @property
    def num_parameters(self) -> int:
        return sum(tensor.numel() for group in self.groups for tensor in group.values())

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters by their name in the intervention file, `sites.<i>.<parameter>`."""
        return {f"sites.{i}.{name}": value for i, group in enumerate(self.groups) for name, value in group.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Overwrite every parameter, by `named_parameters`' names."""
        with torch.no_grad():
            for name, parameter in self.named_parameters().items():
                parameter.copy_(tensors[name])

    @property
    def is_interchange(self) -> bool:
        """Whether the edited rows move to rows of a source prompt."""
        return self._options.formula == INTERCHANGE

    def check_examples(self, examples: Sequence[TokenizedExample]) -> None:
        """Each row has what the options need of it.

        Raises:
            TrainingError: naming the line.
        """
        if self.is_interchange:
            check_sources(examples, self.specs)
        for example in examples:
            if example.source_ids is not None and not self.is_interchange:
                raise TrainingError(f"line {example.line}: a source needs --method das", param="data")
            if example.subspace is not None and example.subspace not in self._subspaces:
                raise TrainingError(
                    f"line {example.line}: --subspaces names no {example.subspace[:80]!r}", param="subspaces"
                )

    def use_sources(self, sources: SourceRows) -> None:
        """Take the source rows of an interchange from here."""
        self._sources = sources

    def site_edits(self, batch: Batch | None = None, dropout_generator: Generator | None = None) -> list[SiteEdit]:
        """The edits for `hook_edits`; gradients flow to the parameters.

        Args:
            batch: the rows that will run; needed where a row has a source or a subspace.
            dropout_generator: on the CPU; None = no dropout, as at inference.
        """
        return [
            SiteEdit.of(spec, self._function(index, batch, dropout_generator)) for index, spec in enumerate(self.specs)
        ]

    @torch.no_grad()
    def project_gradients(self) -> None:
        """Keep of R's gradient what moves along the manifold of orthonormal columns.

        Semantics: G <- G - R (RᵀG + GᵀR) / 2.

        Source: Edelman, Arias, Smith 1998, arXiv:physics/9806030, section 2.2, the Euclidean metric.
        """
        for rotation in self._rotations():
            if rotation.grad is not None:
                product = rotation.T @ rotation.grad
                rotation.grad -= rotation @ ((product + product.T) / 2)

    @torch.no_grad()
    def retract(self) -> None:
        """Put R back on the manifold: the Q of its QR decomposition in float64, signs kept."""
        for rotation in self._rotations():
            orthonormal, triangular = torch.linalg.qr(rotation.to(torch.float64))
            signs = torch.where(triangular.diagonal() < 0, -1.0, 1.0).to(torch.float64)
            rotation.copy_(orthonormal * signs)

    def orthonormality_error(self) -> float:
        """Largest |RᵀR - I| over all groups; 0 for a formula without R."""
        errors = [
            (rotation.T @ rotation - torch.eye(rotation.shape[1], device=rotation.device)).abs().max().item()
            for rotation in self._rotations()
        ]
        return max(errors, default=0.0)

    def to_intervention_set(self, manifest: Manifest) -> InterventionSet:
        """A copy of the parameters with a manifest, ready to be saved."""
        return InterventionSet.create(manifest, self.groups)

    def _rotations(self) -> list[nn.Parameter]:
        return [group[ROTATION] for group in self.groups if ROTATION in group]

    def _spec(self, layer: int, part: Part, index: int, *, head: int | None, width: int | None) -> InterventionSpec:
        options = self._options
        return InterventionSpec(
            layer=layer,
            component=options.component,
            formula=options.formula,
            low_rank_dimension=options.rank,
            act=options.act,
            positions=options.position_spec,
            part=part,
            suffix_offset=options.suffix_offset,
            short_prompt=options.short_prompt,
            parameters=index,
            head=head,
            width=width,
        )

    def _initial(self, width: int, generator: Generator) -> dict[str, Tensor]:
        tensors = self._formula.initial_parameters(width, self._options.rank, generator)
        if self._options.start == "base" and self._options.act == "linear":
            _start_at_base(self._options.formula, tensors)
        return tensors

    def _function(self, index: int, batch: Batch | None, dropout_generator: Generator | None) -> RowFunction:
        spec = self.specs[index]
        examples = () if batch is None else batch.examples
        parameters: dict[str, Tensor] = dict(self.groups[spec.parameters])
        if self._sources is not None and examples:
            parameters["source"] = self._sources.rows(index, examples)
        owners: list[str | None] = []
        if any(example.subspace is not None for example in examples):
            rule = spec.intervention_positions
            owners = [example.subspace for example in examples for _ in range(num_edited(rule, example))]

        def edit(rows: Tensor) -> Tensor:
            with torch.autocast(rows.device.type, enabled=False):  # the server computes the edit in float32
                dtype = torch.promote_types(rows.dtype, torch.float32)
                cast = {name: value.to(dtype) for name, value in parameters.items()}
                wide = rows.to(dtype)
                if owners:
                    delta = delta_by_subspace(self._formula, wide, cast, spec.act, owners, self._subspaces)
                else:
                    delta = self._formula.delta(wide, cast, spec.act)
                return rows + self._drop(delta, dropout_generator).to(rows.dtype)

        return edit

    def _drop(self, delta: Tensor, generator: Generator | None) -> Tensor:
        """Dropout on what is added, never on the row itself, unlike pyreft's."""
        rate = self._options.dropout
        if generator is None or not rate:
            return delta
        is_kept = torch.rand(delta.shape, generator=generator).to(delta.device) >= rate
        return delta * is_kept / (1 - rate)


def _start_at_base(formula: str, tensors: dict[str, Tensor]) -> None:
    """Choose the source so that the edit is 0 at first, where the formula can and still has a gradient there.

    A random start moves every edited row at every layer before anything is learned; at 30 layers that costs the first
    epochs.
    """
    if formula in ("loreft", "noreft"):
        target = tensors[ROTATION].T if formula == "loreft" else tensors["proj_weight"]
        tensors["learned_source_weight"] = target.clone().contiguous()
    elif formula in ("direft", "nodireft"):
        tensors["learned_source_weight"].zero_()
    else:
        return
    tensors["learned_source_bias"].zero_()
