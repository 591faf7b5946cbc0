"""Finding the parts of every architecture's module tree, and the base model's fingerprint."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reft_interventions import base_model_spec, decoder_layers, fingerprint, resolve_component
from reft_interventions.components import COMPONENTS
from reft_interventions.errors import UnsupportedComponentError


def test_decoder_layers_are_found_in_every_architecture(tiny_model, architecture):
    model = tiny_model(architecture)
    assert len(decoder_layers(model)) == model.config.num_hidden_layers
    assert decoder_layers(model.base_model) is decoder_layers(model)


@pytest.mark.parametrize("component", COMPONENTS)
def test_component_resolves_in_every_architecture(tiny_model, architecture, component):
    model = tiny_model(architecture)
    hook = resolve_component(model, 1, component)
    assert hook.is_input == component.endswith(("_input", "attention_value_output"))
    assert hook.module in set(decoder_layers(model)[1].modules())
    assert (hook.module is decoder_layers(model)[1]) == component.startswith("block_")


@pytest.mark.parametrize("component", ["head_mlp_output", "attention_weight", "head_", "", "block"])
def test_unserved_component_error_lists_the_served_ones(tiny_model, component):
    with pytest.raises(UnsupportedComponentError, match=r"block_output, mlp_input, .*head_query_output") as caught:
        resolve_component(tiny_model("llama"), 0, component)
    assert caught.value.param == "component"


@pytest.mark.parametrize("layer", [-1, 4, 99])
def test_layer_out_of_range_is_refused(tiny_model, layer):
    with pytest.raises(UnsupportedComponentError, match="outside the model's 4 layers"):
        resolve_component(tiny_model("llama"), layer, "block_output")


def test_module_without_decoder_layers_is_refused():
    with pytest.raises(UnsupportedComponentError, match="no list of decoder layers"):
        decoder_layers(nn.Linear(2, 2))


def test_block_without_the_part_is_refused():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(UnsupportedComponentError, match="Linear has no attention module"):
        resolve_component(model, 0, "attention_output")


def test_base_model_spec_reports_the_shape(tiny_model, architecture):
    model = tiny_model(architecture)
    spec = base_model_spec(model, "some/model")
    assert (spec.model_id, spec.hidden_size) == ("some/model", 32)
    assert spec.num_layers == model.config.num_hidden_layers
    assert spec.fingerprint == fingerprint(model)


def test_fingerprints_of_all_architectures_and_seeds_differ(tiny_model, architecture):
    names = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox")
    others = {fingerprint(tiny_model(name)) for name in names if name != architecture}
    mine = fingerprint(tiny_model(architecture))
    assert mine.startswith("sha256:")
    assert mine not in others
    assert mine != fingerprint(tiny_model(architecture, seed=1))


def test_fingerprint_survives_saving_and_loading(tiny_model, architecture, tmp_path):
    model = tiny_model(architecture)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert fingerprint(loaded) == fingerprint(model)


def test_fingerprint_ignores_the_load_dtype_of_bfloat16_weights(tiny_model):
    stored = copy.deepcopy(tiny_model("llama")).to(torch.bfloat16)
    assert fingerprint(copy.deepcopy(stored).to(torch.float32)) == fingerprint(stored)


def test_fingerprint_ignores_how_weights_lie_in_memory(tiny_model):
    model = tiny_model("llama")
    packed = copy.deepcopy(model)
    for layer in packed.model.layers:
        attention = layer.self_attn
        parts = [attention.q_proj, attention.k_proj, attention.v_proj]
        whole = torch.cat([part.weight.data for part in parts])
        for part, rows in zip(parts, whole.split([len(part.weight) for part in parts]), strict=True):
            part.weight.data = rows
        layer.mlp.down_proj.weight.data = layer.mlp.down_proj.weight.data.T.contiguous().T
    assert fingerprint(packed) == fingerprint(model)


@pytest.mark.parametrize("name", ["q_proj", "v_proj", "o_proj"])
@pytest.mark.parametrize("layer", [0, 3])
def test_fingerprint_sees_a_finetuned_matrix_of_any_layer(tiny_model, name, layer):
    model = copy.deepcopy(tiny_model("llama"))
    before = fingerprint(model)
    getattr(model.model.layers[layer].self_attn, name).weight.data += 1e-3
    assert fingerprint(model) != before


def test_fingerprint_sees_the_rope_base(tiny_model):
    model = copy.deepcopy(tiny_model("llama"))
    before = fingerprint(model)
    model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 500000.0}
    assert fingerprint(model) != before


def test_fingerprint_ignores_paths_versions_and_attention(tiny_model):
    model = copy.deepcopy(tiny_model("llama"))
    before = fingerprint(model)
    model.config._name_or_path = "/elsewhere"
    model.config.transformers_version = "9.9.9"
    model.set_attn_implementation("eager")
    assert fingerprint(model) == before
