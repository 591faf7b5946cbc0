"""Interchange sets as files: a stored source or one per request, an orthonormal R, positions that a prompt has."""

from __future__ import annotations

import pytest
import torch

from reft_interventions import InterventionSet, base_model_spec, dumps, loads, validate_for_base
from reft_interventions.errors import InterventionManifestError, InterventionValueError


@pytest.mark.parametrize("stores_source", [True, False])
def test_the_file_keeps_a_source_where_there_is_one(tiny_model, make_set, stores_source):
    one = make_set(tiny_model("llama"), {"formula": "dii"}, stores_source=stores_source)
    loaded = loads(dumps(one))
    assert ("source" in loaded.parameters[0]) == stores_source
    assert loaded.content_hash == one.content_hash
    assert loaded.fold().content_hash == one.fold().content_hash


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_generated_tokens_need_a_stored_source(tiny_model, make_set, positions):
    spec = {"formula": "dii", "positions": positions}
    make_set(tiny_model("llama"), spec)
    with pytest.raises(InterventionManifestError, match="needs a stored source"):
        make_set(tiny_model("llama"), spec, stores_source=False)


def test_a_rotation_that_is_not_orthonormal_is_refused(tiny_model, make_set):
    model = tiny_model("llama")
    one = make_set(model, {"formula": "dii"}, stores_source=False)
    validate_for_base(one, base_model_spec(model, "tiny"))
    bent = InterventionSet.create(one.manifest, [{"rotate_layer": torch.ones(32, 4)}])
    with pytest.raises(InterventionValueError, match="orthonormal"):
        validate_for_base(bent, base_model_spec(model, "tiny"))
