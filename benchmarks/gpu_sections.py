"""The sections of `benchmarks.gpu`: ceilings, exactness, and the figures of one served model."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks.gpu import Plan
from benchmarks.machine import median
from reft_interventions.folded import FoldedIntervention, FoldedSet
from reft_interventions.folding import LowRankEdit
from reft_interventions.positions import InterventionPositions
from reft_server.engine import EngineSettings, GenerationRequest, LocalEngine, SamplingParams, build_engine
from reft_server.engine.batch import build_batch
from reft_server.engine.device_pool import DevicePool
from reft_server.engine.edit_plan import EditPlanner
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence as EngineSequence
from reft_server.engine.single import Model, run_alone
from reft_server.engine.stream import NullStream

_RANK = 4
_TOLERANCE = 1e-4
PROMPT_ONLY, EVERYWHERE, LAST = "f7+l7", "all", "l1"


def ceilings(plan: Plan) -> dict[str, float]:
    """Best copy bandwidth (bytes read and written), GB/s, and best bf16 product rate, TFLOP/s."""
    size, side = ((4 << 30), 8192) if plan.device.type == "cuda" else (1 << 16, 32)
    source = torch.empty(size, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    left = torch.randn(side, side, dtype=torch.bfloat16, device=plan.device)
    copy_s = min(timed(plan, lambda: target.copy_(source)))
    product_s = min(timed(plan, lambda: left @ left))
    return {
        "copy_gb_per_s": round(2 * size / copy_s / 1e9, 1),
        "bf16_tflops": round(2 * side**3 / product_s / 1e12, 1),
    }


def exactness(plan: Plan) -> dict[str, float]:
    """Largest difference of logits to the float32 reference on the CPU, over a row's spread, in chunks and by token.

    Raises:
        RuntimeError: it is above the tolerance.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 256}
    config = {**plan.config, **sizes, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    reference = random_model(config, torch.float32, torch.device("cpu"))
    served = copy.deepcopy(reference).to(plan.device)
    engines = [
        build_engine(one, "exactness", settings(plan, kernels=kernels, model_path="packed", kv_cache_bytes=1 << 24))
        for one, kernels in ((reference, "torch"), (served, "triton"))
    ]
    chunks = plan.exactness_chunks
    token_ids = [(31 * i + 7) % 256 for i in range(sum(chunks))]
    found: dict[str, float] = {}
    for name, positions in (("base", None), ("prompt only", "f3+l2"), ("all", "all")):
        sets = () if positions is None else (random_set(2, 64, positions, seed=1, strength=0.5),)
        logits = []
        for engine in engines:
            model = model_of(engine)
            placed = tuple(one.to(model.kv_layout.device) for one in sets)
            rows = run_alone(model, token_ids, prompt_length=sum(chunks[:2]), interventions=placed, chunk_sizes=chunks)
            logits.append(rows.float().cpu())
        spread = logits[0].amax(-1) - logits[0].amin(-1)
        found[name] = float(((logits[0] - logits[1]).abs().amax(-1) / spread).max())
    if not max(found.values()) <= _TOLERANCE:
        raise RuntimeError(f"the GPU path is not exact, so nothing is measured: {found}")
    return found


class Serving:
    """One model on the device, and the figures of it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        model = random_model(plan.config, plan.dtype, plan.device)
        self._num_weight_bytes = sum(one.nbytes for name, one in model.named_parameters() if "embed" not in name)
        self._engine = build_engine(model, "benchmark", settings(plan))
        del model
        self._model = model_of(self._engine)
        self._layout = self._model.kv_layout
        self._is_started = False
        self._width: int = plan.config["hidden_size"]

    def stop(self) -> None:
        """End the engine's thread."""
        if self._is_started:
            asyncio.run(self._engine.stop())

    def decode(self) -> list[dict[str, Any]]:
        """Milliseconds of a decode step with greedy tokens read back, base and with a set of each row's own."""
        found = []
        for context in self._plan.contexts:
            for batch_size in self._plan.batch_sizes:
                cell: dict[str, Any] = {"batch": batch_size, "context": context}
                for name, positions in (("base", None), (EVERYWHERE, EVERYWHERE)):
                    cell[name] = round(1000 * self._decode_s(batch_size, context, positions), 3)
                kv_bytes = batch_size * context * self._layout.bytes_per_token
                cell["read_bytes"] = self._num_weight_bytes + kv_bytes
                found.append(cell)
        return found

    def prefill(self) -> dict[str, float]:
        """Tokens/s of one prompt, base and edited at all positions."""
        num_tokens = self._plan.num_prefill_tokens
        found: dict[str, float] = {"num_tokens": num_tokens}
        for name, positions in (("base", None), (PROMPT_ONLY, PROMPT_ONLY), (EVERYWHERE, EVERYWHERE)):
            sequences = self._sequences(1, num_tokens, positions)
            seconds = self._step_s(sequences, 0)
            found[name] = round(num_tokens / seconds, 1)
            self._free(sequences)
        return found

    def activation(self) -> dict[str, float]:
        """Milliseconds until a set in host memory is on the device."""
        one = self._set(PROMPT_ONLY, seed=0)

        async def place() -> float:
            pool = DevicePool(self._plan.device, one.num_bytes, max_wait_s=1.0)
            started = time.perf_counter()
            await pool.place([one])
            synchronize(self._plan)
            return time.perf_counter() - started

        seconds = [asyncio.run(place()) for _ in range(max(self._plan.repeats, 3))]
        return {"from_host": round(1000 * median(seconds), 3), "set_bytes": one.num_bytes}

    def throughput(self) -> dict[str, float]:
        """Output tokens/s of concurrent requests: the base, then distinct sets over the base of the same run."""
        plan = self._plan
        if plan.num_warm_ups:
            self._run_all([()] * plan.num_concurrent, seed=0)  # graphs are captured
        found: dict[str, float] = {}
        mixes = [(PROMPT_ONLY, number) for number in plan.num_distinct]
        mixes += [(EVERYWHERE, number) for number in plan.num_distinct_everywhere]
        num_tokens = plan.num_concurrent * plan.num_new_tokens
        for turn, (positions, number) in enumerate(mixes):
            sets = [self._set(positions, seed=seed).to(plan.device) for seed in range(number)]
            num_requests = max(plan.num_concurrent, number)
            base_s = self._run_all([()] * num_requests, seed=2 * turn + 1)
            mixed_s = self._run_all([(sets[i % number],) for i in range(num_requests)], seed=2 * turn + 2)
            found["base_tokens_per_s"] = round(num_tokens / plan.num_concurrent * num_requests / base_s, 1)
            found[f"{positions} x {number} over base"] = round(base_s / mixed_s, 4)
        return found

    def shared_prefix(self) -> dict[str, float]:
        """Seconds to the first token behind a cached prefix: the base model, and sets that edit the last token."""
        plan = self._plan
        prefix = tuple((17 * i + 3) % plan.config["vocab_size"] for i in range(plan.prefix_tokens))
        self._first_token_s(prefix, ())
        base = [self._first_token_s((*prefix, 1, seed), ()) for seed in range(2, 2 + plan.repeats)]
        sets = [self._set(LAST, seed=seed).to(plan.device) for seed in range(plan.num_prefix_sets)]
        edited = [self._first_token_s((*prefix, 1, 40 + i % 10), (one,)) for i, one in enumerate(sets)]
        return {"base_hit_s": median(base), "edited_s": median(edited), "over_base": median(edited) / median(base)}

    def _decode_s(self, batch_size: int, context: int, positions: str | None) -> float:
        sequences = self._sequences(batch_size, context, positions)
        seconds = self._step_s(sequences, context - 1)
        self._free(sequences)
        return seconds

    def _step_s(self, sequences: list[EngineSequence], start: int) -> float:
        """Median seconds of a step from `start` on, the building of its batch and the reading of its tokens included.

        K and V hold whatever they hold: speed does not depend on it.
        """
        planner = EditPlanner.for_layout(self._layout)
        chunks = [ScheduledChunk(one, start, len(one.token_ids) - start) for one in sequences]

        def step() -> None:
            batch = build_batch(chunks, self._layout.device, planner)
            self._model.forward(batch).argmax(-1).tolist()

        return median(timed(self._plan, step))

    def _sequences(self, number: int, num_tokens: int, positions: str | None) -> list[EngineSequence]:
        cache = self._engine._kv_cache  # the memory that the graphs read
        made = []
        for seed in range(number):
            sets = () if positions is None else (self._set(positions, seed=seed).to(self._plan.device),)
            # A prompt of one token less: the last one is a generated one.
            prompt = tuple(range(1, max(num_tokens, 2)))
            vocab_size = self._plan.config["vocab_size"]
            prompt = tuple(one % vocab_size for one in prompt)
            request = GenerationRequest("benchmark", prompt, SamplingParams(max_tokens=8, temperature=0.0), sets)
            sequence = EngineSequence(request, NullStream(), len(self._layout.layers))
            sequence.token_ids.append(1)
            sequence.slot = cache.allocate(num_tokens + 1)
            if sequence.slot is None:
                raise MemoryError(f"no room for {number} sequences of {num_tokens} tokens")
            made.append(sequence)
        return made

    def _free(self, sequences: list[EngineSequence]) -> None:
        for one in sequences:
            assert one.slot is not None  # given above
            self._engine._kv_cache.free(one.slot)

    def _run_all(self, sets: Sequence[tuple[FoldedSet, ...]], seed: int) -> float:
        """Seconds of requests that all start together."""
        plan = self._plan
        generator = torch.Generator().manual_seed(seed)
        shape = (len(sets), plan.num_prompt_tokens)
        prompts = torch.randint(1, plan.config["vocab_size"], shape, generator=generator).tolist()
        sampling = SamplingParams(max_tokens=plan.num_new_tokens, temperature=0.0, ignore_eos=True)
        requests = [
            GenerationRequest(f"{seed}-{i}", tuple(prompt), sampling, one)
            for i, (prompt, one) in enumerate(zip(prompts, sets, strict=True))
        ]
        return self._serve(requests)

    def _first_token_s(self, prompt: tuple[int, ...], sets: tuple[FoldedSet, ...]) -> float:
        sampling = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True)
        return self._serve([GenerationRequest("prefix", prompt, sampling, sets)])

    def _serve(self, requests: Sequence[GenerationRequest]) -> float:
        if not self._is_started:
            self._engine.start()
            self._is_started = True

        async def read(request: GenerationRequest) -> None:
            async for _ in self._engine.submit(request):
                pass

        async def read_all() -> float:
            started = time.perf_counter()
            await asyncio.gather(*(read(one) for one in requests))
            return time.perf_counter() - started

        return asyncio.run(read_all())

    def _set(self, positions: str, seed: int) -> FoldedSet:
        return random_set(len(self._layout.layers), self._width, positions, seed)


def settings(plan: Plan, **changes: Any) -> EngineSettings:
    """Triton's kernels, and room for what the plan runs at once."""
    values: dict[str, Any] = {
        "kernels": "triton",
        "model_path": "packed",
        "max_num_seqs": max(plan.num_concurrent, *plan.batch_sizes),
        "max_num_batched_tokens": max(plan.num_prefill_tokens, 16),
        "kv_cache_bytes": plan.kv_bytes,
        "prefix_cache_bytes": plan.kv_bytes // 4,
        "max_queue_len": 4096,
    }
    return EngineSettings(**{**values, **changes})


def model_of(engine: LocalEngine) -> Model:
    """The model path that an engine steps, to time it without the engine."""
    return engine._model


def random_model(config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A Llama with random weights, made on the device."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **config), dtype=dtype)
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def random_set(num_layers: int, width: int, positions: str, seed: int, strength: float = 0.01) -> FoldedSet:
    """A folded low-rank set on `block_output` of every layer."""
    generator = torch.Generator().manual_seed(seed)
    interventions = []
    for layer in range(num_layers):
        down, up = torch.randn(2, _RANK, width, generator=generator) / width**0.5
        edit = LowRankEdit(down, torch.randn(_RANK, generator=generator), up * strength)
        interventions.append(FoldedIntervention(layer, "block_output", InterventionPositions(positions), edit))
    return FoldedSet(f"random-{positions}-{seed}", tuple(interventions))


def timed(plan: Plan, function: Callable[[], object]) -> list[float]:
    """Seconds of each of the plan's repeats, after those that don't count."""
    seconds = []
    for turn in range(plan.num_warm_ups + plan.repeats):
        synchronize(plan)
        started = time.perf_counter()
        function()
        synchronize(plan)
        if turn >= plan.num_warm_ups:
            seconds.append(time.perf_counter() - started)
    return seconds


def synchronize(plan: Plan) -> None:
    """Wait for the device."""
    if plan.device.type == "cuda":
        torch.cuda.synchronize()
