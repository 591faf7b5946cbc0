"""A service over a tiny base model in a folder, which real training processes load; only the engine is a fake."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from reft_client.types import FineTuningJobRequest
from reft_interventions import BaseModelSpec, FileLimits, base_model_spec
from reft_interventions.store import InterventionStore
from reft_server.engine.pool import InterventionPool
from reft_server.fine_tuning.records import FileRecord, JobRecord
from reft_server.fine_tuning.runner import TrainingBase
from reft_server.fine_tuning.service import FineTuning
from reft_server.fine_tuning.settings import FineTuningSettings
from reft_server.registry import Registry
from tests.fakes.tokenizers import byte_level_tokenizer
from tests.self_test_engine import SelfTestEngine

ROWS = tuple({"prompt": f"{letter} is", "completion": f" {letter * 2}"} for letter in "abcdefghijkl")
QUICK = {"layers": "1", "positions": "l1", "low_rank_dimension": 2, "epochs": 2, "batch_size": 4}


@dataclass(frozen=True)
class Lab:
    """Makes services over one folder and one store, as one server after another."""

    vocab_size = len(byte_level_tokenizer())
    root: Path
    base: TrainingBase
    spec: BaseModelSpec
    engine: SelfTestEngine = field(default_factory=SelfTestEngine)

    def service(self, **settings: Any) -> tuple[FineTuning, Registry]:
        """A service that has not started, and the registry that it stores in."""
        store = InterventionStore(self.root / "store")
        registry = Registry(store, InterventionPool(1 << 20), self.engine, self.spec, FileLimits())
        chosen = replace(FineTuningSettings(niceness=0, checkpoint_steps=2), **settings)
        return FineTuning(self.root / "tuning", chosen, self.base, registry), registry

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncGenerator[tuple[FineTuning, Registry]]:
        """A service from its start to its end."""
        tuning, registry = self.service(**settings)
        await tuning.start()
        try:
            yield tuning, registry
        finally:
            await tuning.close()
            await registry.close()


async def upload(tuning: FineTuning, rows: Any = ROWS, name: str = "rows.jsonl") -> FileRecord:
    """Keep rows, or bytes, as a file."""
    path = tuning.files.new_upload_path()
    path.write_bytes(rows if isinstance(rows, bytes) else "".join(json.dumps(row) + "\n" for row in rows).encode())
    return await tuning.files.add(path, name)


def job_request(file: FileRecord, options: dict[str, Any] | None = None, **fields: Any) -> FineTuningJobRequest:
    """A small job on `file`."""
    method = {"type": "reft", "reft": {"name": "echo", "hyperparameters": QUICK | (options or {})}}
    return FineTuningJobRequest.model_validate({"model": "base", "training_file": file.id, "method": method} | fields)


async def until(condition: Callable[[], bool], timeout_s: float = 240.0) -> None:
    """Wait until `condition` holds."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


async def reached(tuning: FineTuning, job_id: str, condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; a job that ends before fails the test at once."""
    await until(lambda: condition() or tuning.jobs.get(job_id).has_ended)
    assert condition(), f"the job ended: {tuning.jobs.get(job_id)}"


async def ended(tuning: FineTuning, job_id: str) -> JobRecord:
    """The record of a job, once it has ended."""
    await until(lambda: tuning.jobs.get(job_id).has_ended)
    return tuning.jobs.get(job_id)


@pytest.fixture(scope="session")
def tiny_base(tiny_model: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory) -> TrainingBase:
    """A Llama of four layers and its tokenizer, saved once."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    tokenizer = byte_level_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    spec = base_model_spec(model, "acme/tiny")
    return TrainingBase(folder, spec.model_id, spec.fingerprint, spec.num_layers)


@pytest.fixture
def lab(tiny_base: TrainingBase, tmp_path: Path) -> Lab:
    spec = BaseModelSpec(tiny_base.model_id, tiny_base.fingerprint, 32, tiny_base.num_layers)
    return Lab(tmp_path, tiny_base, spec)


def run(scenario: Awaitable[None]) -> None:
    """Run a test's coroutine."""

    async def awaited() -> None:
        await scenario

    asyncio.run(awaited())
