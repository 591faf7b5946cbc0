"""Small intervention sets for tests, valid for `BASE`."""

from __future__ import annotations

from typing import Any

import torch

from reft_interventions import (
    FORMULAS,
    BaseModelRef,
    BaseModelSpec,
    InterventionSet,
    InterventionSpec,
    Manifest,
)

BASE = BaseModelSpec(model_id="tests/tiny", fingerprint="tiny-weights", hidden_size=16, num_layers=4)


def make_set(
    seed: int = 0,
    *,
    name: str = "sample",
    base: BaseModelSpec = BASE,
    subspaces: dict[str, tuple[int, ...]] | None = None,
    **spec: Any,
) -> InterventionSet:
    """One intervention on `block_output` of layer 1; `spec` overrides fields of its spec. A `dii` stores no source."""
    fields = {"layer": 1, "component": "block_output", "formula": "loreft", "low_rank_dimension": 2, "positions": "l1"}
    chosen = InterventionSpec.model_validate(fields | {"parameters": 0} | spec)
    manifest = Manifest(
        name=name,
        base_model=BaseModelRef(
            id=base.model_id, fingerprint=base.fingerprint, hidden_size=base.hidden_size, num_layers=base.num_layers
        ),
        interventions=(chosen,),
        subspaces=subspaces or {},
    )
    generator = torch.Generator().manual_seed(seed)
    formula = FORMULAS[chosen.formula]
    parameters = formula.initial_parameters(base.hidden_size, chosen.low_rank_dimension, generator)
    # Away from the initial values, where some formulas are the identity.
    parameters = {
        key: tensor if key == "rotate_layer" else tensor + torch.randn(tensor.shape, generator=generator)
        for key, tensor in parameters.items()
    }
    return InterventionSet.create(manifest, [parameters])
