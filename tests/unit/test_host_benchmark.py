"""`benchmarks.host` over the engine alone."""

from __future__ import annotations

import asyncio

from benchmarks.host import Job, make_engine, measure_engine


def test_steps_that_only_decode_are_measured() -> None:
    job = Job(num_requests=4, num_tokens=64, device_s=0.002, prompt="")
    engine = make_engine(job, list(range(10, 30)), vocab_size=100)
    costs = asyncio.run(measure_engine(engine, job, [1, 2, 3]))
    assert engine.stats().num_generated_tokens == 4 * 64
    assert 0 <= costs.num_tokens <= 4 * 64
    assert set(costs.figures()) == {"engine_ms_per_step", "loop_us_per_token", "wall_ms_per_step", "tokens_per_s"}
