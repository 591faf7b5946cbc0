"""Engines over tiny models, running for the length of a test module."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator

import pytest
from transformers import PreTrainedModel

from reft_server.engine import EngineSettings, LocalEngine, build_engine


@pytest.fixture(scope="module")
def start_engine() -> Iterator[Callable[..., LocalEngine]]:
    """`start_engine(model, **settings)`: a running engine over a copy of the model, stopped when the module ends."""
    engines: dict[tuple[object, ...], LocalEngine] = {}

    def start(model: PreTrainedModel, **settings: object) -> LocalEngine:
        key = (id(model), *sorted(settings.items()))
        if key not in engines:
            options = EngineSettings(**{"kv_cache_bytes": 1 << 24, "max_model_len": 256, **settings})  # type: ignore[arg-type]
            engines[key] = build_engine(copy.deepcopy(model), "tiny", options)
            engines[key].start()
        return engines[key]

    yield start
    for engine in engines.values():
        asyncio.run(engine.stop())
        assert engine.stats().kv_cache_usage == 0
