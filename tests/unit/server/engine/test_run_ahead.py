"""An engine one step ahead of its device: same tokens, and whatever happens meanwhile, with a step in flight."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from reft_interventions import InterventionPositions
from reft_interventions.folded import FoldedSet
from reft_server.engine import EngineSettings, GenerationRequest, LocalEngine, SamplingParams, build_engine
from reft_server.engine.launched import LaunchedStep
from reft_server.errors import EngineDeadError, EngineStepError
from tests.launching_model import LaunchingOnHost
from tests.unit.server.engine.test_engine import collect, poisoned_set, request

MakeEngine = Callable[..., LocalEngine]

CASES: list[dict[str, Any]] = [
    {"max_tokens": 1},
    {"max_tokens": 2},
    {"max_tokens": 30},
    {"max_tokens": 12, "temperature": 1.3, "seed": 1},
    {"max_tokens": 20, "temperature": 1.3, "top_p": 0.9, "top_k": 40, "seed": 2},
    {"max_tokens": 20, "temperature": 0.8, "min_p": 0.02, "seed": 3},
    {"max_tokens": 25, "temperature": 2.0, "seed": 4, "stop_token_ids": frozenset(range(0, 128, 9))},
]
NEED_HOST: list[dict[str, Any]] = [
    {"num_logprobs": 2},
    {"num_prompt_logprobs": 1, "max_tokens": 3},
    {"presence_penalty": 1.5, "temperature": 1.0, "seed": 6},
    {"min_tokens": 4},
]


@pytest.fixture
def make_engine(tiny_model: Any) -> Iterator[MakeEngine]:
    """An engine that launches its steps, or one that doesn't."""
    engines: list[LocalEngine] = []

    def make(*, late_share: float = 0.0, is_ahead: bool = True, **settings: Any) -> LocalEngine:
        options = EngineSettings(**{"kv_cache_bytes": 1 << 24, **settings})
        built = build_engine(copy.deepcopy(tiny_model("llama")), "tiny", options)
        model = LaunchingOnHost(built._model, late_share) if is_ahead else built._model
        engines.append(LocalEngine(model, built.model_info, options, built._sizes))
        engines[-1].start()
        return engines[-1]

    yield make
    for engine in engines:
        asyncio.run(engine.stop())
        assert engine.stats().kv_cache_usage == 0


async def drain(stream: AsyncIterator[Any]) -> None:
    async for _ in stream:
        pass


def launching(engine: LocalEngine) -> LaunchingOnHost:
    assert isinstance(engine._model, LaunchingOnHost)
    return engine._model


def run_all(engine: LocalEngine, requests: list[GenerationRequest]) -> list[list[int]]:
    async def run() -> list[list[int]]:
        return await asyncio.gather(*(collect(engine, one) for one in requests))

    return asyncio.run(run())


def requests(cases: list[dict[str, Any]]) -> list[GenerationRequest]:
    return [request(*range(i + 1, 3 * i + 4), **one) for i, one in enumerate(cases)]


def test_a_step_is_launched_before_the_last_ones_tokens_are_read(make_engine: MakeEngine) -> None:
    engine = make_engine()
    assert len(run_all(engine, [request(5, 6, 7, max_tokens=5)])[0]) == 5
    assert launching(engine).log == [
        ("launch", 0), ("launch", 1), ("wait", 0), ("launch", 2), ("wait", 1), ("launch", 3), ("wait", 2),
        ("launch", 4), ("wait", 3), ("wait", 4),
    ]  # fmt: skip


@pytest.mark.parametrize("late_share", [0.0, 0.3])
@pytest.mark.parametrize("settings", [{}, {"max_num_seqs": 3, "max_num_batched_tokens": 5}])
def test_tokens_are_those_of_an_engine_that_waits(
    settings: dict[str, Any], late_share: float, make_engine: MakeEngine
) -> None:
    """All at once or in chunks with full places; with tokens that the host draws too late for the next step."""
    waits, ahead = make_engine(is_ahead=False, **settings), make_engine(late_share=late_share, **settings)
    expected = [run_all(waits, [one])[0] for one in requests(CASES)]
    assert run_all(ahead, requests(CASES)) == expected
    assert bool(launching(ahead).num_late) == bool(late_share)


def test_nobody_is_preempted_with_a_step_in_flight(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    long = requests([{"max_tokens": 110, "temperature": 1.0, "top_p": 0.9, "seed": i} for i in range(4)])
    waits, ahead = make_engine(is_ahead=False), make_engine(late_share=0.1, kv_cache_bytes=320 * 512)
    real, was_ahead = ahead._scheduler._preempt, []

    def preempt(*args: Any) -> None:
        was_ahead.append(ahead._steps.is_ahead)
        real(*args)

    monkeypatch.setattr(ahead._scheduler, "_preempt", preempt)
    assert run_all(ahead, long) == [run_all(waits, [one])[0] for one in long]
    assert was_ahead
    assert not any(was_ahead)


def test_a_request_that_needs_the_host_makes_its_steps_wait(make_engine: MakeEngine) -> None:
    waits, ahead = make_engine(is_ahead=False), make_engine(late_share=0.2)
    everything = requests(CASES + NEED_HOST)
    expected = [run_all(waits, [one])[0] for one in everything]
    assert run_all(ahead, everything) == expected
    launched = launching(ahead).log
    launched.clear()
    run_all(ahead, requests(NEED_HOST))
    assert not launched


class SteppedEngine(LocalEngine):
    """An engine without a thread: the test calls `step`."""

    is_ready = True  # type: ignore[assignment]


def test_a_sequence_that_ends_leaves_the_step_that_had_to_wait(make_engine: MakeEngine) -> None:
    """Chosen together while a step was in flight: one needs the host, the other turns out to have ended."""
    waits = make_engine(is_ahead=False)
    scored = request(8, 9, num_logprobs=1)
    ending, expected = run_all(waits, [request(5, 6, 7), scored])
    built = make_engine()
    model = LaunchingOnHost(launching(built)._model)
    engine = SteppedEngine(model, built.model_info, built._settings, built._sizes)

    async def run() -> list[list[int]]:
        stops = request(5, 6, 7, stop_token_ids=frozenset(ending[1:2]))
        tasks = [asyncio.create_task(collect(engine, stops))]
        await asyncio.sleep(0)
        engine.step()
        engine.step()
        tasks.append(asyncio.create_task(collect(engine, scored)))
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            engine.step()
        return [await task for task in tasks]

    assert asyncio.run(run()) == [ending[:2], expected]
    assert model.log[-1] == ("wait", 1), "the third step was to wait"


def test_edits_are_those_of_the_step_that_runs(make_engine: MakeEngine, tiny_model: Any, make_set: Any) -> None:
    sets = [
        make_set(tiny_model("llama"), {"positions": positions}, seed=i).fold()
        for i, positions in enumerate(("all", "f1+l1", "generated"))
    ]
    everything = [
        request(*range(1, 9 + i), interventions=(one,), max_tokens=4 + 3 * i) for i, one in enumerate((*sets, sets[0]))
    ]
    waits, ahead = make_engine(is_ahead=False), make_engine()
    assert run_all(ahead, everything) == [run_all(waits, [one])[0] for one in everything]


def test_cancelled_with_its_step_in_flight(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7, max_tokens=40))
        for num_read in range(1, 4):
            neighbour = asyncio.create_task(collect(engine, request(5, 6, 7, max_tokens=40)))
            cancelled = engine.submit(request(8, 9, *range(20), max_tokens=200))
            async for _ in cancelled:
                num_read -= 1
                if not num_read:
                    cancelled.cancel()
                    break
            assert await neighbour == alone

    asyncio.run(run())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_poisoned_row_fails_alone(value: float, make_engine: MakeEngine) -> None:
    """Its next row is in flight when that shows, for a set that acts on the prompt as for one behind it."""
    engine = make_engine()
    prompt_only = poisoned_set(value)
    one = prompt_only.interventions[0]
    behind = FoldedSet("behind", (type(one)(one.layer, one.component, InterventionPositions("generated"), one.edit),))

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7))
        for bad in (prompt_only, behind):
            neighbour = asyncio.create_task(collect(engine, request(5, 6, 7)))
            with pytest.raises(EngineStepError, match="not finite"):
                await collect(engine, request(5, 6, 7, interventions=(bad,)))
            assert await neighbour == alone

    asyncio.run(run())


@pytest.mark.parametrize("failing", [0, 1, 4])
def test_a_launch_that_fails_runs_again(
    failing: int, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, waits = make_engine(), make_engine(is_ahead=False)
    real = launching(engine).launch

    def launch(batch: Any, previous: LaunchedStep | None) -> LaunchedStep:
        if launching(engine)._num_launched == failing:
            launching(engine)._num_launched += 1
            raise MemoryError("planted")
        return real(batch, previous)

    monkeypatch.setattr(engine._steps._launcher, "launch", launch)
    assert run_all(engine, requests(CASES)) == [run_all(waits, [one])[0] for one in requests(CASES)]
    assert "launch failed" in caplog.text
    assert engine.stats().num_restarts == 0


@pytest.mark.parametrize("place", ["schedule", "wait"])
def test_a_crash_with_a_step_in_flight_restarts(
    place: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host's own code fails, or the device does: all in flight fail, and the next request is served."""
    engine = make_engine()
    model = launching(engine)
    real_schedule, real_launch, log = engine._scheduler.schedule, model.launch, model.log

    def schedule() -> Any:
        if engine._steps.is_ahead:
            raise MemoryError("planted")
        return real_schedule()

    def launch(batch: Any, previous: LaunchedStep | None) -> LaunchedStep:
        step = real_launch(batch, previous)
        if previous is not None:

            def wait() -> None:
                raise RuntimeError("device-side assert")

            step.wait = wait
        return step

    async def run() -> None:
        before = await collect(engine, request(5, 6, 7))
        log.clear()
        with monkeypatch.context() as patch:
            if place == "schedule":
                patch.setattr(engine._scheduler, "schedule", schedule)
            else:
                patch.setattr(model, "launch", launch)
            with pytest.raises(EngineDeadError, match="restarted"):
                await collect(engine, request(5, 6, 7, max_tokens=50))
        if place == "schedule":
            assert log == [("launch", log[0][1]), ("wait", log[0][1])], "the device may still read what is given up"
        assert await collect(engine, request(5, 6, 7)) == before

    asyncio.run(run())
    assert engine.stats().num_restarts == 1


def test_a_device_that_hangs_fails_its_clients(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_step_time_s=0.2)
    goes_on = threading.Event()
    real = launching(engine).launch

    def launch(batch: Any, previous: LaunchedStep | None) -> LaunchedStep:
        step = real(batch, previous)
        step.wait = lambda: goes_on.wait(60)  # type: ignore[assignment]
        return step

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7))
        with monkeypatch.context() as patch:
            patch.setattr(launching(engine), "launch", launch)
            with pytest.raises(EngineDeadError, match="hangs"):
                await collect(engine, request(5, 6, 7))
            assert not engine.is_ready
        goes_on.set()
        while not engine.is_ready or engine.stats().num_requests_running:
            await asyncio.sleep(0.01)
        assert await collect(engine, request(5, 6, 7)) == alone

    asyncio.run(run())


def test_stopped_with_a_step_in_flight(make_engine: MakeEngine) -> None:
    engine = make_engine()

    async def run() -> None:
        stream = engine.submit(request(1, 2, max_tokens=250)).__aiter__()
        await anext(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError, match="shutting down"):
            await drain(stream)

    asyncio.run(run())
    log = launching(engine).log
    assert sum(what == "launch" for what, _ in log) == sum(what == "wait" for what, _ in log)


def test_a_self_test_beside_a_step_in_flight(make_engine: MakeEngine, tiny_model: Any, make_set: Any) -> None:
    engine = make_engine()
    tested = make_set(tiny_model("llama"), {"positions": "f3+l2"}).fold()

    async def run() -> None:
        alone = await collect(engine, request(5, 6, 7, max_tokens=60))
        neighbour = asyncio.create_task(collect(engine, request(5, 6, 7, max_tokens=60)))
        while not neighbour.done():
            report = await engine.self_test(tested)
            assert report.sites[0].num_edited_rows == 5
        assert await neighbour == alone

    asyncio.run(run())


def test_sampling_params_of_the_cases_reach_the_device() -> None:
    """The cases cover every way in which a launched row is drawn."""
    params = [SamplingParams(**{"temperature": 0.0, **one}) for one in CASES]
    assert {(one.temperature > 0, one.top_p < 1, one.top_k > 0, one.min_p > 0) for one in params} == {
        (False, False, False, False), (True, False, False, False), (True, True, True, False), (True, False, False, True)
    }  # fmt: skip
