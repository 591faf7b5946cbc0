"""The manifest: what it accepts, what it refuses and in which words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from reft_interventions import BaseModelRef, InterventionSet, InterventionSpec, Manifest, load
from reft_interventions.errors import (
    InterventionManifestError,
    InterventionShapeError,
    ReftError,
    UnsupportedComponentError,
)

SPEC = {
    "layer": 1,
    "component": "block_output",
    "formula": "loreft",
    "low_rank_dimension": 4,
    "positions": "f1+l1",
    "parameters": 0,
}
BASE = {"id": "tiny", "hidden_size": 32, "num_layers": 4}


def manifest_json(*specs, **fields):
    return json.dumps({"base_model": BASE, "interventions": list(specs or [SPEC]), **fields})


def parse(*specs, **fields):
    return Manifest.parse(manifest_json(*specs, **fields))


def test_defaults_are_filled_in():
    manifest = parse()
    spec = manifest.interventions[0]
    assert (manifest.format_version, manifest.name, manifest.training) == (1, "", {})
    assert (spec.act, spec.part, spec.suffix_offset, spec.short_prompt) == ("linear", "both", 0, "paper")
    assert manifest.base_model.fingerprint == ""


def test_explicit_positions_become_a_tuple():
    spec = parse({**SPEC, "positions": [0, -1]}).interventions[0]
    assert spec.positions == (0, -1)
    assert spec.intervention_positions.intervals(5) == ((0, 1), (4, 5))


def test_manifest_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        parse().name = "other"


def test_canonical_json_is_sorted_compact_ascii_and_reads_back():
    manifest = parse(name="Grüße \u2028 \U0001f600", training={"b": 1e-5, "a": [1, None, True, "x"]})
    text = manifest.canonical_json()
    assert text.isascii()
    assert ": " not in text
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    assert Manifest.parse(text) == manifest
    assert Manifest.parse(text).canonical_json() == text


@pytest.mark.parametrize(
    ("changed", "param"),
    [
        ({"layer": -1}, "interventions.0.layer"),
        ({"layer": True}, "interventions.0.layer"),
        ({"layer": "1"}, "interventions.0.layer"),
        ({"layer": 1.0}, "interventions.0.layer"),
        ({"layer": 4}, "layer"),
        ({"formula": "reft"}, "formula"),
        ({"formula": "__class__"}, "formula"),
        ({"low_rank_dimension": 0}, "low_rank_dimension"),
        ({"low_rank_dimension": 33}, "low_rank_dimension"),
        ({"formula": "addition", "low_rank_dimension": 4}, "low_rank_dimension"),
        ({"formula": "consreft", "act": "relu"}, "act"),
        ({"act": "swish"}, "interventions.0.act"),
        ({"positions": "everything"}, "positions"),
        ({"positions": []}, "positions"),
        ({"positions": [0] * 5000}, "interventions.0.positions"),
        ({"positions": [10**9]}, "interventions.0.positions.0"),
        ({"positions": [True]}, "interventions.0.positions.0"),
        ({"positions": None}, "interventions.0.positions"),
        ({"positions": "f3", "part": "prefix"}, "part"),
        ({"part": "middle"}, "interventions.0.part"),
        ({"suffix_offset": -1}, "interventions.0.suffix_offset"),
        ({"positions": "prompt", "suffix_offset": 1}, "suffix_offset"),
        ({"short_prompt": "ceil"}, "interventions.0.short_prompt"),
        ({"parameters": 1}, "parameters"),
        ({"parameters": -1}, "interventions.0.parameters"),
        ({"unknown": 1}, "interventions.0.unknown"),
    ],
)
def test_bad_intervention_is_refused_by_field(changed, param):
    with pytest.raises(InterventionManifestError) as caught:
        parse({**SPEC, **changed})
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"format_version": 2}, "format_version"),
        ({"format_version": "1"}, "format_version"),
        ({"name": "n" * 257}, "name"),
        ({"name": 3}, "name"),
        ({"name": None}, "name"),
        ({"prompt_template": ["x"]}, "prompt_template"),
        ({"training": []}, "training"),
        ({"base_model": {**BASE, "hidden_size": 0}}, "base_model.hidden_size"),
        ({"base_model": {**BASE, "num_layers": 10**9}}, "base_model.num_layers"),
        ({"interventions": []}, "interventions"),
        ({"interventions": {}}, "interventions"),
        ({"owner": "me"}, "owner"),
    ],
)
def test_bad_manifest_field_is_refused_by_name(fields, param):
    with pytest.raises(InterventionManifestError) as caught:
        parse(**fields)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        '"manifest"',
        "{",
        manifest_json()[:-1] + ',"name":"a","name":"b"}',
        manifest_json(training={"loss": float("nan")}),
        manifest_json(training={"loss": float("inf")}),
        manifest_json()[:-1] + ',"training":{"loss":1e999}}',
        manifest_json()[:-1] + ',"training":{"a":' + "[" * 50_000 + "]" * 50_000 + "}}",
        manifest_json()[:-1] + ',"training":{"a":' + "[" * 400 + "]" * 400 + "}}",
        manifest_json()[:-1] + ',"name":"\\ud800"}',
        manifest_json()[:-1] + ',"training":{"a":"\\ud800"}}',
        manifest_json()[:-1] + ',"training":{"\\ud800":1}}',
    ],
)
def test_text_that_is_no_manifest_is_refused(text):
    with pytest.raises(InterventionManifestError):
        Manifest.parse(text)


@pytest.mark.parametrize("depth", range(1, 300, 7))
def test_any_nesting_is_refused_or_written_back(depth):
    text = manifest_json()[:-1] + ',"training":{"a":' + "[" * depth + "]" * depth + "}}"
    if depth > 30:
        with pytest.raises(InterventionManifestError, match="deep"):
            Manifest.parse(text)
    else:
        assert json.loads(Manifest.parse(text).canonical_json())["training"] == json.loads(text)["training"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [[{"a": float("-inf")}]], "\ud800", {"\udfff": 1}])
def test_training_values_without_a_json_form_are_refused_in_python_too(value):
    with pytest.raises((InterventionManifestError, ValidationError)):
        Manifest(base_model=BaseModelRef(**BASE), interventions=(InterventionSpec(**SPEC),), training={"value": value})


@pytest.mark.parametrize("field", ["formula", "positions", "surprise", "act"])
def test_long_values_do_not_flood_the_message(field):
    with pytest.raises(InterventionManifestError) as caught:
        parse({**SPEC, field: "x" * 10_000, "y" * 10_000: 1})
    assert len(caught.value.message) < 600


@pytest.mark.parametrize("component", ["attention_weight", "head_mlp_output", "head_", "x" * 10_000])
def test_component_that_is_not_served_is_refused_with_the_list(component):
    with pytest.raises(UnsupportedComponentError, match="attention_output") as caught:
        parse({**SPEC, "component": component})
    assert len(caught.value.message) < 400


def test_untied_parts_may_share_a_site():
    prefix = {**SPEC, "positions": "f2+l2", "part": "prefix"}
    manifest = parse(prefix, {**prefix, "part": "suffix", "parameters": 1})
    assert manifest.num_parameter_groups == 2


@pytest.mark.parametrize(
    "changed",
    [{}, {"positions": "prompt"}, {"positions": "all"}, {"positions": "f1+l1", "part": "prefix"}, {"positions": [0]}],
)
def test_overlap_at_one_site_is_refused(changed):
    with pytest.raises(InterventionManifestError, match="edit the same tokens at layer 1 block_output"):
        parse(SPEC, {**SPEC, "parameters": 1, **changed})


HEAD = {**SPEC, "component": "head_query_output", "head": 2, "width": 8}


@pytest.mark.parametrize(
    "changed",
    [{}, {"head": None, "component": "query_output"}, {"head": None, "component": "query_output", "width": 64}],
)
def test_head_and_whole_that_overlap_are_refused(changed):
    with pytest.raises(InterventionManifestError, match="edit the same tokens at layer 1"):
        parse(HEAD, {**HEAD, "parameters": 1, **changed})


def test_other_heads_and_other_projections_may_be_edited_at_the_same_tokens():
    manifest = parse(HEAD, {**HEAD, "head": 3}, {**HEAD, "component": "head_key_output"})
    assert [spec.columns for spec in manifest.interventions] == [slice(16, 24), slice(24, 32), slice(16, 24)]


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"head": None}, "head", "needs `head` and `width`"),
        ({"width": None}, "width", "needs `head` and `width`"),
        ({"component": "query_output"}, "head", "use head_query_output or leave head out"),
        ({"component": "block_output", "head": None}, "width", "leave width out"),
        ({"low_rank_dimension": 9}, "low_rank_dimension", "exceeds width"),
    ],
)
def test_head_and_width_are_named_where_they_belong(changed, param, message):
    with pytest.raises(InterventionManifestError, match=message) as caught:
        parse({**HEAD, **changed})
    assert caught.value.param == param


def test_head_and_width_are_left_out_of_the_canonical_json_where_absent():
    assert "head" not in parse().canonical_json()
    assert "width" not in parse().canonical_json()
    text = parse(HEAD).canonical_json()
    assert '"head":2' in text
    assert Manifest.parse(text) == parse(HEAD)


@pytest.mark.parametrize("example", ["shout", "spam", "word-category"])
def test_content_hash_of_an_older_file_stays(example):
    folder = Path(__file__).parents[3] / "examples" / example
    recorded = json.loads((folder / "results.json").read_text())["content_hash"]
    assert load(folder / f"{example}.safetensors").content_hash == recorded


def test_as_many_sites_as_the_limit_are_read():
    sites = [{**SPEC, "layer": index} for index in range(4096)]
    manifest = parse(*sites, base_model={**BASE, "num_layers": 4096})
    assert len(manifest.interventions) == 4096
    with pytest.raises(InterventionManifestError) as caught:
        parse(*sites, SPEC, base_model={**BASE, "num_layers": 4096})
    assert caught.value.param == "interventions"


def test_same_positions_at_other_sites_are_fine():
    manifest = parse(SPEC, {**SPEC, "component": "mlp_output"}, {**SPEC, "layer": 2})
    assert manifest.num_parameter_groups == 1


@pytest.mark.parametrize(
    "changed", [{"formula": "direft"}, {"low_rank_dimension": 2}, {"component": "key_output", "width": 16}]
)
def test_tied_parameters_must_agree(changed):
    with pytest.raises(InterventionManifestError, match="must share formula, low_rank_dimension and width"):
        parse(SPEC, {**SPEC, "layer": 2, **changed})


def test_parameter_indices_must_have_no_gap():
    with pytest.raises(InterventionManifestError, match="without a gap"):
        parse(SPEC, {**SPEC, "layer": 2, "parameters": 2})


def test_manifest_built_in_python_obeys_the_same_rules():
    with pytest.raises(ReftError, match="layer 9 is outside"):
        Manifest(
            base_model=BaseModelRef(id="x", hidden_size=8, num_layers=2),
            interventions=(InterventionSpec(**{**SPEC, "layer": 9}),),
        )


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({**SPEC}, {"rotate_layer", "learned_source_weight", "learned_source_bias"}),
        ({**SPEC, "formula": "addition", "low_rank_dimension": 0}, {"vector"}),
    ],
)
def test_set_needs_exactly_the_formulas_tensors(spec, expected):
    manifest = parse(spec)
    with pytest.raises(InterventionManifestError, match="there are 0"):
        InterventionSet.create(manifest, [])
    with pytest.raises(InterventionManifestError, match="is missing") as caught:
        InterventionSet.create(manifest, [{}])
    assert caught.value.param in expected


@pytest.mark.parametrize("dtype", ["int64", "complex64", "float8_e5m2", "bool"])
def test_set_refuses_other_dtypes(dtype):
    manifest = parse({**SPEC, "formula": "addition", "low_rank_dimension": 0})
    with pytest.raises(InterventionShapeError, match="store F64, F32, F16 or BF16"):
        InterventionSet.create(manifest, [{"vector": torch.zeros(32).to(getattr(torch, dtype))}])
