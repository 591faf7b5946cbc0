"""What comes before the figures: the GPU's ceilings, and whether the path is exact."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.gpu.inputs import attention_shape, digits, random_model, random_set, settings, timed
from benchmarks.gpu.plan import Plan
from reft_server.engine import GenerationRequest, LocalEngine, SamplingParams, build_engine
from reft_server.engine.cuda.attention import AttentionUnavailableError, TritonAttention
from reft_server.engine.cuda.attention_probe import check_attention
from reft_server.engine.device_pool import DevicePool
from reft_server.engine.single import run_alone
from reft_server.errors import EngineStepError

_TOLERANCE = 1e-4


def ceilings(plan: Plan, found: dict[str, Any]) -> None:
    """Best copy bandwidth (bytes read and written) and that from pinned memory, GB/s, and bf16 products, TFLOP/s."""
    size, side = ((4 << 30), 8192) if plan.is_on_gpu else (1 << 16, 32)
    source = torch.empty(size, dtype=torch.uint8, device=plan.device)
    target = torch.empty_like(source)
    host = torch.empty(size // 16, dtype=torch.uint8, pin_memory=plan.is_on_gpu)
    left = torch.randn(side, side, dtype=torch.bfloat16, device=plan.device)
    found["copy_gb_per_s"] = digits(2 * size / min(timed(plan, lambda: target.copy_(source))) / 1e9)
    seconds = min(timed(plan, lambda: target[: len(host)].copy_(host, non_blocking=True)))
    found["from_host_gb_per_s"] = digits(host.nbytes / seconds / 1e9)
    found["bf16_tflops"] = digits(2 * side**3 / min(timed(plan, lambda: left @ left)) / 1e12)


def exactness(plan: Plan, found: dict[str, Any]) -> None:
    """Largest difference of logits to the float32 reference on the CPU, over a row's spread, in chunks and by token.

    Where one is too large, each chunk's is found too, and the largest one of torch's kernels on the same device: those
    of a right device are small, and what is wrong is a kernel of ours (`tests/unit/server/engine/cuda` then runs on
    the GPU, kernel by kernel).

    Raises:
        RuntimeError: what is not exact: logits, our attention in the plan's own shape and dtype, the engine's answers
            to requests that run together, or a set's copy on the device.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    wrong = []
    shape = attention_shape(plan)
    try:
        check_attention(TritonAttention(shape), shape, plan.dtype, plan.device)
    except AttentionUnavailableError as error:
        wrong.append(f"attention of the large model: {error}")
    sizes = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 256}
    config = {**plan.config, **sizes, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    model = random_model(config, torch.float32, torch.device("cpu"))
    reference = _small_engine(plan, copy.deepcopy(model), "torch")
    served = _small_engine(plan, copy.deepcopy(model).to(plan.device), "triton")
    for name, positions in (("base", None), ("prompt only", "f3+l2"), ("all", "all")):
        expected = _logits(plan, reference, positions)
        differences = _differences(_logits(plan, served, positions), expected)
        found[name] = max(differences)
        if not found[name] <= _TOLERANCE:  # NaN fails too
            plain = _small_engine(plan, copy.deepcopy(model).to(plan.device), "torch")
            found[f"{name} by chunk"] = [digits(one) for one in differences]
            found[f"{name} by torch"] = max(_differences(_logits(plan, plain, positions), expected))
            wrong.append(f"logits, {name}: {found[name]:.1e} of their spread")
    found["wrong answers"] = asyncio.run(num_wrong_answers(plan, reference, served))
    found["wrong copies"] = asyncio.run(_num_wrong_copies(plan))
    wrong += [f"{found[name]} {name}" for name in ("wrong answers", "wrong copies") if found[name]]
    if wrong:
        raise RuntimeError(f"the GPU path is not exact: {'; '.join(wrong)}")


def _small_engine(plan: Plan, model: PreTrainedModel, kernels: str) -> LocalEngine:
    small = {"kv_cache_bytes": 1 << 24, "prefix_cache_bytes": 1 << 24, "max_num_seqs": plan.num_exactness_requests}
    return build_engine(model, "exactness", settings(plan, kernels=kernels, **small))


def _logits(plan: Plan, engine: LocalEngine, positions: str | None) -> Tensor:
    """Of one prompt and its tokens, `[num_chunks, vocab_size]`, on the CPU."""
    model, chunks = engine._model, plan.exactness_chunks
    sets = () if positions is None else (random_set(2, 64, positions, seed=1, strength=0.5),)
    placed = tuple(one.to(model.kv_layout.device) for one in sets)
    token_ids = [(31 * i + 7) % 256 for i in range(sum(chunks))]
    rows = run_alone(model, token_ids, prompt_length=sum(chunks[:2]), interventions=placed, chunk_sizes=chunks)
    return rows.float().cpu()


def _differences(logits: Tensor, expected: Tensor) -> list[float]:
    """The largest of each chunk, over the spread of its row; infinity where something is not a number."""
    spread = expected.amax(-1) - expected.amin(-1)
    found = (logits - expected).abs().amax(-1) / spread
    return [float(one) for one in found.nan_to_num(nan=float("inf"), posinf=float("inf"))]


async def num_wrong_answers(plan: Plan, reference: LocalEngine, served: LocalEngine) -> int:
    """Of requests that decode together, greedy and drawn, base and edited: whose tokens differ from those alone."""
    tokens: list[list[tuple[int | None, ...]]] = []
    for engine in (reference, served):
        device = engine._model.kv_layout.device
        requests = [_request(i, plan.num_exactness_tokens, device) for i in range(plan.num_exactness_requests)]
        engine.start()
        if engine is reference:
            tokens.append([await _tokens(engine, one) for one in requests])
        else:
            tokens.append(await asyncio.gather(*(_tokens(engine, one) for one in requests)))
        await engine.stop()
    return sum(alone != together for alone, together in zip(*tokens, strict=True))


def _request(number: int, num_tokens: int, device: torch.device) -> GenerationRequest:
    """Every other one is drawn: from few tokens, or few times.

    Where two spans of probability meet, rounding decides what is drawn, and that differs between devices; with all
    tokens to draw from at every step, by estimate one run in twenty would fail by chance.
    """
    prompt = tuple((13 * i + 5 * number + 1) % 256 for i in range(5 + number))
    draws_from_all = number == 1
    sampling = SamplingParams(
        max_tokens=min(8, num_tokens) if draws_from_all else num_tokens + number,
        temperature=0.8 * (number % 2),
        top_k=0 if draws_from_all else 4,
        seed=number,
        ignore_eos=True,
    )
    positions = (None, "f3+l2", "all")[number % 3]
    sets = () if positions is None else (random_set(2, 64, positions, seed=number, strength=0.5).to(device),)
    return GenerationRequest(f"exactness-{number}", prompt, sampling, sets)


async def _tokens(engine: LocalEngine, request: GenerationRequest) -> tuple[int | None, ...]:
    """None where the request fails."""
    try:
        return tuple([output.token_id async for outputs in engine.submit(request) for output in outputs])
    except EngineStepError:
        return ()


async def _num_wrong_copies(plan: Plan) -> int:
    """Sets that a kernel behind a long one saw changed, because the next set was copied into their memory."""
    host = [random_set(plan.num_layers, plan.width, "all", seed).packed() for seed in range(4)]
    pool = DevicePool(plan.device, 2 * host[0].num_bytes, max_wait_s=10.0)
    side = 8192 if plan.is_on_gpu else 8
    busy = torch.zeros(side, side, dtype=plan.dtype, device=plan.device)
    seen = []
    for turn in range(plan.num_churned_sets):
        [placed] = await pool.place([host[turn % len(host)]])
        assert placed.buffer is not None  # what the pool places is packed
        busy @ busy
        seen.append(placed.buffer.clone())  # behind the product, while the next sets are copied already
        del placed
    expected = [one.buffer for one in host]
    return sum(not torch.equal(one.cpu(), expected[turn % len(host)]) for turn, one in enumerate(seen))
