"""`/health`, `/ready`, `/version`, `/metrics`."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from reft_client.types import HealthStatus, VersionInfo
from reft_server.errors import EngineDeadError

from ..authentication import NEEDS_METRICS
from ..context import Context
from ..openapi import ERROR

router = APIRouter(tags=["operations"])


@router.get(
    "/health",
    summary="The process is alive",
    responses={503: {**ERROR, "description": "The model has not run for a minute: only another process may help."}},
)
async def health(context: Context) -> HealthStatus:
    """Whether to keep the process: 200 while it answers and may recover; `/ready` says whether it takes requests."""
    if context.engine.is_broken:
        raise EngineDeadError("The model does not run any more; the server's log says why. Restart the server")
    return HealthStatus(status="ok")


@router.get(
    "/ready",
    summary="The engine takes requests",
    responses={
        503: {
            **ERROR,
            "description": "The engine is starting, restarting, hanging or stopped, or the server shuts down.",
        }
    },
)
async def ready(context: Context) -> HealthStatus:
    """For load balancers: 200 while a new request would be taken. Red before the start, while the engine restarts or
    hangs in a step, from the first signal to stop on, and after the engine's end.
    """
    context.lifecycle.check()
    if not context.engine.is_ready:
        raise EngineDeadError("The engine is not ready; try again soon")
    return HealthStatus(status="ready")


@router.get("/version", summary="The server's version")
async def server_version() -> VersionInfo:
    """The installed version of reft-serve."""
    return VersionInfo(version=version("reft-serve"))


@router.get("/metrics", summary="Prometheus metrics", response_class=Response, dependencies=[NEEDS_METRICS])
async def metrics(context: Context) -> Response:
    """Names as vLLM's, with the prefix `reft:`."""
    return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)
