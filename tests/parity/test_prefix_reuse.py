"""Prefix reuse changes nothing: warm equals cold equals the slow reference, token for token and logprob for logprob.

The tolerance of logprobs is `TOLERANCE` of the spread of the reference's row.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from reft_interventions import InterventionSet
from reft_server.engine import EngineSettings, GenerationRequest, LocalEngine, SamplingParams, build_engine
from tests.parity.harness import TOLERANCE, Case, Use, folded, reference_logits, to_run
from tests.parity.test_engine_matches_reference import PATHS, prompt

MAX_TOKENS = 5
SHARED = (0, 1, 15, 16, 17, 31, 32, 40)


class Warm:
    """An engine of its own, and how many prompt tokens each request reused."""

    def __init__(self, model: Any, **settings: Any) -> None:
        options = EngineSettings(**{"kv_cache_bytes": 1 << 24, **settings})
        self.model = model
        self.engine: LocalEngine = build_engine(copy.deepcopy(model), "tiny", options)
        self.engine.start()

    async def run(
        self, tokens: tuple[int, ...], *sets: InterventionSet | Use, salt: str = "", max_tokens: int = MAX_TOKENS
    ) -> int:
        """Generate, compare every token and logprob with the reference, and return the tokens reused."""
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, num_logprobs=0)
        uses = tuple(one if isinstance(one, Use) else Use(one) for one in sets)
        applied = tuple([await to_run(self.engine, use) for use in uses])
        outputs = []
        async for step in self.engine.submit(GenerationRequest("test", tokens, sampling, applied, cache_salt=salt)):
            outputs += step
        _, expected = reference_logits(self.model, Case(tokens, uses, max_tokens))
        for output, logits in zip(outputs, (row.double() for row in expected), strict=True):
            spread = float(logits.max() - logits.min())
            logprobs = logits.log_softmax(-1)
            assert output.token_id is not None
            assert output.logprob is not None
            assert output.token_id == int(logits.argmax())
            assert abs(output.logprob - float(logprobs[output.token_id])) <= TOLERANCE * spread
        return sum(output.num_cached_tokens for output in outputs)


@pytest.fixture
def start(tiny_model: Any) -> Iterator[Any]:
    started: list[Warm] = []

    def make(model: Any = None, **settings: Any) -> Warm:
        started.append(Warm(model or tiny_model("llama"), **settings))
        return started[-1]

    yield make
    for warm in started:
        asyncio.run(warm.engine.stop())
        assert warm.engine.stats().kv_cache_usage == 0


@pytest.fixture
def sets(tiny_model: Any, make_set: Any) -> dict[str, tuple[InterventionSet, ...]]:
    model = tiny_model("llama")
    return {
        "base": (),
        "l3": (make_set(model, {"positions": "l3"}, seed=1),),
        "l1": (make_set(model, {"positions": "l1", "layer": 0}, {"positions": "l1", "layer": 2}, seed=2),),
        "f2": (make_set(model, {"positions": "f2"}, seed=3),),
        "f2 again": (make_set(model, {"positions": "f2"}, seed=3),),
        "f20": (make_set(model, {"positions": "f20"}, seed=4),),
        "all": (make_set(model, {"positions": "all", "formula": "direft"}, seed=5),),
        "last layer": (make_set(model, {"positions": "all", "layer": 3}, seed=6),),
    }


def edited_like(tokens: tuple[int, ...], sets: tuple[InterventionSet, ...]) -> list[tuple[object, ...]]:
    """Per position: its token, and the edits that reach K and V; by definition, not by blocks."""
    found = []
    for position, token in enumerate(tokens):
        keys: list[object] = [token]
        for one in sets:
            for index, folded_one in enumerate(folded(one, 1.0).interventions):
                intervals = folded_one.positions.intervals(len(tokens))
                if folded_one.layer < 3 and any(a <= position and (b is None or position < b) for a, b in intervals):
                    keys.append((folded(one, 1.0).content_hash, index))
        found.append(tuple(keys))
    return found


def num_common(
    first: tuple[int, ...], first_sets: tuple[InterventionSet, ...], second: tuple[int, ...], second_sets: Any
) -> int:
    pairs = zip(edited_like(first, first_sets), edited_like(second, second_sets), strict=False)
    common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))
    return min(common, len(second) - 1)


PAIRS = [
    ("base", "base"),
    ("base", "l3"),
    ("l3", "base"),
    ("l3", "l1"),
    ("l1", "l1"),
    ("base", "f2"),
    ("f2", "base"),
    ("f2", "f2 again"),
    ("f2", "f20"),
    ("f20", "f20"),
    ("all", "all"),
    ("all", "base"),
    ("base", "last layer"),
    ("last layer", "l3"),
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_warm_equals_cold(first: str, second: str, path: str, start: Any, sets: Any) -> None:
    """Prompts of 40 that share their first n tokens; what is reused is exactly what tokens and edits leave equal."""
    warm = start(model_path=path, max_num_batched_tokens=24)

    async def run() -> None:
        for number, num_shared in enumerate(SHARED):
            common = prompt(num_shared, 10 + number)
            one = (*common, *prompt(40 - num_shared, 100 + number))
            other = (*common, *prompt(40 - num_shared, 200 + number))
            salt = str(number)
            assert await warm.run(one, *sets[first], salt=salt) == 0
            assert await warm.run(other, *sets[second], salt=salt) == num_common(one, sets[first], other, sets[second])
            # and the second left the first's blocks as they were
            assert await warm.run(one, *sets[first], salt=salt) == len(one) - 1

    asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
def test_reuse_reaches_running_sequences(path: str, start: Any, sets: Any) -> None:
    """Whole blocks of a prompt can be reused as soon as they are computed, and generated ones when it has ended."""
    warm = start(model_path=path)
    tokens = prompt(45, 7)

    async def run() -> None:
        running = asyncio.create_task(warm.run(tokens, *sets["l3"], max_tokens=60))
        while not warm.engine.stats().num_generated_tokens:
            await asyncio.sleep(0)
        assert await warm.run((*tokens[:40], 1, 2, 3, 4), *sets["l1"]) == 32
        assert not running.done()
        await running

    asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
def test_next_turn_of_a_chat_reuses_what_its_edits_leave_equal(path: str, start: Any, sets: Any) -> None:
    """The last turn's edited tail and its answer were computed under edits that the next turn's prompt has not."""
    warm = start(model_path=path)
    tokens = prompt(40, 8)

    async def run() -> None:
        assert await warm.run(tokens, max_tokens=20) == 0
        with torch.inference_mode():
            whole = warm.model.generate(torch.tensor([tokens]), max_new_tokens=20, do_sample=False)[0].tolist()
        turn = (*whole, *prompt(9, 9))
        assert await warm.run(turn) == 59  # but for the last token generated, whose K and V nobody needed
        assert await warm.run(turn, *sets["l3"]) == len(turn) - 3
        assert await warm.run((*turn, 5, 6, 7, 8), *sets["l3"]) == len(turn)

    asyncio.run(run())


def test_scale_and_order_of_sets_are_part_of_the_key(start: Any, sets: Any) -> None:
    warm = start()
    tokens = prompt(40, 3)

    async def run() -> None:
        assert await warm.run(tokens, *sets["f2"], *sets["f20"]) == 0
        assert await warm.run(tokens, *sets["f20"], *sets["f2"]) == 0
        assert await warm.run(tokens, *sets["f2"], *sets["f20"]) == 39
        request = GenerationRequest(
            "test", tokens, SamplingParams(max_tokens=1), (folded(*sets["f2"], 0.5), folded(*sets["f20"], 1.0))
        )
        outputs = [output async for step in warm.engine.submit(request) for output in step]
        assert outputs[0].num_cached_tokens == 0

    asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
def test_rank_dimensions_and_sources_are_part_of_the_key(
    path: str, start: Any, sets: Any, tiny_model: Any, make_set: Any
) -> None:
    """One prompt, edited from its start on, by sets that differ in one choice only: nothing edited is shared."""
    model = tiny_model("llama")
    asks = make_set(model, {"positions": "f2", "formula": "dii"}, seed=7, stores_source=False)
    [whole], [other] = sets["f2"], sets["f20"]
    sources = (prompt(8, 20), prompt(9, 20), prompt(8, 21))
    lists: list[tuple[Use, ...]] = [
        (Use(whole),),
        (Use(whole, 1.0, (0,)),),
        (Use(whole, 1.0, (0, 1)),),
        (Use(whole, -1.0, (0, 1)),),
        (Use(whole, 1.0, (0,)), Use(other)),
        (Use(other), Use(whole, 1.0, (0,))),
        *((Use(asks, source=source),) for source in sources),
        (Use(asks, 1.0, (2,), sources[0]),),
        (Use(asks, 0.5, None, sources[0]),),
    ]
    warm = start(model_path=path)

    async def run() -> None:
        for uses in lists:
            assert await warm.run(prompt(40, 3), *uses) == 0
        for uses in lists:
            assert await warm.run(prompt(40, 3), *uses) == 39

    asyncio.run(run())


@pytest.mark.parametrize("path", PATHS)
def test_a_source_shares_its_prefix_with_everybody(path: str, start: Any, tiny_model: Any, make_set: Any) -> None:
    """It computes the tokens whose rows are wanted, whatever is cached; what it computes is the base model's."""
    asks = make_set(tiny_model("llama"), {"positions": "l2", "formula": "dii"}, stores_source=False)
    warm = start(model_path=path, max_num_batched_tokens=24)

    async def run() -> None:
        await warm.run(prompt(40, 3))
        num_hits = warm.engine.stats().num_prefix_hit_tokens
        own = prompt(40, 4)
        assert await warm.run(own, Use(asks, source=prompt(40, 3))) == 0
        assert warm.engine.stats().num_prefix_hit_tokens - num_hits == 38
        assert await warm.run(own) == 38  # up to the interchanged tokens
        longer = (*prompt(34, 5), 7, 8)
        await warm.run(own, Use(asks, source=prompt(34, 5)))
        assert await warm.run(longer) == 34

    asyncio.run(run())


def test_salts_are_apart(start: Any) -> None:
    warm = start()
    tokens = prompt(40, 4)

    async def run() -> list[int]:
        return [await warm.run(tokens, salt=salt) for salt in ("", "a", "b", "a", "")]

    assert asyncio.run(run()) == [0, 0, 0, 39, 39]


def test_scope_intervention_reuses_within_one_intervention_only(start: Any, sets: Any) -> None:
    warm = start(prefix_cache_scope="intervention")
    tokens = prompt(40, 5)

    async def run() -> list[int]:
        return [await warm.run(tokens, *sets[name]) for name in ("base", "l3", "l1", "l3", "base")]

    assert asyncio.run(run()) == [0, 0, 0, 39, 39]


def test_scope_off_reuses_nothing(start: Any) -> None:
    warm = start(prefix_cache_scope="off")

    async def run() -> list[int]:
        return [await warm.run(prompt(40, 6)) for _ in range(2)]

    assert asyncio.run(run()) == [0, 0]


@pytest.mark.parametrize("path", PATHS)
def test_eviction_changes_nothing(path: str, start: Any, sets: Any) -> None:
    """A cache of six blocks under many prompts: hits, evictions and half-evicted prompts, all exact."""
    per_token = 4 * 2 * 2 * 8 * 4
    warm = start(model_path=path, prefix_cache_bytes=6 * 16 * per_token, max_num_batched_tokens=32)
    names = ["base", "l3", "f2", "all"]

    async def run() -> int:
        tasks = [
            warm.run((*prompt(20, i % 3), *prompt(30, i % 5)), *sets[names[(i // 2) % 4]], max_tokens=20)
            for i in range(24)
        ]
        return sum(await asyncio.gather(*tasks))

    assert asyncio.run(run()) > 0
    stats = warm.engine.stats()
    assert stats.num_prefix_evictions > 0
    assert stats.prefix_cache_bytes <= 6 * 16 * per_token
    assert stats.num_prefix_hit_tokens < stats.num_prefix_queried_tokens


def test_a_crowd_with_one_long_prompt_computes_it_once(start: Any, sets: Any) -> None:
    """Requests that arrive together wait for the first one's prefill instead of repeating it."""
    warm = start(max_num_batched_tokens=64)
    common = prompt(160, 1)

    async def run() -> None:
        await asyncio.gather(*(warm.run((*common, i, 3), *sets[("base", "l3", "l1")[i % 3]]) for i in range(1, 13)))

    asyncio.run(run())
    assert warm.engine.stats().num_prompt_tokens < 2 * 160


def test_long_starts_are_held_once_and_change_nothing(
    start: Any, tiny_model: Any, make_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight running sequences over 300 common tokens, in a KV cache that could not hold four copies of them."""
    model = tiny_model("llama", max_position_embeddings=1024)
    per_token = 4 * 2 * 2 * 8 * 4
    warm = start(model=model, model_path="native", kv_cache_bytes=1500 * per_token, max_num_batched_tokens=64)
    sets = [(), *((make_set(model, {"positions": positions}, seed=7),) for positions in ("l3", "l1", "all"))]
    common = prompt(300, 1)
    scheduler, num_running = warm.engine._scheduler, [0]
    schedule = scheduler.schedule

    def spy() -> Any:
        num_running.append(len(scheduler.running))
        return schedule()

    monkeypatch.setattr(scheduler, "schedule", spy)

    async def one(number: int) -> None:
        await warm.run((*common, *prompt(1 + 5 * number, number)), *sets[number % 3], max_tokens=20 + number)

    async def run() -> None:
        await warm.run(common)
        await asyncio.gather(*(one(number) for number in range(8)))
        await asyncio.gather(warm.run((*common, 1), *sets[3]), warm.run((*common[:272], 1, 2)), warm.run((*common, 2)))

    asyncio.run(run())
    assert max(num_running) >= 5
    assert warm.engine.stats().num_prompt_tokens < 2 * 300 + 8 * 60


def test_failed_request_leaves_nothing_behind(start: Any, sets: Any, tiny_model: Any) -> None:
    """A set that overflows fails its request; its slot's next user, alone and in company, is exact."""
    from tests.unit.server.engine.test_engine import poisoned_set

    warm = start(max_num_seqs=2)

    async def run() -> None:
        for round_number in range(3):
            request = GenerationRequest(
                "bad", prompt(60, 1), SamplingParams(max_tokens=4), (poisoned_set(float("nan")),)
            )
            with pytest.raises(Exception, match="not finite"):
                _ = [step async for step in warm.engine.submit(request)]
            # the short one takes the slot over, and attends within the long one's length
            await asyncio.gather(warm.run(prompt(5, 50 + round_number)), warm.run(prompt(58, 60 + round_number)))

    asyncio.run(run())
