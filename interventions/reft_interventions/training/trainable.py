"""An intervention set whose tensors are being trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor, nn

from ..attach import RowFunction, SiteEdit
from ..formulas import FORMULAS, Formula
from ..intervention_set import InterventionSet
from ..manifest import InterventionSpec, Manifest
from ..positions import Part
from .options import TrainingOptions

ROTATION = "rotate_layer"


class TrainableSet:
    """Live parameters, one group per layer (two when untied), and the edits that use them.

    R is a plain `[hidden_size, low_rank_dimension]` parameter. `project_gradients` before the optimizer step and
    `retract` after it keep its columns orthonormal, so there is no parametrization to recompute in each forward pass,
    and a saved R can be trained on.

    Args:
        options: what to train.
        layers: the layers to edit.
        hidden_size: of the base model.
        device: where the base model is; parameters are float32 there.
    """

    def __init__(
        self, options: TrainingOptions, layers: tuple[int, ...], hidden_size: int, device: torch.device
    ) -> None:
        self._options = options
        self._formula: Formula = FORMULAS[options.formula]
        parts: tuple[Part, ...] = ("both",) if options.is_tied else ("prefix", "suffix")
        self.specs = tuple(
            self._spec(layer, part, index)
            for index, (layer, part) in enumerate((layer, part) for layer in layers for part in parts)
        )
        generator = torch.Generator().manual_seed(options.seed)
        self.groups = tuple(
            {name: nn.Parameter(tensor.to(device)) for name, tensor in self._initial(hidden_size, generator).items()}
            for _ in self.specs
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

    def site_edits(self) -> list[SiteEdit]:
        """The edits for `hook_edits`; gradients flow to the parameters."""
        return [
            SiteEdit(spec.layer, spec.component, spec.intervention_positions, self._function(spec))
            for spec in self.specs
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

    def _spec(self, layer: int, part: Part, index: int) -> InterventionSpec:
        options = self._options
        return InterventionSpec(
            layer=layer,
            component=options.component,
            formula=options.formula,
            low_rank_dimension=options.rank,
            act=options.act,
            positions=options.positions,
            part=part,
            suffix_offset=options.suffix_offset,
            short_prompt=options.short_prompt,
            parameters=index,
        )

    def _initial(self, hidden_size: int, generator: Generator) -> dict[str, Tensor]:
        tensors = self._formula.initial_parameters(hidden_size, self._options.rank, generator)
        if self._options.start == "base" and self._options.act == "linear":
            _start_at_base(self._options.formula, tensors)
        return tensors

    def _function(self, spec: InterventionSpec) -> RowFunction:
        parameters = self.groups[spec.parameters]

        def edit(rows: Tensor) -> Tensor:
            with torch.autocast(rows.device.type, enabled=False):  # the server computes the edit in float32
                return self._formula.edit(rows, parameters, spec.act)

        return edit


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
