"""The GPU benchmark runs from end to end with a tiny model, so that it can't rot between two GPUs."""

from __future__ import annotations

import pytest

from benchmarks.gpu import dry_plan, run


@pytest.mark.slow
def test_every_section_of_the_gpu_benchmark_runs() -> None:
    result = run(dry_plan())
    assert max(result["exactness"].values()) <= 1e-4
    for name in ("decode_ms", "prefill", "activation_ms", "throughput", "shared_prefix"):
        assert "failed" not in result[name], result[name]
    assert [cell["batch"] for cell in result["decode_ms"]] == [2]
    assert result["prefill"]["all"] > 0
    assert set(result["throughput"]) == {"base_tokens_per_s", "f7+l7 x 2 over base", "all x 2 over base"}
