"""Every formula and its folded form against a float64 reference written, row by row, from the formula's text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reft_interventions import FORMULAS
from reft_interventions.activations import ACTIVATIONS
from reft_interventions.errors import InterventionManifestError, InterventionSourceError, InterventionSubspaceError
from reft_interventions.folding import ActLowRankEdit, ElementwiseEdit, LowRankEdit, MlpEdit

WITH_ACT = ("loreft", "noreft", "direft", "nodireft", "mlp", "mlp_residual")
WITHOUT_ACT = ("consreft", "lobireft", "dii", "addition", "scale_shift")
CASES = [(formula, act) for formula in WITH_ACT for act in ACTIVATIONS] + [(f, "linear") for f in WITHOUT_ACT]
SIZES = [(1, 1), (8, 1), (8, 8), (64, 4), (48, 32)]


def act64(value: float, act: str) -> float:
    return {
        "linear": lambda x: x,
        "relu": lambda x: max(x, 0.0),
        "gelu": lambda x: 0.5 * x * (1 + math.erf(x / math.sqrt(2))),
        "silu": lambda x: x / (1 + math.exp(-x)),
        "tanh": math.tanh,
        "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    }[act](value)


def reference_row(formula: str, h: np.ndarray, p: dict[str, np.ndarray], act: str) -> np.ndarray:
    """One row, plain loops over the rank; `R[d, r]`, `W[r, d]` as in the formula's text."""
    if formula == "addition":
        return h + p["vector"]
    if formula == "scale_shift":
        return h * p["scale"] + p["shift"]
    if formula in ("mlp", "mlp_residual"):
        inner = [act64(float(np.dot(w, h) + b), act) for w, b in zip(p["weight_in"], p["bias_in"], strict=True)]
        outputs = np.array([np.dot(w, inner) + b for w, b in zip(p["weight_out"], p["bias_out"], strict=True)])
        return outputs if formula == "mlp" else h + outputs
    out = h.copy()
    rank = p["rotate_layer"].shape[1] if "rotate_layer" in p else p["proj_weight"].shape[0]
    for k in range(rank):
        direction = p["rotate_layer"][:, k] if "rotate_layer" in p else p["proj_weight"][k]
        if formula in ("consreft", "lobireft"):
            coefficient = p["learned_source"][k]
        elif formula == "dii":
            coefficient = np.dot(direction, p["source"])
        else:
            coefficient = act64(float(np.dot(p["learned_source_weight"][k], h) + p["learned_source_bias"][k]), act)
        if formula in ("loreft", "consreft", "noreft", "dii"):
            coefficient -= np.dot(direction, h)
        if formula == "noreft" and "proj_bias" in p:
            coefficient -= p["proj_bias"][k]
        out += coefficient * direction
    return out


def reference(formula: str, hidden: torch.Tensor, parameters: dict[str, torch.Tensor], act: str) -> torch.Tensor:
    p = {name: value.to(torch.float64).numpy() for name, value in parameters.items()}
    return torch.from_numpy(np.stack([reference_row(formula, row, p, act) for row in hidden.double().numpy()]))


def draw(formula: str, hidden_size: int, rank: int, seed: int = 0, optional: bool = True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    object_ = FORMULAS[formula]
    drawn = {
        name: torch.randn(shape, generator=generator) * hidden_size**-0.5
        for name, shape in object_.parameter_shapes(hidden_size, rank).items()
        if optional or name not in object_.optional_parameters
    }
    if object_.has_rotation:
        drawn["rotate_layer"] = torch.linalg.qr(drawn["rotate_layer"]).Q.contiguous()
    return drawn


def rows(hidden_size: int, num_rows: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(num_rows, hidden_size, generator=torch.Generator().manual_seed(seed)) * 3


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((actual.double() - expected).abs().max() <= tolerance * (1 + expected.abs().max()))


@pytest.mark.parametrize(("hidden_size", "rank"), SIZES)
@pytest.mark.parametrize(("formula", "act"), CASES)
def test_edit_and_fold_equal_the_float64_reference(formula, act, hidden_size, rank):
    parameters, hidden = draw(formula, hidden_size, rank), rows(hidden_size)
    expected = reference(formula, hidden, parameters, act)
    edited = FORMULAS[formula].edit(hidden, parameters, act)
    folded = hidden + FORMULAS[formula].fold(parameters, act).delta(hidden)
    assert hidden_size == 1 or not close(hidden, expected, 1e-3)  # the edit does something to compare
    assert edited.dtype == folded.dtype == torch.float32
    assert close(edited, expected)
    assert close(folded, expected)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_noreft_without_its_optional_bias_equals_the_reference(act):
    parameters, hidden = draw("noreft", 16, 3, optional=False), rows(16)
    assert "proj_bias" not in parameters
    expected = reference("noreft", hidden, parameters, act)
    assert close(FORMULAS["noreft"].edit(hidden, parameters, act), expected)
    assert close(hidden + FORMULAS["noreft"].fold(parameters, act).delta(hidden), expected)


@pytest.mark.parametrize(("formula", "act"), CASES)
def test_edit_in_float64_is_exact_to_rounding(formula, act):
    parameters = {name: value.double() for name, value in draw(formula, 32, 4).items()}
    hidden = rows(32).double()
    edited = FORMULAS[formula].edit(hidden, parameters, act)
    assert edited.dtype == torch.float64
    assert close(edited, reference(formula, hidden, parameters, act), 1e-13)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.5, 2.0])
@pytest.mark.parametrize(("formula", "act"), CASES)
def test_scaled_fold_multiplies_the_delta(formula, act, scale):
    parameters, hidden = draw(formula, 32, 4), rows(32)
    delta = reference(formula, hidden, parameters, act) - hidden.double()
    scaled = FORMULAS[formula].fold(parameters, act).scaled(scale)
    assert close(scaled.delta(hidden), scale * delta, 1e-5)
    assert close(scaled.scaled(0.5).delta(hidden), 0.5 * scale * delta, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("formula", "act"), CASES)
def test_half_precision_rows_get_a_float32_delta(formula, act, dtype):
    parameters, hidden = draw(formula, 32, 4), rows(32).to(dtype)
    delta = reference(formula, hidden, parameters, act) - hidden.double()
    edited = FORMULAS[formula].edit(hidden, parameters, act)
    assert edited.dtype == dtype
    # One rounding of the delta and one of the sum: nothing more may be lost.
    allowed = torch.finfo(dtype).eps * (delta.abs() + (hidden.double() + delta).abs()) + 1e-6
    assert ((edited.double() - hidden.double() - delta).abs() <= allowed).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("formula", "act"), CASES)
def test_fold_of_any_stored_dtype_is_float32(formula, act, dtype):
    stored = {name: value.to(dtype) for name, value in draw(formula, 32, 4).items()}
    hidden = rows(32)
    folded = FORMULAS[formula].fold(stored, act)
    assert all(tensor.dtype == torch.float32 for tensor in folded.tensors().values())
    assert close(hidden + folded.delta(hidden), reference(formula, hidden, stored, act))


@pytest.mark.parametrize(("formula", "act"), CASES)
def test_edit_is_differentiable_in_rows_and_parameters(formula, act):
    parameters = {name: value.double().requires_grad_() for name, value in draw(formula, 6, 2).items()}
    hidden = rows(6, num_rows=2).double().requires_grad_()
    names = list(parameters)

    def edit(hidden: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return FORMULAS[formula].edit(hidden, dict(zip(names, values, strict=True)), act)

    assert torch.autograd.gradcheck(edit, (hidden, *parameters.values()))


@pytest.mark.parametrize("formula", FORMULAS)
def test_initial_parameters_have_the_stated_shapes_and_a_seed(formula):
    object_ = FORMULAS[formula]
    first = object_.initial_parameters(24, 3, torch.Generator().manual_seed(5))
    again = object_.initial_parameters(24, 3, torch.Generator().manual_seed(5))
    shapes = object_.parameter_shapes(24, 3)
    assert set(first) == set(shapes) - object_.optional_parameters
    assert all(tuple(value.shape) == shapes[name] and value.dtype == torch.float32 for name, value in first.items())
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    if object_.has_rotation:
        rotation = first["rotate_layer"]
        assert torch.allclose(rotation.T @ rotation, torch.eye(3), atol=1e-6)
    assert object_.has_rotation == ("rotate_layer" in shapes)


@pytest.mark.parametrize(("formula", "act"), [case for case in CASES if FORMULAS[case[0]].has_subspaces])
def test_restricted_rank_dimensions_are_the_terms_of_the_delta(formula, act):
    """Any choice acts alone, parts add up to the whole, and the order of the choice is nothing."""
    parameters, hidden = draw(formula, 16, 5), rows(16)
    object_ = FORMULAS[formula]
    folded = object_.fold(parameters, act)
    whole = object_.delta(hidden.double(), {name: value.double() for name, value in parameters.items()}, act)
    parts = []
    for chosen in ((3,), (4, 0), (1, 2)):
        sliced = object_.restricted(parameters, chosen)
        parts.append(reference(formula, hidden, sliced, act) - hidden.double())
        assert close(folded.restricted(chosen).delta(hidden), parts[-1])
        assert close(folded.scaled(-2.0).restricted(chosen).delta(hidden), -2 * parts[-1])
        assert close(folded.restricted(chosen[::-1]).delta(hidden), parts[-1])
    assert close(sum(parts), whole)


@pytest.mark.parametrize("dimensions", [(), (5,), (-1,), (0, 0)])
@pytest.mark.parametrize("act", ["linear", "relu"])
def test_restricting_to_dimensions_that_are_not_there_is_refused(act, dimensions):
    parameters = draw("loreft", 16, 5)
    for restrict in (
        FORMULAS["loreft"].fold(parameters, act).restricted,
        lambda chosen: FORMULAS["loreft"].restricted(parameters, chosen),
    ):
        with pytest.raises(InterventionSubspaceError, match="subspaces"):
            restrict(dimensions)


@pytest.mark.parametrize("formula", ["addition", "scale_shift", "mlp", "mlp_residual"])
def test_restricting_a_formula_without_rank_dimensions_is_refused(formula):
    parameters = draw(formula, 16, 3)
    with pytest.raises(InterventionSubspaceError, match="rank dimensions"):
        FORMULAS[formula].restricted(parameters, (0,))
    with pytest.raises(InterventionSubspaceError, match="rank dimensions"):
        FORMULAS[formula].fold(parameters).restricted((0,))


def test_interchange_gives_every_row_its_own_source():
    parameters, hidden = draw("dii", 16, 3, optional=False), rows(16)
    source_rows = rows(16, seed=8)
    folded = FORMULAS["dii"].fold(parameters).scaled(0.5).with_source(source_rows)
    live = FORMULAS["dii"].edit(hidden, {**parameters, "source": source_rows})
    for index in range(len(hidden)):
        row, one = hidden[index : index + 1], {**parameters, "source": source_rows[index]}
        expected = reference("dii", row, one, "linear")
        assert close(live[index : index + 1], expected)
        half = (expected - row.double()) / 2
        assert close(folded.of_tokens(index, index + 1).delta(row), half)
        assert close(folded.delta(hidden)[index : index + 1], half)
    parts = folded.restricted((2, 0)).delta(hidden) + folded.restricted((1,)).delta(hidden)
    assert close(parts, folded.delta(hidden).double())


def test_interchange_without_a_source_is_refused():
    parameters = draw("dii", 16, 3, optional=False)
    for edit in (FORMULAS["dii"].fold(parameters).delta, lambda hidden: FORMULAS["dii"].edit(hidden, parameters)):
        with pytest.raises(InterventionSourceError, match="source"):
            edit(rows(16))
    with pytest.raises(InterventionSourceError, match="takes no source"):
        FORMULAS["loreft"].fold(draw("loreft", 16, 3)).with_source(rows(16))


@pytest.mark.parametrize("formula", ["addition", "scale_shift", "mlp_residual"])
def test_formulas_start_as_the_identity(formula):
    hidden = rows(16)
    parameters = FORMULAS[formula].initial_parameters(16, 8, torch.Generator())
    assert torch.equal(FORMULAS[formula].edit(hidden, parameters), hidden)


def test_mlp_starts_as_a_projection():
    hidden, parameters = rows(16), FORMULAS["mlp"].initial_parameters(16, 6, torch.Generator().manual_seed(3))
    once = FORMULAS["mlp"].edit(hidden, parameters)
    assert torch.allclose(FORMULAS["mlp"].edit(once, parameters), once, atol=1e-5)
    assert (once.norm(dim=1) < hidden.norm(dim=1)).all()
    whole = FORMULAS["mlp"].initial_parameters(16, 16, torch.Generator().manual_seed(3))
    assert torch.allclose(FORMULAS["mlp"].edit(hidden, whole), hidden, atol=1e-5)


@pytest.mark.parametrize("formula", WITH_ACT)
def test_unknown_activation_is_refused(formula):
    with pytest.raises(InterventionManifestError, match="act 'swish' is unknown"):
        FORMULAS[formula].edit(rows(8), draw(formula, 8, 2), "swish")


@pytest.mark.parametrize(
    ("formula", "act", "kind"),
    [
        ("loreft", "linear", LowRankEdit),
        ("loreft", "relu", ActLowRankEdit),
        ("noreft", "linear", LowRankEdit),
        ("consreft", "linear", LowRankEdit),
        ("dii", "linear", LowRankEdit),
        ("lobireft", "linear", LowRankEdit),
        ("direft", "silu", ActLowRankEdit),
        ("nodireft", "linear", LowRankEdit),
        ("addition", "linear", ElementwiseEdit),
        ("scale_shift", "linear", ElementwiseEdit),
        ("mlp", "relu", MlpEdit),
        ("mlp_residual", "linear", MlpEdit),
    ],
)
def test_formula_folds_to_the_expected_kind(formula, act, kind):
    assert type(FORMULAS[formula].fold(draw(formula, 8, 2), act)) is kind
