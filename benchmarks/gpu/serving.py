"""The figures of one served model: decode steps, prompts, jobs of many requests, shared prefixes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.gpu.inputs import (
    EVERYWHERE,
    LAST,
    PROMPT_ONLY,
    digits,
    random_model,
    random_set,
    settings,
    synchronize,
)
from benchmarks.gpu.plan import Plan
from benchmarks.machine import median
from reft_interventions.folded import FoldedSet
from reft_server.engine import GenerationRequest, SamplingParams, build_engine
from reft_server.engine.sequence import Sequence as EngineSequence
from reft_server.engine.stream import NullStream


class Serving:
    """One model on the device, and the figures of its engine.

    Args:
        ceilings: of `checks.ceilings`, to state shares of.
        changes: of the engine's settings.
    """

    def __init__(self, plan: Plan, ceilings: dict[str, float], **changes: Any) -> None:
        self._plan = plan
        self._ceilings = ceilings
        model = random_model(plan.config, plan.dtype, plan.device)
        read = {name: one for name, one in model.named_parameters() if "embed" not in name}
        self._num_weight_bytes = sum(one.nbytes for one in read.values())
        self._num_block_weights = sum(one.numel() for name, one in read.items() if "lm_head" not in name)
        self.engine = build_engine(model, "benchmark", settings(plan, **changes))
        self._layout = self.engine._model.kv_layout
        self._is_started = False
        self._num_sequences = 0

    @property
    def kernels(self) -> str:
        """Which kernels and which attention were chosen at start."""
        model: Any = self.engine._model
        kernels = getattr(model, "packed", model).kernels
        return f"{kernels.name}, {type(kernels._attention).__name__}"

    def stop(self) -> None:
        """End the engine's thread."""
        if self._is_started:
            asyncio.run(self.engine.stop())

    def decode(self, found: dict[str, Any]) -> None:
        """Milliseconds of an engine's step in which all sequences decode, base and with a set of each row's own.

        K and V of the context hold whatever they hold: speed does not depend on it.
        """
        found["cells"] = []
        for context in self._plan.contexts:
            for batch_size in self._plan.batch_sizes:
                kv_bytes = batch_size * context * self._layout.bytes_per_token
                floor_s = (self._num_weight_bytes + kv_bytes) / (1e9 * self._ceilings["copy_gb_per_s"])
                cell: dict[str, Any] = {"batch": batch_size, "context": context, "floor_ms": digits(1e3 * floor_s)}
                found["cells"].append(cell)
                for name, positions in (("base", None), (EVERYWHERE, EVERYWHERE)):
                    replays = self._num_replays
                    seconds = self._decode_s(batch_size, context, positions)
                    cell[f"{name}_ms"] = digits(1e3 * seconds)
                    cell[f"{name}_share"] = digits(floor_s / seconds)
                    cell[f"{name}_replays"] = self._num_replays - replays

    def prefill(self, found: dict[str, Any]) -> None:
        """Tokens/s of one prompt in one step, base and edited."""
        num_tokens = self._plan.num_prefill_tokens
        ceiling = 1e12 * self._ceilings["bf16_tflops"] / (2 * self._num_block_weights)
        found |= {"num_tokens": num_tokens, "ceiling_tokens_per_s": digits(ceiling)}
        for name, positions in (("base", None), (PROMPT_ONLY, PROMPT_ONLY), (EVERYWHERE, EVERYWHERE)):
            rate = num_tokens / self._prefill_s(num_tokens, positions)
            found[f"{name}_tokens_per_s"] = digits(rate)
            found[f"{name}_share"] = digits(rate / ceiling)

    def throughput(self, found: dict[str, Any]) -> None:
        """Output tokens/s of concurrent requests: the base, then distinct sets over the base of the same run."""
        plan = self._plan
        if plan.num_warm_ups:
            for number, positions in enumerate((None, PROMPT_ONLY, EVERYWHERE)):  # whatever is compiled for a first one
                sets = () if positions is None else (self.make_set(positions, 0),)
                self.run_job([sets] * plan.num_concurrent, self._job, seed=number)
        mixes = [(PROMPT_ONLY, number) for number in plan.num_distinct]
        mixes += [(EVERYWHERE, number) for number in plan.num_distinct_everywhere]
        found["mixes"] = []
        for turn, (positions, number) in enumerate(mixes):
            found["mixes"].append(self._mix(positions, number, seed=100 * (turn + 1)))

    def _mix(self, positions: str, number: int, seed: int) -> dict[str, Any]:
        """Base and mixed jobs, A B B A."""
        plan = self._plan
        sets = [self.make_set(positions, seed=one) for one in range(number)]
        num_requests = max(plan.num_concurrent, number)
        jobs: dict[str, list[tuple[FoldedSet, ...]]] = {
            "base": [()] * num_requests,
            "mixed": [(sets[i % number],) for i in range(num_requests)],
        }
        replays, steps = self._num_replays, self.engine.stats().num_steps
        seconds = dict.fromkeys(jobs, 0.0)
        order = ("base", "mixed", "mixed", "base") if plan.num_warm_ups else ("base", "mixed")
        for turn, name in enumerate(order):
            seconds[name] += self.run_job(jobs[name], self._job, seed + turn)
        num_tokens = num_requests * plan.num_new_tokens * len(order) // 2
        return {
            "positions": positions,
            "num_distinct": number,
            "base_tokens_per_s": digits(num_tokens / seconds["base"]),
            "over_base": digits(seconds["base"] / seconds["mixed"]),
            "num_replays": self._num_replays - replays,
            "num_steps": self.engine.stats().num_steps - steps,
        }

    def shared_prefix(self, found: dict[str, Any]) -> None:
        """Seconds to the first token behind a cached prefix: the base model, and sets that edit the last token."""
        plan = self._plan
        prefix = tuple((17 * i + 3) % plan.config["vocab_size"] for i in range(plan.prefix_tokens))
        self._first_token_s(prefix, ())
        base = [self._first_token_s((*prefix, 1, seed), ()) for seed in range(2, 2 + plan.repeats)]
        sets = [self.make_set(LAST, seed=seed) for seed in range(plan.num_prefix_sets)]
        edited = [self._first_token_s((*prefix, 1, 40 + i % 10), (one,)) for i, one in enumerate(sets)]
        found["base_hit_ms"], found["edited_ms"] = (digits(1e3 * median(one)) for one in (base, edited))
        found["over_base"] = digits(median(edited) / median(base))

    def run_job(self, sets: Sequence[tuple[FoldedSet, ...]], job: tuple[int, int], seed: int) -> float:
        """Seconds of requests that all start together, of `job` = (prompt tokens, new tokens) each."""
        generator = torch.Generator().manual_seed(seed)
        shape = (len(sets), job[0])
        prompts = torch.randint(1, self._plan.config["vocab_size"], shape, generator=generator).tolist()
        sampling = SamplingParams(max_tokens=job[1], temperature=0.0, ignore_eos=True)
        requests = [
            GenerationRequest(f"{seed}-{i}", tuple(prompt), sampling, one)
            for i, (prompt, one) in enumerate(zip(prompts, sets, strict=True))
        ]
        return self._serve(requests)

    def make_set(self, positions: str, seed: int) -> FoldedSet:
        """A set on the device."""
        plan = self._plan
        return random_set(plan.num_layers, plan.width, positions, seed, device=plan.device)

    @property
    def _job(self) -> tuple[int, int]:
        return self._plan.num_prompt_tokens, self._plan.num_new_tokens

    @property
    def _num_replays(self) -> int:
        """Of decode graphs; 0 on a model path that has none."""
        return getattr(self.engine._model, "num_replays", 0)

    def _decode_s(self, batch_size: int, context: int, positions: str | None) -> float:
        """Median seconds of a step, the choice and the reading of its tokens included."""
        self._steps_s()  # what a section that was cut has left
        num_steps = self._plan.num_warm_ups + self._plan.repeats
        prompt_length = max(context - num_steps // 2, 2)  # the context is `context` halfway
        for seed in range(batch_size):
            sequence = self._sequence(prompt_length, 1 + num_steps, positions, seed)
            sequence.token_ids.append(1)  # the first one that was generated
            sequence.num_computed_tokens = prompt_length
            sequence.slot = self.engine._kv_cache.allocate(prompt_length + num_steps + 1)
            if sequence.slot is None:
                raise MemoryError(f"no room for {batch_size} sequences of {context} tokens")
            sequence.has_run = True
            scheduler = self.engine._scheduler
            scheduler.waiting.enter(sequence)
            scheduler.waiting.admit(sequence)
            scheduler.running.append(sequence)
        seconds = self._steps_s()
        if not num_steps <= len(seconds) <= num_steps + 1:  # the last tokens may be read in a step of their own
            raise RuntimeError(f"{len(seconds)} steps for {num_steps} tokens: rows have failed or were preempted")
        return median(seconds[self._plan.num_warm_ups : num_steps])

    def _prefill_s(self, num_tokens: int, positions: str | None) -> float:
        """Median seconds of all steps of one prompt."""
        self._steps_s()  # what a section that was cut has left
        seconds = []
        for turn in range(self._plan.num_warm_ups + self._plan.repeats):
            self.engine._scheduler.add(self._sequence(num_tokens, 1, positions, seed=0))
            taken = sum(self._steps_s())
            if turn >= self._plan.num_warm_ups:
                seconds.append(taken)
        return median(seconds)

    def _steps_s(self) -> list[float]:
        """Step until nothing is left to do; seconds of each step."""
        seconds = []
        has_worked = True
        while has_worked:
            started = time.perf_counter()
            has_worked = self.engine.step()
            seconds.append(time.perf_counter() - started)
        synchronize(self._plan)
        return seconds[:-1]

    def _sequence(self, prompt_length: int, num_new: int, positions: str | None, seed: int) -> EngineSequence:
        """A request that nobody else's blocks serve, for a step by hand."""
        self._num_sequences += 1
        vocab_size = self._plan.config["vocab_size"]
        prompt = tuple(one % vocab_size for one in range(1, prompt_length + 1))
        sampling = SamplingParams(max_tokens=num_new, temperature=0.0, ignore_eos=True)
        sets = () if positions is None else (self.make_set(positions, seed),)
        salt = str(self._num_sequences)
        request = GenerationRequest("benchmark", prompt, sampling, sets, cache_salt=salt)
        return EngineSequence(request, NullStream(), self._plan.num_layers)

    def _first_token_s(self, prompt: tuple[int, ...], sets: tuple[FoldedSet, ...]) -> float:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        return self._serve([GenerationRequest("prefix", prompt, sampling, sets)])

    def _serve(self, requests: Sequence[GenerationRequest]) -> float:
        if not self._is_started:
            self.engine.start()
            self._is_started = True

        async def read(request: GenerationRequest) -> None:
            async for _ in self.engine.submit(request):
                pass

        async def read_all() -> float:
            started = time.perf_counter()
            await asyncio.gather(*(read(one) for one in requests))
            return time.perf_counter() - started

        return asyncio.run(read_all())
