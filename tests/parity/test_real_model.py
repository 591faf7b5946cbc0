"""SmolLM2-135M-Instruct with the really trained examples: mixed in one batch, each answer equal to the reference's."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from reft_interventions import InterventionSet
from reft_interventions.file_format import load
from reft_interventions.formulas.base import initial_rotation
from reft_server.base_model import default_model_path
from reft_server.engine import EngineSettings, LocalEngine, build_engine
from tests.parity.harness import TOLERANCE, Case, Comparison, Expected, Use, reference, relative_margin, run_together

FOLDER = Path(__file__).parents[2] / "examples"
INTERCHANGE = FOLDER / "greater-than" / "greater-than.safetensors"
EXAMPLES = sorted(path for path in FOLDER.glob("*/*.safetensors") if path != INTERCHANGE)
NUM_PAIRS = 24
QUESTIONS = (
    "What is the capital of France?",
    "Name three things that you can do with an old newspaper, and say in a sentence each why they are useful.",
    "Is a trout an animal, a plant or a food?",
    "Hi",
)
MAX_TOKENS = 24


@pytest.fixture(scope="module")
def real_model() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.fixture(scope="module", params=[48, 1024])
def real_engine(request: pytest.FixtureRequest, real_model: PreTrainedModel) -> Iterator[LocalEngine]:
    settings = EngineSettings(max_num_batched_tokens=request.param, kv_cache_bytes=1 << 28)
    engine = build_engine(copy.deepcopy(real_model), "smollm2-135m-instruct", settings)
    engine.start()
    yield engine
    asyncio.run(engine.stop())


@pytest.fixture(scope="module")
def cases_with_references(real_model: PreTrainedModel) -> list[tuple[Case, Any]]:
    """Every question with no set, with each example alone, and with two examples at once."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_path())
    examples = [load(path) for path in EXAMPLES]
    assert len(examples) == 3
    choices: list[tuple[tuple[InterventionSet, float], ...]] = [
        (),
        *(((example, 1.0),) for example in examples),
        ((examples[0], 1.0), (examples[1], -0.5)),
    ]
    cases = []
    for index, question in enumerate(QUESTIONS):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        cases += [Case(tuple(prompt), sets, MAX_TOKENS) for sets in choices[index % 2 :: 2] + choices[:1]]
    return [(case, reference(real_model, case)) for case in cases]


def test_mixed_batch_equals_each_request_alone(
    real_engine: LocalEngine, cases_with_references: list[tuple[Case, Any]]
) -> None:
    outputs = run_together(real_engine, [case for case, _ in cases_with_references])
    comparison = Comparison()
    for (case, expected), got in zip(cases_with_references, outputs, strict=True):
        comparison.check(case, got, expected)
    comparison.verdict()
    different = {tuple(got) for (case, _), got in zip(cases_with_references, outputs, strict=True) if case.sets}
    assert len(different) > len(QUESTIONS), "the sets change nothing: the test would prove nothing"


def test_reused_prefixes_equal_each_request_alone(
    real_engine: LocalEngine, cases_with_references: list[tuple[Case, Any]]
) -> None:
    """The same questions again, in another order: prompts start from what base and other sets have computed."""
    cases = cases_with_references[::-1]
    num_hits, num_queried = real_engine.stats().num_prefix_hit_tokens, real_engine.stats().num_prefix_queried_tokens
    run_together(real_engine, [case for case, _ in cases])
    outputs = run_together(real_engine, [case for case, _ in cases])
    comparison = Comparison()
    for (case, expected), got in zip(cases, outputs, strict=True):
        comparison.check(case, got, expected)
    comparison.verdict()
    stats = real_engine.stats()
    assert stats.num_prefix_hit_tokens - num_hits > 0.6 * (stats.num_prefix_queried_tokens - num_queried)


def test_base_rows_equal_generate(real_engine: LocalEngine, real_model: PreTrainedModel) -> None:
    """A static batch of transformers' own `generate`, no hooks and no padding."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(100, 49_000, (6, 40), generator=generator)
    with torch.inference_mode():
        output = real_model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    cases = [Case(tuple(prompt), (), MAX_TOKENS) for prompt in prompts.tolist()]
    comparison = Comparison()
    for row, (case, got) in enumerate(zip(cases, run_together(real_engine, cases), strict=True)):
        margins = [relative_margin(logits[row]) for logits in output.logits]
        comparison.check(case, got, Expected(output.sequences[row, 40:].tolist(), margins))
    comparison.verdict()


def test_learned_interchange_moves_the_variable_and_a_random_subspace_does_not(
    real_engine: LocalEngine, real_model: PreTrainedModel
) -> None:
    """Held-out pairs of the bundled example, each request with its own source prompt, all in one batch."""
    tokenizer = AutoTokenizer.from_pretrained(default_model_path())
    learned = load(INTERCHANGE)
    (spec,) = learned.manifest.interventions
    generator = torch.Generator().manual_seed(0)
    rotation = initial_rotation(real_model.config.hidden_size, spec.low_rank_dimension, generator)
    lines = (INTERCHANGE.parent / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:NUM_PAIRS]]
    wanted = [tokenizer(row["completion"], add_special_tokens=False)["input_ids"][0] for row in rows]
    accuracies, cases = [], []
    for one in (learned, InterventionSet.create(learned.manifest, [{"rotate_layer": rotation}])):
        own = [
            Case(tuple(tokenizer(row["base"])["input_ids"]), (Use(one, source=source),), max_tokens=1)
            for row in rows
            for source in [tuple(tokenizer(row["source"])["input_ids"])]
        ]
        written = [tokens[0] for tokens in run_together(real_engine, own)]
        accuracies.append(sum(a == b for a, b in zip(written, wanted, strict=True)) / NUM_PAIRS)
        cases.append((own[0], written[0]))
    assert accuracies[0] > accuracies[1] + 0.4, accuracies
    for case, token in cases:
        expected = reference(real_model, case)
        assert token == expected.token_ids[0] or expected.margins[0] < TOLERANCE


def test_docs_training_page_runs_a_set_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (FOLDER.parent / "docs/training.md").read_text(encoding="utf-8")
    code = page.split("<!-- test:attach -->\n```python\n", 1)[1].split("```", 1)[0]
    monkeypatch.chdir(FOLDER.parent)
    exec(compile(code, "docs/training.md", "exec"), {})  # noqa: S102 - our own page
    assert capsys.readouterr().out.isupper()
