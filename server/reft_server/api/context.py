"""What every route needs, built once per app."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends
from starlette.requests import Request
from starlette.types import Scope

from reft_server.engine.types import Engine
from reft_server.errors import FineTuningDisabledError, ReftError
from reft_server.fine_tuning.service import FineTuning
from reft_server.grammars import GrammarCompiler
from reft_server.metrics import Metrics
from reft_server.registry import Registry
from reft_server.reload import Reloaded
from reft_server.request_context import note
from reft_server.routing.book import RouteBook
from reft_server.routing.shadow_slots import ShadowSlots
from reft_server.sources import SourceCache
from reft_server.tenants import TenantDirectory
from reft_server.tenants.idempotency import IdempotencyKeys
from reft_server.tenants.meters import Meters
from reft_server.tenants.set_book import SetBook

from .lifecycle import Lifecycle
from .model_names import ModelNames
from .settings import ApiSettings
from .tokenization import Tokenization


class LiveSettings:
    """The API's settings now: `current` is replaced as a whole when they are reloaded."""

    def __init__(self, settings: ApiSettings) -> None:
        self.current = settings


@dataclass(frozen=True)
class ApiContext:
    """The app's parts. `started_at` is Unix time in seconds; `tuning` is None where it is switched off.

    `reload` reads the server's settings again.
    """

    engine: Engine
    tokenization: Tokenization
    grammars: GrammarCompiler
    registry: Registry
    sources: SourceCache
    live_settings: LiveSettings
    metrics: Metrics
    model_names: ModelNames
    lifecycle: Lifecycle
    directory: TenantDirectory
    sets: SetBook
    idempotency: IdempotencyKeys
    meters: Meters
    routes: RouteBook
    shadows: ShadowSlots
    started_at: int
    reload: Callable[[], Awaitable[Reloaded]]
    tuning: FineTuning | None = None

    @property
    def settings(self) -> ApiSettings:
        """The settings now; they may be others at the next look."""
        return self.live_settings.current


async def get_context(request: Request) -> ApiContext:
    """The context of the app that serves `request`. FastAPI would call what is not `async` in another thread."""
    return _context(request.scope)


async def get_tuning(request: Request) -> FineTuning:
    """The fine-tuning of the app that serves `request`.

    Raises:
        FineTuningDisabledError: it has none.
    """
    tuning = _context(request.scope).tuning
    if tuning is None:
        raise FineTuningDisabledError(
            "This server was started without fine-tuning; train with reft-train, and upload the set"
        )
    return tuning


def count_error(scope: Scope, error: ReftError) -> None:
    """Count a failed request, wherever on its way it failed."""
    _context(scope).metrics.count_error(error.code)
    note(error=error.code)


def _context(scope: Scope) -> ApiContext:
    context = scope["app"].state.context
    if not isinstance(context, ApiContext):
        raise TypeError("the app was not made by create_app")
    return context


Context = Annotated[ApiContext, Depends(get_context)]
Tuning = Annotated[FineTuning, Depends(get_tuning)]
