"""`reft bench` against the real server: exact prompts, the examples' interventions, and every answer verified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_client import ReftClient
from reft_client.cli import main
from tests.e2e.conftest import Server

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = ("shout", "spam")
NUM_REQUESTS = 24


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_bench_verifies_the_real_server(
    server: Server, endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "run.json"
    with ReftClient(server.url) as client:
        for name in NAMES:
            client.interventions.upload(EXAMPLES / name / f"{name}.safetensors", f"bench-{name}")
    code = main(
        (
            *("bench", "--url", server.url, "--endpoint", endpoint, "--concurrency", "6", "--tenants", "2"),
            *("--requests", str(NUM_REQUESTS), "--distinct-prompts", "3", "--prompt-tokens", "uniform:48:64"),
            *("--max-tokens", "6", "--interventions", ",".join(f"bench-{name}" for name in NAMES), "--mix", "skewed"),
            *("--shared-prefix", "16", "--verify", "--save", str(saved)),
        )
    )
    document = json.loads(saved.read_text())
    assert code == 0, capsys.readouterr().out
    assert document["verification"]["num_compared"] == NUM_REQUESTS
    assert document["summary"]["output_tokens"] == 6 * NUM_REQUESTS
    assert document["summary"]["cached_tokens"] > 0
    assert document["summary"]["queue_s"]["count"] == NUM_REQUESTS
    assert set(document["interventions"]) <= {"(base model)", "bench-shout", "bench-spam"}
    assert len(document["interventions"]) > 1
    assert len(document["tenants"]) == 2
    assert all(64 <= count <= 80 for count in document["requests"]["prompt_tokens"])
    assert len(set(document["requests"]["prompt_tokens"])) > 1
