"""The app factory: routes, handlers and middleware around an engine and a registry."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI
from transformers import PreTrainedTokenizerBase

from reft_server.engine.types import Engine
from reft_server.fine_tuning.service import FineTuning
from reft_server.grammars import GrammarCompiler
from reft_server.metrics import Metrics
from reft_server.registry import Registry
from reft_server.reload import Reloaded
from reft_server.routing.book import RouteBook
from reft_server.routing.shadow_slots import ShadowSlots
from reft_server.sources import SourceCache
from reft_server.tenants import TenantDirectory
from reft_server.tenants.idempotency import IdempotencyKeys
from reft_server.tenants.meters import Meters
from reft_server.tenants.set_book import SetBook

from .authentication import Authenticator, OpenTo
from .context import ApiContext, LiveSettings
from .handlers import install_handlers
from .lifecycle import Lifecycle
from .middleware import RequestMiddleware
from .model_names import ModelNames
from .openapi_document import install_document
from .routes import (
    admin,
    aliases,
    audit,
    cards,
    chat,
    completions,
    files,
    fine_tuning,
    grants,
    interventions,
    models,
    operations,
    routing,
    tokenize,
    trials,
    uploads,
)
from .settings import ApiSettings
from .tokenization import Tokenization

if TYPE_CHECKING:
    from reft_server.tracing import Tracing

ROUTE_MODULES = (
    completions,
    chat,
    models,
    uploads,
    interventions,
    aliases,
    cards,
    trials,
    grants,
    routing,
    files,
    fine_tuning,
    tokenize,
    admin,
    audit,
    operations,
)
"""Each has a `router`; the order is that of the OpenAPI document."""
_DESCRIPTION = """
OpenAI-compatible inference over one frozen base model. Every request may name ReFT interventions, which edit the
model's hidden states for this request alone; different ones share a batch. Errors are
`{"error": {"message", "type", "param", "code"}}` with a stable `code`.
"""


def create_app(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    registry: Registry,
    settings: ApiSettings,
    tuning: FineTuning | None = None,
    directory: TenantDirectory | None = None,
    *,
    open_to: OpenTo = "everybody",
    tracing: Tracing | None = None,
    reload: Callable[[], Awaitable[Reloaded]] | None = None,
) -> FastAPI:
    """Build the app. Its lifespan starts the engine and the jobs, and at the end stops them and closes the registry.

    Args:
        tuning: None = the routes of fine-tuning say that they are switched off.
        directory: of tenants and keys; None = an empty one.
        tracing: makes a span of every request; None = no traces.
        open_to: who is the operator while there are no keys.
        reload: reads the settings again; None = they never change.
    """
    directory = directory or TenantDirectory.in_memory()
    lifecycle = Lifecycle()
    context = ApiContext(
        engine=engine,
        tokenization=Tokenization(tokenizer),
        grammars=GrammarCompiler(
            tokenizer, engine.model_info.vocab_size, engine.model_info.eos_token_ids, settings.max_grammar_bytes
        ),
        registry=registry,
        sources=SourceCache(engine, settings.source_cache_bytes),
        live_settings=LiveSettings(settings),
        metrics=Metrics(
            engine.stats,
            lambda: registry.stats().pool,
            tuning.job_counts if tuning else dict,
            settings.max_intervention_labels,
            device_stats=registry.device_stats,
            resident=registry.resident,
            is_ready=lambda: engine.is_ready and not lifecycle.is_draining,
        ),
        model_names=ModelNames(engine.model_info.model_id, settings.served_model_name),
        lifecycle=lifecycle,
        directory=directory,
        sets=SetBook(directory, registry.lives),
        idempotency=IdempotencyKeys(directory),
        meters=Meters(directory),
        routes=RouteBook(directory),
        shadows=ShadowSlots(settings.max_shadow_requests),
        started_at=int(time.time()),
        reload=reload or _nothing_reloaded,
        tuning=tuning,
    )
    app = FastAPI(
        title="reft-serve",
        version=version("reft-serve"),
        description=_DESCRIPTION,
        lifespan=_lifespan,
        redirect_slashes=False,
    )
    app.state.context = context
    app.add_middleware(
        RequestMiddleware,
        settings=context.live_settings,
        lifecycle=context.lifecycle,
        authenticator=Authenticator(directory, open_to=open_to),
        meters=context.meters,
        upload_limit=partial(_upload_limit, context),
        tracing=tracing,
    )
    app.state.tracing = tracing
    install_handlers(app)
    install_document(app)
    for module in ROUTE_MODULES:
        app.include_router(module.router)
    return app


def _upload_limit(context: ApiContext, path: str) -> int | None:
    if path == "/v1/files" and context.tuning is not None:
        return context.tuning.settings.max_file_bytes
    return context.settings.max_upload_bytes if path == "/v1/interventions" else None


async def _nothing_reloaded() -> Reloaded:
    return Reloaded()


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
    context: ApiContext = app.state.context
    await asyncio.to_thread(context.directory.open)
    registry, directory = context.registry, context.directory
    chores = (directory.watch, directory.keep_audit_log_short, registry.purge_expired)
    watchers = [asyncio.create_task(chore()) for chore in chores]
    context.engine.start()
    if context.tuning is not None:
        await context.tuning.start()
    try:
        yield
    finally:
        if context.tuning is not None:
            await context.tuning.close()
        await context.shadows.close()
        await context.engine.stop()
        if app.state.tracing is not None:
            await asyncio.to_thread(app.state.tracing.close)
        context.grammars.close()
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await context.registry.close()
        await asyncio.to_thread(context.directory.close)
