"""An app around the fake engine, a small real tokenizer, and a real registry in a temporary folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerFast

from reft_interventions import FileLimits
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.api.authentication import OpenTo
from reft_server.api.settings import ApiSettings
from reft_server.engine.pool import InterventionPool
from reft_server.fine_tuning.service import FineTuning
from reft_server.registry import Registry
from reft_server.tenants import TenantDirectory
from reft_server.tracing import Tracing
from tests.fakes.engine import FakeEngine
from tests.fakes.tokenizers import byte_level_tokenizer
from tests.intervention_sets import BASE

MakeClient = Callable[..., TestClient]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level_tokenizer()


@pytest.fixture
def engine(tokenizer: PreTrainedTokenizerFast) -> FakeEngine:
    return FakeEngine(vocab_size=len(tokenizer))


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: writing an index durably takes longer than a whole test."""
    folder = tmp_path_factory.mktemp("store") / "empty"
    InterventionStore(folder).close()
    return folder


@pytest.fixture
def store_folder(tmp_path: Path, empty_store: Path) -> Path:
    return shutil.copytree(empty_store, tmp_path / "store")


@pytest.fixture
def make_client(engine: FakeEngine, tokenizer: PreTrainedTokenizerFast, store_folder: Path) -> Iterator[MakeClient]:
    """`make_client(tokenizer=..., directory=..., **settings)`: a client of a started app; a second call, a second app.

    Without `directory` there are no tenants and no keys.
    """
    with ExitStack() as stack:

        def make(
            tokenizer: PreTrainedTokenizerFast = tokenizer,
            directory: TenantDirectory | None = None,
            open_to: OpenTo = "everybody",
            make_tuning: Callable[[Registry], FineTuning] | None = None,
            tracing: Tracing | None = None,
            retention_s: float = 0.0,
            **settings: object,
        ) -> TestClient:
            directory = directory or TenantDirectory.in_memory()
            store, pool = InterventionStore(store_folder, retention_s), InterventionPool(1 << 20)
            registry = Registry(store, pool, engine, BASE, FileLimits(), directory=directory)
            chosen = replace(ApiSettings(), **settings)
            tuning = None if make_tuning is None else make_tuning(registry)
            app = create_app(engine, tokenizer, registry, chosen, tuning, directory, open_to=open_to, tracing=tracing)
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()
