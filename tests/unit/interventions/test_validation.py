"""Sets that do not fit the base model, or can't be right, are refused by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from reft_interventions import InterventionSet, base_model_spec, validate_for_base
from reft_interventions.components import NO_ROW_SIZES
from reft_interventions.errors import (
    InterventionBaseMismatchError,
    InterventionShapeError,
    InterventionValueError,
    UnsupportedComponentError,
)

ROTATING = ("loreft", "consreft", "lobireft", "direft")


def changed(one: InterventionSet, name: str, change, dtype=None) -> InterventionSet:
    groups = [{key: value.clone() for key, value in group.items()} for group in one.parameters]
    groups[0][name] = change(groups[0][name])
    if dtype is not None:
        groups[0][name] = groups[0][name].to(dtype)
    return InterventionSet.create(one.manifest, groups)


def with_base(one: InterventionSet, **fields) -> InterventionSet:
    base = one.manifest.base_model.model_copy(update=fields)
    return InterventionSet.create(one.manifest.model_copy(update={"base_model": base}), one.parameters)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", [*ROTATING, "noreft", "nodireft", "addition", "scale_shift", "mlp", "mlp_residual"])
def test_good_set_of_any_dtype_is_accepted(tiny_model, make_set, formula, dtype):
    model = tiny_model("llama")
    validate_for_base(make_set(model, {"formula": formula}, dtype=dtype), base_model_spec(model, "tiny"))


@pytest.mark.parametrize("rank", [1, 31, 32])
@pytest.mark.parametrize("seed", range(5))
def test_bfloat16_rotation_of_any_rank_is_accepted(tiny_model, make_set, rank, seed):
    model = tiny_model("llama")
    one = make_set(model, {"low_rank_dimension": rank}, dtype=torch.bfloat16, seed=seed)
    validate_for_base(one, base_model_spec(model, "tiny"))


def test_other_weights_of_the_same_shape_are_refused(tiny_model, make_set):
    one = make_set(tiny_model("llama"))
    with pytest.raises(InterventionBaseMismatchError, match="trained for 'tiny' with other weights") as caught:
        validate_for_base(one, base_model_spec(tiny_model("llama", seed=1), "resident"))
    assert caught.value.param == "base_model"


def test_manifest_without_fingerprint_needs_only_the_shape(tiny_model, make_set):
    one = with_base(make_set(tiny_model("llama")), fingerprint="")
    validate_for_base(one, base_model_spec(tiny_model("llama", seed=1), "resident"))
    with pytest.raises(InterventionShapeError, match="has 3"):
        validate_for_base(one, base_model_spec(tiny_model("llama", num_hidden_layers=3), "resident"))


@pytest.mark.parametrize(("field", "value"), [("hidden_size", 64), ("num_layers", 5)])
def test_other_shapes_are_refused(tiny_model, make_set, field, value):
    model = tiny_model("llama")
    with pytest.raises(InterventionShapeError, match=str(value)) as caught:
        validate_for_base(make_set(model), replace(base_model_spec(model, "tiny"), **{field: value}))
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("sizes", "param", "message"),
    [
        ({"head_dim": 16}, "width", "rows of 8 numbers at head_key_output, the base model's have 16"),
        ({"num_key_value_heads": 1}, "head", "head 1 is outside the base model's 1 heads of key_output"),
    ],
)
def test_other_heads_are_refused(tiny_model, make_set, sizes, param, message):
    model = tiny_model("llama")
    base = base_model_spec(model, "tiny")
    one = make_set(model, {"component": "head_key_output"})
    validate_for_base(one, base)
    with pytest.raises(InterventionShapeError, match=message) as caught:
        validate_for_base(one, replace(base, row_sizes=replace(base.row_sizes, **sizes)))
    assert caught.value.param == param


def test_row_of_another_intermediate_size_is_refused(tiny_model, make_set):
    one = make_set(tiny_model("llama"), {"component": "mlp_activation"})
    wider = base_model_spec(tiny_model("llama", intermediate_size=96), "tiny")
    with pytest.raises(InterventionShapeError, match="set the intervention's width to 96"):
        validate_for_base(one, replace(wider, fingerprint=one.manifest.base_model.fingerprint))


def test_component_of_unknown_size_is_refused(tiny_model, make_set):
    model = tiny_model("llama")
    base = replace(base_model_spec(model, "tiny"), row_sizes=NO_ROW_SIZES)
    validate_for_base(make_set(model), base)
    with pytest.raises(UnsupportedComponentError, match="has no mlp_activation that we know"):
        validate_for_base(make_set(model, {"component": "mlp_activation"}), base)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["rotate_layer", "learned_source_weight", "learned_source_bias"])
def test_values_that_are_not_finite_are_refused(tiny_model, make_set, name, value):
    model = tiny_model("llama")

    def poison(tensor):
        tensor.view(-1)[-1] = value
        return tensor

    with pytest.raises(InterventionValueError, match=f"sites.0.{name} holds NaN or infinity"):
        validate_for_base(changed(make_set(model), name, poison), base_model_spec(model, "tiny"))


def test_float64_values_beyond_float32_are_refused(tiny_model, make_set):
    model = tiny_model("llama")
    one = changed(make_set(model), "learned_source_bias", lambda t: t.double() * 1e300)
    with pytest.raises(InterventionValueError, match="NaN or infinity"):
        validate_for_base(one, base_model_spec(model, "tiny"))


@pytest.mark.parametrize("formula", ROTATING)
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (torch.zeros_like, "collapsed"),
        (lambda r: r * 0.1, "collapsed"),
        (lambda r: torch.cat([r[:, :-1], r[:, -1:] * 0], dim=1), "collapsed"),
        (lambda r: torch.cat([r[:, :-1], r[:, :1]], dim=1), "orthonormal"),
        (lambda r: r * 1.01, "orthonormal"),
        (lambda r: r * 30, "orthonormal"),
        (lambda r: r + 0.05, "orthonormal"),
    ],
)
def test_rotation_that_is_not_orthonormal_is_refused(tiny_model, make_set, formula, change, match):
    model = tiny_model("llama")
    one = changed(make_set(model, {"formula": formula}), "rotate_layer", change)
    with pytest.raises(InterventionValueError, match=match) as caught:
        validate_for_base(one, base_model_spec(model, "tiny"))
    assert caught.value.param == "sites.0.rotate_layer"


def test_float32_tolerance_is_tighter_than_bfloat16s(tiny_model, make_set):
    model = tiny_model("llama")
    base = base_model_spec(model, "tiny")
    slightly_long = make_set(model)
    validate_for_base(changed(slightly_long, "rotate_layer", lambda r: r * 1.004, torch.bfloat16), base)
    with pytest.raises(InterventionValueError, match="orthonormal"):
        validate_for_base(changed(slightly_long, "rotate_layer", lambda r: r * 1.004), base)


def test_second_group_is_checked_too(tiny_model, make_set):
    model = tiny_model("llama")
    one = make_set(model, {}, {"layer": 2})
    groups = [dict(one.parameters[0]), {**one.parameters[1], "rotate_layer": torch.zeros(32, 4)}]
    with pytest.raises(InterventionValueError, match=r"sites\.1\.rotate_layer"):
        validate_for_base(InterventionSet.create(one.manifest, groups), base_model_spec(model, "tiny"))


def test_noreft_projection_need_not_be_orthonormal(tiny_model, make_set):
    model = tiny_model("llama")
    one = changed(make_set(model, {"formula": "noreft"}), "proj_weight", torch.ones_like)
    validate_for_base(one, base_model_spec(model, "tiny"))
