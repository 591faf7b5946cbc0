"""The slow reference: edits where they belong, nothing elsewhere, under padding, caches and nesting."""

from __future__ import annotations

import copy

import pytest
import torch

from reft_interventions import FORMULAS, InterventionPositions, SiteEdit, attach, decoder_layers, hook_edits
from reft_interventions.errors import InterventionShapeError, UnsupportedComponentError
from reft_interventions.model_tree import decoder

PROMPT = torch.tensor([[5, 17, 99, 3, 42, 64, 23]])
FORMULA_NAMES = tuple(FORMULAS)


def logits(model, ids=PROMPT, **kwargs):
    with torch.no_grad():
        return model(ids, use_cache=False, **kwargs).logits


def generate(model, ids, num_tokens=8, **kwargs):
    return model.generate(ids, max_new_tokens=num_tokens, do_sample=False, **kwargs)[:, ids.shape[1] :]


def captured(model, layer, ids=PROMPT, **kwargs):
    """The input of decoder layer `layer`, or of the final norm for the layer after the last."""
    layers = decoder_layers(model)
    inner = decoder(model)
    names = ("norm", "ln_f", "final_layer_norm")
    final_norm = next(getattr(inner, name) for name in names if hasattr(inner, name))
    seen = []

    def note(_, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).detach().clone())

    module = layers[layer] if layer < len(layers) else final_norm
    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        logits(model, ids, **kwargs)
    finally:
        handle.remove()
    return seen[0]


def num_hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def manual_rows(one, rows, positions):
    """The edit computed from the set's stored weights, in float64, at `positions` of `[batch, tokens, hidden]`."""
    spec, group = one.manifest.interventions[0], one.parameters[0]
    assert spec.formula == "loreft"
    r, w, b = (group[name].double() for name in ("rotate_layer", "learned_source_weight", "learned_source_bias"))
    edited = rows.double().clone()
    for position in positions:
        h = edited[:, position]
        edited[:, position] = h + (h @ w.T + b - h @ r) @ r.T
    return edited


def llama_by_hand(model, ids, layer, component, edit):
    """Llama's forward written out over its modules, with `edit` at one component."""
    inner = model.model
    hidden = inner.embed_tokens(ids)
    length = ids.shape[1]
    position_ids = torch.arange(length)[None]
    rope = inner.rotary_emb(hidden, position_ids)
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for index, block in enumerate(inner.layers):
        at = {name: edit if index == layer and name == component else lambda rows: rows for name in COMPONENTS}
        hidden = at["block_input"](hidden)
        normed = at["attention_input"](block.input_layernorm(hidden))
        attended = block.self_attn(hidden_states=normed, position_embeddings=rope, attention_mask=mask)[0]
        hidden = hidden + at["attention_output"](attended)
        normed = at["mlp_input"](block.post_attention_layernorm(hidden))
        hidden = hidden + at["mlp_output"](block.mlp(normed))
        hidden = at["block_output"](hidden)
    return model.lm_head(inner.norm(hidden))


def gpt2_by_hand(model, ids, layer, component, edit):
    """GPT-2's forward written out over its modules, with `edit` at one component."""
    inner = model.transformer
    length = ids.shape[1]
    hidden = inner.wte(ids) + inner.wpe(torch.arange(length)[None])
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for index, block in enumerate(inner.h):
        at = {name: edit if index == layer and name == component else lambda rows: rows for name in COMPONENTS}
        hidden = at["block_input"](hidden)
        attended = block.attn(at["attention_input"](block.ln_1(hidden)), attention_mask=mask)[0]
        hidden = hidden + at["attention_output"](attended)
        hidden = hidden + at["mlp_output"](block.mlp(at["mlp_input"](block.ln_2(hidden))))
        hidden = at["block_output"](hidden)
    return model.lm_head(inner.ln_f(hidden))


COMPONENTS = ("block_input", "block_output", "mlp_input", "mlp_output", "attention_input", "attention_output")
BY_HAND = {"llama": llama_by_hand, "gpt2": gpt2_by_hand}


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("arch", BY_HAND)
def test_attach_equals_a_forward_written_by_hand(tiny_model, make_set, arch, component, layer):
    model = tiny_model(arch, attn_implementation="eager")
    layer %= len(decoder_layers(model))
    one = make_set(model, {"layer": layer, "component": component, "positions": "f2+l1"})
    with torch.no_grad():
        expected = BY_HAND[arch](
            model, PROMPT, layer, component, lambda rows: manual_rows(one, rows, [0, 1, 6]).to(rows.dtype)
        )
        unedited = BY_HAND[arch](model, PROMPT, layer, component, lambda rows: rows)
    with attach(model, one):
        actual = logits(model)
    assert torch.allclose(logits(model), unedited, atol=1e-5)
    assert not torch.allclose(actual, unedited, atol=1e-2)
    assert torch.allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("is_last", [False, True])
def test_block_output_is_what_the_next_layer_sees(tiny_model, make_set, architecture, is_last):
    model = tiny_model(architecture)
    layer = len(decoder_layers(model)) - 1 if is_last else 1
    one = make_set(model, {"layer": layer, "positions": "f2+l1"})
    before = captured(model, layer + 1)
    with attach(model, one):
        after = captured(model, layer + 1)
    untouched = [2, 3, 4, 5]
    assert torch.equal(after[:, untouched], before[:, untouched])
    expected = manual_rows(one, before, [0, 1, 6])
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.allclose(after.double(), expected, atol=1e-4)


@pytest.mark.parametrize("component", COMPONENTS)
def test_every_component_changes_the_logits_of_every_architecture(tiny_model, make_set, architecture, component):
    model = tiny_model(architecture)
    before = logits(model)
    with attach(model, make_set(model, {"component": component, "positions": "l1"})):
        after = logits(model)
    assert torch.equal(after[:, :-1], before[:, :-1])
    assert not torch.allclose(after[:, -1], before[:, -1], atol=1e-3)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("formula", FORMULA_NAMES)
def test_folded_set_and_unfolded_set_agree(tiny_model, make_set, formula):
    model = tiny_model("llama")
    one = make_set(model, {"formula": formula, "positions": "f2+l2"}, {"formula": formula, "layer": 3})
    with attach(model, one):
        unfolded = logits(model)
    with attach(model, one.fold()):
        folded = logits(model)
    assert not torch.allclose(unfolded, logits(model), atol=1e-2)
    assert torch.allclose(unfolded, folded, atol=1e-4)


@pytest.mark.parametrize("scale", [0.0, 0.5, -1.0, 2.0])
@pytest.mark.parametrize("formula", FORMULA_NAMES)
def test_scale_agrees_between_folded_and_unfolded(tiny_model, make_set, formula, scale):
    model = tiny_model("qwen2")
    one = make_set(model, {"formula": formula})
    with attach(model, [(one, scale)]):
        unfolded = logits(model)
    with attach(model, [(one.fold(), scale)]):
        folded = logits(model)
    assert torch.allclose(unfolded, folded, atol=1e-4)
    assert torch.equal(folded, logits(model)) == (scale == 0.0)


@pytest.mark.parametrize("positions", ["f1+l1", "l2", "prompt", "all", "generated", (0, -2)])
def test_generate_with_a_cache_equals_recomputing_everything(tiny_model, make_set, architecture, positions):
    model = tiny_model(architecture)
    one = make_set(model, {"positions": positions})
    with attach(model, one):
        cached = generate(model, PROMPT)[0].tolist()
    ids, expected = PROMPT, []
    for _ in range(8):
        with attach(model, one, prompt_lengths=[PROMPT.shape[1]]):
            token = logits(model, ids)[0, -1].argmax()
        expected.append(int(token))
        ids = torch.cat([ids, token.reshape(1, 1)], dim=1)
    assert cached == expected


def test_positions_that_reach_generated_tokens_matter(tiny_model, make_set):
    model = tiny_model("llama")
    outputs = set()
    for positions in ("prompt", "all", "generated"):
        with attach(model, make_set(model, {"positions": positions})):
            outputs.add(tuple(generate(model, PROMPT, 12)[0].tolist()))
    outputs.add(tuple(generate(model, PROMPT, 12)[0].tolist()))
    assert len(outputs) == 4


def padded(prompts, side):
    width = max(len(prompt) for prompt in prompts)
    ids, mask = torch.zeros(len(prompts), width, dtype=torch.long), torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        columns = slice(width - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[row, columns], mask[row, columns] = torch.tensor(prompt), 1
    return ids, mask


PROMPTS = [[7], [8, 9], [11, 12, 13], [21, 22, 23, 24, 25, 26, 27, 28, 29]]


@pytest.mark.parametrize("short_prompt", ["paper", "floor"])
@pytest.mark.parametrize("positions", ["f2+l2", "l1", "prompt", "all", "generated", (-1, 0)])
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gemma2"])
def test_left_padded_batch_generates_what_each_prompt_does_alone(tiny_model, make_set, arch, positions, short_prompt):
    model = tiny_model(arch)
    one = make_set(model, {"positions": positions, "short_prompt": short_prompt})
    ids, mask = padded(PROMPTS, "left")
    with attach(model, one):
        together = generate(model, ids, attention_mask=mask)
        alone = [generate(model, torch.tensor([prompt]))[0] for prompt in PROMPTS]
    assert together.tolist() == [row.tolist() for row in alone]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["f2+l2", "prompt", "all"])
def test_padded_batch_logits_equal_each_prompt_alone(tiny_model, make_set, positions, side):
    model = tiny_model("llama")
    one = make_set(model, {"positions": positions}, {"layer": 3, "component": "mlp_output", "positions": positions})
    ids, mask = padded(PROMPTS, side)
    position_ids = (mask.cumsum(1) - 1).clamp(min=0)
    with attach(model, one):
        together = logits(model, ids, attention_mask=mask, position_ids=position_ids)
        for row, prompt in enumerate(PROMPTS):
            alone = logits(model, torch.tensor([prompt]))[0]
            assert torch.allclose(together[row][mask[row] == 1], alone, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_rows_stay_the_same_bit_for_bit(tiny_model, make_set, side):
    model = tiny_model("llama")
    one = make_set(model, {"positions": "all"})
    ids, mask = padded(PROMPTS, side)
    before = captured(model, 2, ids, attention_mask=mask)
    with attach(model, one):
        after = captured(model, 2, ids, attention_mask=mask)
    is_padding = mask == 0
    assert torch.equal(after[is_padding], before[is_padding])
    assert (after[~is_padding] != before[~is_padding]).any(dim=-1).all()


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 4], [6, 1], [2, 2, 3]])
def test_chunked_prefill_with_given_prompt_length_equals_one_pass(tiny_model, make_set, chunks):
    model = tiny_model("llama")
    one = make_set(model, {"positions": "f3+l3"})
    with attach(model, one):
        expected = logits(model)
    cache, start, parts = None, 0, []
    with attach(model, one, prompt_lengths=[7]), torch.no_grad():
        for size in chunks:
            output = model(PROMPT[:, start : start + size], past_key_values=cache, use_cache=True)
            cache, start = output.past_key_values, start + size
            parts.append(output.logits)
    assert torch.allclose(torch.cat(parts, dim=1), expected, atol=1e-4)


def test_teacher_forcing_edits_the_prompt_of_each_row_alone(tiny_model, make_set):
    model = tiny_model("llama")
    one = make_set(model, {"positions": "l1"})
    ids = PROMPT.repeat(2, 1)
    before = captured(model, 2, ids)
    with attach(model, one, prompt_lengths=[3, 5]):
        after = captured(model, 2, ids)
    changed = (before != after).any(dim=-1)
    assert changed.nonzero().tolist() == [[0, 2], [1, 4]]


def test_sampling_several_sequences_edits_each(tiny_model, make_set):
    model = tiny_model("llama")
    with attach(model, make_set(model)):
        alone = generate(model, PROMPT)
        beams = model.generate(PROMPT, max_new_tokens=8, do_sample=False, num_beams=3, num_return_sequences=3)
        twice = generate(model, PROMPT.repeat(2, 1))
    assert beams.shape[0] == 3
    assert twice.tolist() == alone.tolist() * 2


def test_two_generate_calls_in_one_block_each_take_their_own_prompt(tiny_model, make_set):
    model = tiny_model("llama")
    one = make_set(model, {"positions": "l2"})
    with attach(model, one):
        first, second = generate(model, PROMPT), generate(model, PROMPT[:, :3])
    with attach(model, one):
        alone = generate(model, PROMPT[:, :3])
    assert second.tolist() == alone.tolist() != first.tolist()


def test_sets_at_one_site_apply_in_order(tiny_model, make_set):
    model = tiny_model("llama")
    one, two = make_set(model, seed=1), make_set(model, seed=2, name="two")
    before = captured(model, 2)
    with attach(model, [one, two]):
        forward = captured(model, 2)
    with attach(model, [two, one]):
        backward = captured(model, 2)
    with attach(model, one), attach(model, two):
        nested = captured(model, 2)
    expected = manual_rows(two, manual_rows(one, before, [0, 6]), [0, 6])
    assert torch.allclose(forward.double(), expected, atol=1e-4)
    assert torch.equal(nested, forward)
    assert not torch.allclose(forward, backward, atol=1e-2)


def test_nested_attach_ends_with_its_own_block(tiny_model, make_set):
    model = tiny_model("llama")
    one, two = make_set(model, seed=1), make_set(model, {"layer": 2, "positions": "all"}, seed=2)
    base = logits(model)
    with attach(model, one):
        only_one = logits(model)
        with attach(model, two):
            both = logits(model)
        assert torch.equal(logits(model), only_one)
    assert torch.equal(logits(model), base)
    assert len({tuple(x.flatten().tolist()) for x in (base, only_one, both)}) == 3


def test_hooks_are_gone_after_the_block_and_after_an_exception(tiny_model, make_set):
    model = tiny_model("llama")
    one = make_set(model, {}, {"layer": 2, "component": "attention_input"})
    assert num_hooks(model) == 0
    with attach(model, one):
        assert num_hooks(model) == 3
    assert num_hooks(model) == 0
    with pytest.raises(RuntimeError, match="inside"), attach(model, one):
        raise RuntimeError("inside")
    assert num_hooks(model) == 0


def test_hooks_are_gone_when_a_later_site_is_refused(tiny_model):
    model = tiny_model("llama")
    everywhere = InterventionPositions("all")
    edits = [SiteEdit(layer, "block_output", everywhere, lambda rows: rows + 1) for layer in (0, 1, 99)]
    with pytest.raises(UnsupportedComponentError, match="layer 99"), hook_edits(model, edits):
        pytest.fail("the block must not run")
    assert num_hooks(model) == 0


def test_no_sets_leave_the_model_alone(tiny_model):
    model = tiny_model("llama")
    before = logits(model)
    with attach(model, []):
        assert num_hooks(model) == 0
        assert torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_keeps_its_dtype_and_unedited_rows(tiny_model, make_set, dtype):
    model = copy.deepcopy(tiny_model("llama")).to(dtype)
    one = make_set(model, {"positions": "f2+l1"})
    before = captured(model, 2)
    with attach(model, one):
        after = captured(model, 2)
    assert after.dtype == dtype
    assert torch.equal(after[:, 2:6], before[:, 2:6])
    expected = manual_rows(one, before, [0, 1, 6])
    scale = expected.abs().max()
    assert ((after.double() - expected).abs() <= 4 * torch.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("arch", ["llama", "gpt2", "gpt_neox"])
def test_gradients_reach_live_parameters_through_the_hooks(tiny_model, arch, component):
    model = tiny_model(arch)
    vector = torch.zeros(32, requires_grad=True)
    edit = SiteEdit(1, component, InterventionPositions("f2+l1"), lambda rows: rows + vector)

    def loss():
        with hook_edits(model, [edit], [5]):
            return model(PROMPT).logits[0, 4:].logsumexp(-1).sum()

    loss().backward()
    gradient = vector.grad.clone()
    with torch.no_grad():
        step = 1e-2 * gradient / gradient.norm()
        vector += step
        up = loss()
        vector -= 2 * step
        down = loss()
    assert float(up - down) == pytest.approx(2e-2 * float(gradient.norm()), rel=2e-2)


def test_gradients_flow_through_inputs_and_trainable_base(tiny_model, make_set):
    model = copy.deepcopy(tiny_model("llama")).requires_grad_(True)
    embeddings = model.get_input_embeddings()(PROMPT).detach().requires_grad_()
    with attach(model, make_set(model, {"layer": 0, "component": "block_input"})):
        model(inputs_embeds=embeddings).logits.sum().backward()
    assert embeddings.grad is not None
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_gradient_checkpointing_gives_the_same_gradients(tiny_model):
    model = copy.deepcopy(tiny_model("llama")).requires_grad_(True).train()
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            # The older name warns in the transformers that have the newer one.
            names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
            next(getattr(model, name) for name in names if hasattr(model, name))()
        vector = torch.ones(32, requires_grad=True)
        edit = SiteEdit(1, "block_output", InterventionPositions("l2"), lambda rows, v=vector: rows + v)
        with hook_edits(model, [edit], [5]):
            model(PROMPT, use_cache=False).logits.logsumexp(-1).sum().backward()
        gradients.append(vector.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(*gradients, atol=1e-5)


def test_sites_with_the_wrong_shape_are_refused(tiny_model, make_set):
    small, other = tiny_model("llama"), tiny_model("llama", hidden_size=48, head_dim=16)
    with (
        pytest.raises(InterventionShapeError, match="hidden_size 32, the base model has 48"),
        attach(other, make_set(small)),
    ):
        pytest.fail("the block must not run")


def test_prompt_lengths_that_do_not_fit_the_batch_are_refused(tiny_model, make_set):
    model = tiny_model("llama")
    with (
        attach(model, make_set(model), prompt_lengths=[3, 4]),
        pytest.raises(InterventionShapeError, match="2 prompt lengths were given for 1 rows"),
    ):
        logits(model)


def test_continuing_a_cache_without_prompt_lengths_is_refused(tiny_model, make_set):
    model = tiny_model("llama")
    with torch.no_grad():
        cache = model(PROMPT, use_cache=True).past_key_values
    with attach(model, make_set(model)), pytest.raises(InterventionShapeError, match="give prompt_lengths"):
        model(PROMPT[:, :1], past_key_values=cache)


def test_four_dimensional_masks_are_refused(tiny_model, make_set):
    model = tiny_model("llama")
    mask = torch.ones(1, 1, 7, 7)
    with attach(model, make_set(model)), pytest.raises(InterventionShapeError, match="two-dimensional"):
        logits(model, attention_mask=mask)


def test_inner_model_without_a_head_can_be_attached(tiny_model, make_set):
    model = tiny_model("llama")
    with attach(model, make_set(model)):
        expected = logits(model)
    with attach(model.model, make_set(model)), torch.no_grad():
        actual = model.lm_head(model.model(PROMPT).last_hidden_state)
    assert torch.equal(actual, expected)
