"""The native path as a whole: bits that depend on nothing but the row, in memory that stays flat."""

from __future__ import annotations

import copy
import resource
from collections.abc import Sequence as SequenceOf
from typing import Any

import pytest
import torch
from torch import Tensor

from reft_interventions import FoldedSet, InterventionSet
from reft_interventions.components import COMPONENTS
from reft_interventions.user_folders import default_cache_dir
from reft_server.engine.batch import build_batch
from reft_server.engine.edit_plan import EditPlanner
from reft_server.engine.kv_cache import KVCache
from reft_server.engine.native import NativeLibrary, load_library
from reft_server.engine.native_model import NativeModel
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence
from reft_server.engine.single import run_alone
from reft_server.engine.stream import NullStream
from reft_server.engine.types import GenerationRequest, SamplingParams

NATIVE_ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(scope="module")
def library() -> NativeLibrary:
    return load_library(default_cache_dir())


def native(library: NativeLibrary, base: Any, **options: Any) -> NativeModel:
    return NativeModel(copy.deepcopy(base), 256, library, **options)


def tokens(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def run_together(
    model: NativeModel, prompts: SequenceOf[list[int]], interventions: tuple[FoldedSet, ...] = ()
) -> list[Tensor]:
    """The logits behind each prompt, all of them in one step; the interventions are the first one's."""
    cache = KVCache(model.kv_layout, budget_bytes=1 << 24, max_rows=len(prompts), max_tokens=256)
    sequences = [
        Sequence(
            GenerationRequest("together", tuple(prompt), SamplingParams(max_tokens=1), () if index else interventions),
            NullStream(),
            4,
        )
        for index, prompt in enumerate(prompts)
    ]
    for sequence in sequences:
        sequence.slot = cache.allocate(len(sequence.token_ids))
    chunks = [ScheduledChunk(sequence, 0, len(sequence.token_ids)) for sequence in sequences]
    batch = build_batch(chunks, model.kv_layout.device, EditPlanner(model.kv_layout.device))
    logits = dict(zip(batch.sampled_sequences, model.forward(batch), strict=True))
    return [logits[sequence] for sequence in sequences]


@pytest.mark.parametrize("arch", NATIVE_ARCHITECTURES)
def test_logits_are_the_same_bits_for_every_cut_of_a_prompt(arch: str, tiny_model: Any, library: NativeLibrary) -> None:
    model, prompt = native(library, tiny_model(arch)), tokens(61)
    whole = run_alone(model, prompt)
    for chunk_sizes in ((60, 1), (1,) * 61, (7, 13, 40, 1), (30, 31), (16, 16, 16, 13)):
        assert torch.equal(run_alone(model, prompt, chunk_sizes=chunk_sizes)[-1:], whole)


@pytest.mark.parametrize("arch", NATIVE_ARCHITECTURES)
def test_logits_are_the_same_bits_alone_and_in_a_batch(arch: str, tiny_model: Any, library: NativeLibrary) -> None:
    model = native(library, tiny_model(arch))
    prompts = [tokens(length, seed=length) for length in (1, 1, 2, 5, 40, 33, 1, 12, 13)]
    for prompt, logits in zip(prompts, run_together(model, prompts), strict=True):
        assert torch.equal(run_alone(model, prompt)[0], logits)


@pytest.mark.parametrize("arch", NATIVE_ARCHITECTURES)
def test_logits_are_the_same_bits_for_any_number_of_threads(arch: str, tiny_model: Any, library: NativeLibrary) -> None:
    prompt = tokens(50)
    single, *others = (
        run_alone(native(library, tiny_model(arch), num_threads=num_threads), prompt, chunk_sizes=(40, 9, 1))
        for num_threads in (1, 2, 5)
    )
    assert all(torch.equal(single, other) for other in others)


def test_edits_do_not_change_the_bits_of_other_rows(tiny_model: Any, make_set: Any, library: NativeLibrary) -> None:
    model, prompt = native(library, tiny_model("llama")), tokens(20)
    folded = make_set(tiny_model("llama"), {"positions": "l1", "component": "mlp_input"}).fold()
    plain = run_alone(model, prompt, chunk_sizes=(10, 9, 1))
    edited = run_alone(model, prompt, chunk_sizes=(10, 9, 1), interventions=(folded,))
    assert torch.equal(plain[:2], edited[:2])
    assert not torch.equal(plain[2], edited[2])


@pytest.mark.parametrize("component", COMPONENTS)
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_edit_anywhere_leaves_the_bits_of_its_neighbours(
    component: str, arch: str, tiny_model: Any, make_set: Any, library: NativeLibrary
) -> None:
    """A step that stops at a site computes what a step in one go does, for 1 row of a tile and for many."""
    model = native(library, tiny_model(arch))
    edited, *others = [tokens(length, seed=length) for length in (9, 1, 2, 17, 40)]
    folded = make_set(
        tiny_model(arch),
        {"component": component, "positions": "prompt"},
        {"component": component, "layer": 3, "positions": "l2"},
    ).fold()
    first, *rest = run_together(model, [edited, *others], (folded,))
    assert not torch.equal(first, run_alone(model, edited)[0])
    for prompt, logits in zip(others, rest, strict=True):
        assert torch.equal(run_alone(model, prompt)[0], logits)


@pytest.mark.parametrize("weight_dtype", ["model", "bfloat16", "int8"])
def test_edit_of_nothing_at_the_activation_changes_no_bit(
    weight_dtype: Any, tiny_model: Any, make_set: Any, library: NativeLibrary
) -> None:
    """Activation and `up` apart, then multiplied, are the same numbers as in one go; with biases and scales, too."""
    base = tiny_model("llama", mlp_bias=True, intermediate_size=67)
    one = make_set(base, {"component": "mlp_activation", "formula": "addition", "positions": "all"})
    zero = InterventionSet.create(one.manifest, [{"vector": torch.zeros(67)}]).fold()
    model, prompt = native(library, base, weight_dtype=weight_dtype), tokens(25)
    plain = run_alone(model, prompt, chunk_sizes=(23, 1, 1))
    assert torch.equal(run_alone(model, prompt, chunk_sizes=(23, 1, 1), interventions=(zero,)), plain)


def test_untied_head_and_embedding(tiny_model: Any, library: NativeLibrary) -> None:
    base, prompt = tiny_model("llama", tie_word_embeddings=False), tokens(30)
    with torch.inference_mode():
        expected = base(input_ids=torch.tensor([prompt])).logits[0, -1:]
    got = run_alone(native(library, base), prompt)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_value_that_is_not_finite_stays_in_its_sequence(tiny_model: Any, library: NativeLibrary) -> None:
    base = copy.deepcopy(tiny_model("llama", tie_word_embeddings=False))
    base.model.embed_tokens.weight.data[77] = torch.nan
    model, prompts = native(library, base), [[1, 2, 3], [5, 77, 6], [7, 8]]
    finite = [bool(logits.isfinite().all()) for logits in run_together(model, prompts)]
    assert finite == [True, False, True]


def test_a_thousand_steps_leave_memory_flat(tiny_model: Any, library: NativeLibrary) -> None:
    """Models that come and go, too: threads and buffers are given back."""

    def work() -> None:
        for _ in range(20):
            model = native(library, tiny_model("llama"), num_threads=2)
            run_alone(model, tokens(50), chunk_sizes=(1,) * 50)

    work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB; the weights' mappings are freed
