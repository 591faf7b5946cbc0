"""Every component of every architecture: the reference against changed weights, the engine against the reference."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from reft_interventions import InterventionSet, attach, decoder_layers
from reft_interventions.components import COMPONENTS, ROW_KINDS, is_head, whole_component
from reft_interventions.formulas import FORMULAS
from reft_interventions.model_tree import row_sizes, site_width
from tests.conftest import ARCHITECTURES
from tests.parity.harness import Case, Comparison, reference, run_together

NATIVE = ("llama", "mistral", "qwen2", "qwen3")
PATHS = [(arch, path) for arch in NATIVE for path in ("native", "packed", "generic")]
PATHS += [(arch, "generic") for arch in ARCHITECTURES if arch not in NATIVE]
INSIDE = tuple(component for component, kind in ROW_KINDS.items() if kind != "hidden")
PARTS = {"query_output": 0, "key_output": 1, "value_output": 2}


def prompt(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(1, 128, (length,), generator=generator).tolist())


def logits(model: PreTrainedModel, *sets: InterventionSet) -> Tensor:
    with torch.inference_mode(), attach(model, sets):
        return model(input_ids=torch.tensor([prompt(9, 1)])).logits


def child(module: nn.Module, *names: str) -> Any:
    return next(getattr(module, name) for name in names if hasattr(module, name))


def weight_rows(product: Any) -> Tensor:
    """The weight as `[outputs, inputs]`, a view."""
    return product.weight.data.T if type(product).__name__ == "Conv1D" else product.weight.data


def shift_bias(product: Any, rows: Any, shift: Tensor) -> None:
    if product.bias is None:
        product.bias = nn.Parameter(torch.zeros(weight_rows(product).shape[0]), requires_grad=False)
    product.bias.data[rows] += shift


def scale_outputs(product: Any, rows: Any, scale: Tensor, shift: Tensor) -> None:
    """Make some outputs of a product `y * scale + shift`."""
    weight_rows(product)[rows] *= scale[:, None]
    if product.bias is not None:
        product.bias.data[rows] *= scale
    shift_bias(product, rows, shift)


def scale_inputs(product: Any, scale: Tensor, shift: Tensor) -> None:
    """Make a product take `x * scale + shift`."""
    weight = weight_rows(product)
    shift_bias(product, slice(None), weight @ shift)
    weight *= scale


def change_weights(model: PreTrainedModel, arch: str, layer: int, component: str, scale: Tensor, shift: Tensor) -> None:
    """What `scale_shift` at a component does, by other means: in the weights beside it."""
    block = decoder_layers(model)[layer]
    attention = child(block, "self_attn", "attn", "attention")
    if component == "attention_value_output":
        scale_inputs(child(attention, "o_proj", "c_proj", "dense"), scale, shift)
    elif component == "mlp_activation":
        if arch in ("gpt2", "gpt_neox"):
            scale_inputs(child(block.mlp, "c_proj", "dense_4h_to_h"), scale, shift)
        elif arch == "phi3":
            scale_outputs(block.mlp.gate_up_proj, slice(64, 128), scale, shift)
        else:
            scale_outputs(block.mlp.up_proj, slice(None), scale, shift)
    elif arch == "gpt2":
        first = PARTS[component] * 32
        scale_outputs(attention.c_attn, slice(first, first + 32), scale, shift)
    elif arch == "gpt_neox":  # four heads of eight: each its query, its key and its value
        rows = [head * 24 + PARTS[component] * 8 + i for head in range(4) for i in range(8)]
        scale_outputs(attention.query_key_value, rows, scale, shift)
    elif arch == "phi3":  # 32 rows of queries, 16 of keys, 16 of values
        scale_outputs(attention.qkv_proj, [slice(0, 32), slice(32, 48), slice(48, 64)][PARTS[component]], scale, shift)
    else:
        scale_outputs(getattr(attention, f"{component[0]}_proj"), slice(None), scale, shift)


@pytest.mark.parametrize("component", INSIDE)
def test_reference_equals_changed_weights(component: str, architecture: str, tiny_model: Any, make_set: Any) -> None:
    model = tiny_model(architecture)
    spec = {"component": component, "formula": "scale_shift", "positions": "all"}
    one = make_set(model, spec, seed=7)
    scale, shift = one.parameters[0]["scale"], one.parameters[0]["shift"]
    is_gated = component == "mlp_activation" and architecture not in ("gpt2", "gpt_neox")
    if is_gated:  # `up` multiplies the activation: only a factor can move from one to the other
        shift = torch.zeros_like(shift)
        one = InterventionSet.create(one.manifest, [{"scale": scale, "shift": shift}])
    changed = copy.deepcopy(model)
    change_weights(changed, architecture, 1, component, scale, shift)
    expected = logits(changed)
    assert (logits(model, one) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (logits(model) - expected).abs().max() > 1e-3 * expected.abs().max()


@pytest.mark.parametrize("component", [component for component in COMPONENTS if is_head(component)])
def test_head_edit_is_the_whole_edit_on_its_columns(
    component: str, architecture: str, tiny_model: Any, make_set: Any
) -> None:
    model = tiny_model(architecture)
    head = row_sizes(model).num_heads(component) - 1
    one = make_set(model, {"component": component, "head": head, "formula": "scale_shift", "positions": "l4"}, seed=8)
    width, whole_width = site_width(model, component), site_width(model, whole_component(component))
    assert (head + 1) * width == whole_width
    whole = make_set(model, {"component": whole_component(component), "formula": "scale_shift", "positions": "l4"})
    scale, shift = torch.ones(whole_width), torch.zeros(whole_width)
    scale[-width:], shift[-width:] = one.parameters[0]["scale"], one.parameters[0]["shift"]
    whole = InterventionSet.create(whole.manifest, [{"scale": scale, "shift": shift}])
    expected = logits(model, whole)
    assert torch.allclose(logits(model, one), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(model), expected, atol=1e-3, rtol=1e-3)
    assert torch.allclose(logits(model, one.fold()), expected, atol=1e-5, rtol=1e-5)


def untied(tiny_model: Any, arch: str) -> PreTrainedModel:
    """A head of its own: Gemma's with the embedding's weights repeats the last token whatever an edit does."""
    return tiny_model(arch, tie_word_embeddings=False)


def component_cases(model: PreTrainedModel, make_set: Any) -> list[Case]:
    """One or two for each component, and compositions of heads with wholes."""
    cases = []
    for index, component in enumerate(COMPONENTS):
        one = make_set(
            model,
            {"component": component, "positions": "f2+l3", "low_rank_dimension": 3},
            {"component": component, "positions": "all", "layer": 2, "low_rank_dimension": 3},
            seed=index,
            strength=2.0,
        )
        cases.append(Case(prompt(3 + index, index), ((one, 1.0),)))
    wholes = {name: make_set(model, {"component": name, "positions": "all"}, seed=40) for name in INSIDE}
    for name in INSIDE[1:]:
        heads = make_set(
            model,
            {"component": f"head_{name}", "positions": "all", "head": 0},
            {"component": f"head_{name}", "positions": "prompt", "head": 1, "formula": "mlp", "act": "gelu"},
            seed=41,
        )
        cases.append(Case(prompt(11, 42), ((wholes[name], -0.5), (heads, 1.0), (wholes["mlp_activation"], 1.0))))
        cases.append(Case(prompt(6, 43), ((heads, 1.0), (wholes[name], 2.0))))
    return cases


@pytest.fixture(scope="module")
def expectations(tiny_model: Any, make_set: Any) -> Any:
    """`expectations(arch)`: the cases and what the reference generates; once for all paths."""
    known: dict[str, list[tuple[Case, Any]]] = {}

    def get(arch: str) -> list[tuple[Case, Any]]:
        if arch not in known:
            model = untied(tiny_model, arch)
            cases = component_cases(model, make_set)
            plain = [Case(case.prompt) for case in cases]
            edited_and_plain = [[(case, reference(model, case)) for case in some] for some in (cases, plain)]
            pairs = zip(*edited_and_plain, strict=True)
            num_unchanged = sum(edited.token_ids == unedited.token_ids for (_, edited), (_, unedited) in pairs)
            assert num_unchanged <= 1, "a case whose tokens are the base model's shows nothing"
            known[arch] = [*edited_and_plain[0], *edited_and_plain[1][::4]]
        return known[arch]

    return get


@pytest.mark.parametrize(("arch", "path"), PATHS)
def test_engine_matches_reference_for_every_component(
    arch: str, path: str, tiny_model: Any, expectations: Any, start_engine: Any
) -> None:
    """All in one batch, in chunks of at most 13 tokens, beside rows of the base model."""
    engine = start_engine(untied(tiny_model, arch), model_path=path, max_num_batched_tokens=13, max_num_seqs=16)
    cases, expected = zip(*expectations(arch), strict=True)
    comparison = Comparison()
    for case, got, want in zip(cases, run_together(engine, cases), expected, strict=True):
        comparison.check(case, got, want)
    comparison.verdict()


@pytest.mark.parametrize(("arch", "path"), PATHS)
def test_self_test_sees_every_component(
    arch: str, path: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    model = untied(tiny_model, arch)
    specs = [{"component": name, "layer": 1 + is_head(name), "positions": "f2+l2"} for name in COMPONENTS]
    engine = start_engine(model, model_path=path, max_num_batched_tokens=13, max_num_seqs=16)
    report = asyncio.run(engine.self_test(make_set(model, *specs, seed=5).fold()))
    assert {(site.layer, site.component) for site in report.sites} == {
        (spec["layer"], whole_component(spec["component"])) for spec in specs
    }
    assert {site.num_edited_rows for site in report.sites} == {4}


@pytest.mark.parametrize("path", ["native", "packed", "generic"])
def test_engine_matches_reference_for_every_activation(
    path: str, tiny_model: Any, make_set: Any, start_engine: Any
) -> None:
    """Every formula with an activation and every activation in one batch, bottlenecks up to the whole row."""
    model = tiny_model("llama")
    acts = ("linear", "relu", "gelu", "silu", "tanh", "sigmoid")
    formulas = [name for name, formula in FORMULAS.items() if formula.has_act]
    assert {"loreft", "noreft", "direft", "nodireft", "mlp", "mlp_residual"} <= set(formulas)
    cases = []
    for index, formula in enumerate(formulas):
        for act in acts:
            rank = (4, 16, 32)[index % 3]
            fields = {"formula": formula, "act": act, "low_rank_dimension": rank}
            one = make_set(
                model, {**fields, "positions": "f1+l2"}, {**fields, "positions": "all", "layer": 2}, seed=index
            )
            cases.append(Case(prompt(5 + index, index), ((one, 1.0 if index % 2 else 0.5),)))
    engine = start_engine(model, model_path=path, max_num_batched_tokens=40, max_num_seqs=40)
    comparison = Comparison()
    for case, got in zip(cases, run_together(engine, cases), strict=True):
        comparison.check(case, got, reference(model, case))
    comparison.verdict()
