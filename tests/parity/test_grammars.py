"""Answers of a grammar, in a batch of others: the tokens of transformers' `generate` with every token tried by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import regex
import torch

from reft_client.types import OutputGrammar
from reft_interventions import attach
from reft_server.engine import GenerationRequest, LocalEngine, SamplingParams
from reft_server.errors import GrammarTooComplexError
from reft_server.grammars import GrammarCompiler, GuidanceGrammar
from tests.fakes.engine import EOS
from tests.fakes.tokenizers import byte_level_tokenizer
from tests.parity.harness import TOLERANCE, folded, relative_margin
from tests.parity.test_engine_matches_reference import PATHS, prompt

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = len(TOKENIZER)
TEXTS = [TOKENIZER.decode([token_id]) for token_id in range(VOCAB_SIZE)]
MAX_TOKENS = 16
PATTERNS = [
    r"[a-z]{3,9}",
    r'\{"a": [0-9]{1,6}, "b": (true|false)\}',
    r"(yes|no|The capital of France)",
    r"([0-9]+,)*[0-9]+;",
]


@pytest.fixture(scope="module")
def grammars() -> Iterator[dict[str, GuidanceGrammar]]:
    compiler = GrammarCompiler(TOKENIZER, VOCAB_SIZE, {EOS}, 20_000)

    async def compiled() -> dict[str, GuidanceGrammar]:
        return {one: await compiler.compile(OutputGrammar("regex", one, "field")) for one in PATTERNS}

    yield asyncio.run(compiled())
    compiler.close()


@pytest.fixture(scope="module")
def model(tiny_model: Any) -> Any:
    return tiny_model("llama", vocab_size=VOCAB_SIZE, eos_token_id=EOS)


def reference(model: Any, tokens: tuple[int, ...], sets: tuple[Any, ...], pattern: str) -> tuple[list[int], Any]:
    """One request alone, with hooks; a token may come if what it makes of the answer can still match."""
    compiled = regex.compile(pattern)

    def allowed(_: int, ids: torch.Tensor) -> list[int]:
        said = "".join(TEXTS[token_id] for token_id in ids[len(tokens) :].tolist())
        found = [
            token_id
            for token_id, text in enumerate(TEXTS)
            if token_id != EOS and text.isascii() and compiled.fullmatch(said + text, partial=True)
        ]
        whole = compiled.fullmatch(said) is not None
        return [EOS, *found] if whole or not found else found

    with torch.inference_mode(), attach(model, [(one, 1.0) for one in sets]):
        output = model.generate(
            torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.int64), do_sample=False,
            max_new_tokens=MAX_TOKENS, eos_token_id=EOS, pad_token_id=EOS, prefix_allowed_tokens_fn=allowed,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
    ids = output.sequences[0, len(tokens) :].tolist()
    return [token_id for token_id in ids if token_id != EOS], output.scores


async def run(engine: LocalEngine, tokens: tuple[int, ...], sets: tuple[Any, ...], **sampling: Any) -> list[int]:
    params = SamplingParams(max_tokens=MAX_TOKENS, **{"temperature": 0.0, **sampling})
    request = GenerationRequest("test", tokens, params, tuple(folded(one, 1.0) for one in sets))
    return [
        output.token_id
        async for step in engine.submit(request)
        for output in step
        if output.token_id is not None and not output.is_stop_token
    ]


@pytest.mark.parametrize("path", PATHS)
def test_constrained_answers_in_a_batch_are_the_reference_alone(
    path: str, model: Any, make_set: Any, start_engine: Any, grammars: dict[str, GuidanceGrammar]
) -> None:
    """Constrained and free requests share every batch, with and without interventions."""
    edits = [(), (make_set(model, {"positions": "f2+l2"}, seed=1),), (make_set(model, {"positions": "all"}, seed=2),)]
    engine = start_engine(model, model_path=path, max_num_batched_tokens=16)
    cases = [(prompt(5 + i, i), edits[i % 3], pattern) for i, pattern in enumerate(PATTERNS * 3)]

    async def together() -> tuple[list[list[int]], list[list[int]]]:
        free = [run(engine, tokens, sets, ignore_eos=True) for tokens, sets, _ in cases]
        bound = [run(engine, tokens, sets, grammar=grammars[pattern]) for tokens, sets, pattern in cases]
        everything = await asyncio.gather(*(one for pair in zip(free, bound, strict=True) for one in pair))
        return everything[::2], everything[1::2]

    async def alone() -> list[list[int]]:
        return [await run(engine, tokens, sets, ignore_eos=True) for tokens, sets, _ in cases]

    free, bound = asyncio.run(together())
    for (tokens, sets, pattern), got in zip(cases, bound, strict=True):
        expected, scores = reference(model, tokens, sets, pattern)
        step = next((i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), None)
        assert step is None or relative_margin(scores[step][0]) < TOLERANCE, (pattern, step, got, expected)
        assert step is not None or got == expected
        assert regex.fullmatch(pattern, "".join(TEXTS[one] for one in got), partial=len(got) == MAX_TOKENS)
    assert free == asyncio.run(alone())
    assert len({tuple(one) for one in bound}) > len(PATTERNS), "the model had no say"


def test_sampled_constrained_answers_do_not_depend_on_company(
    model: Any, start_engine: Any, grammars: dict[str, GuidanceGrammar]
) -> None:
    engine = start_engine(model, model_path="native", max_num_batched_tokens=16)
    settings: list[dict[str, Any]] = [
        {"grammar": grammars[pattern], "temperature": 1.0, "seed": seed, **others}
        for seed, pattern in enumerate(PATTERNS)
        for others in ({}, {"top_p": 0.9, "top_k": 9}, {"repetition_penalty": 1.5, "min_p": 0.1})
    ] + [{"temperature": 1.0, "seed": 9}]
    tokens = prompt(12, 3)

    async def answers() -> tuple[list[list[int]], list[list[int]]]:
        alone = [await run(engine, tokens, (), **one) for one in settings]
        together = await asyncio.gather(*(run(engine, tokens, (), **one) for one in settings * 2))
        return alone, together

    alone, together = asyncio.run(answers())
    assert together == alone * 2
    for one, got in zip(settings[:-1], alone, strict=False):
        pattern = next(text for text in PATTERNS if grammars[text] is one["grammar"])
        assert regex.fullmatch(pattern, "".join(TEXTS[token] for token in got), partial=True)


def test_whole_answer_ends_whatever_else_is_asked_for(
    model: Any, start_engine: Any, grammars: dict[str, GuidanceGrammar]
) -> None:
    """Neither `min_tokens` nor `ignore_eos` can make a complete answer longer."""
    engine = start_engine(model, model_path="native", max_num_batched_tokens=16)
    grammar = grammars[PATTERNS[2]]
    plain = asyncio.run(run(engine, prompt(5, 1), (), grammar=grammar))
    assert "".join(TEXTS[one] for one in plain) in ("yes", "no", "The capital of France")
    assert asyncio.run(run(engine, prompt(5, 1), (), grammar=grammar, min_tokens=16, ignore_eos=True)) == plain
    longest = asyncio.run(run(engine, prompt(5, 1), (), grammar=grammars[PATTERNS[0]], min_tokens=9))
    assert regex.fullmatch(PATTERNS[0], "".join(TEXTS[one] for one in longest))


class FailingMatcher:
    """Fails at its second token."""

    is_complete = False
    error: GrammarTooComplexError | None = None

    def __init__(self, grammar: GuidanceGrammar) -> None:
        self._matcher = grammar.matcher()
        self.allowed = self._matcher.allowed
        self._num_tokens = 0

    def accept(self, token_id: int) -> None:
        self._matcher.accept(token_id)
        self._num_tokens += 1
        if self._num_tokens == 2:
            self.error = GrammarTooComplexError("too many states")


class FailingGrammar:
    def __init__(self, grammar: GuidanceGrammar) -> None:
        self._grammar = grammar

    def matcher(self) -> FailingMatcher:
        return FailingMatcher(self._grammar)


def test_grammar_that_fails_ends_its_own_request_only(
    model: Any, start_engine: Any, grammars: dict[str, GuidanceGrammar]
) -> None:
    engine = start_engine(model, model_path="native", max_num_batched_tokens=16)
    failing = FailingGrammar(grammars[PATTERNS[0]])

    async def together() -> list[Any]:
        jobs = [run(engine, prompt(9, 1), (), ignore_eos=True), run(engine, prompt(9, 2), (), grammar=failing)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    neighbour, failed = asyncio.run(together())
    assert isinstance(failed, GrammarTooComplexError)
    assert neighbour == asyncio.run(run(engine, prompt(9, 1), (), ignore_eos=True))
