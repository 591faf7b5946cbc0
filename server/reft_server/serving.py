"""The parts of a server put together, and the HTTP server around them."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import uvicorn
from fastapi import FastAPI
from starlette.types import Lifespan

from reft_interventions import BaseModelSpec
from reft_interventions.file_format import FileLimits
from reft_interventions.store import InterventionStore
from reft_server.api.app import create_app
from reft_server.api.authentication import OpenTo
from reft_server.api.context import ApiContext
from reft_server.api.lifecycle import Lifecycle
from reft_server.base_model import BaseModel, load_base_model
from reft_server.config import Settings
from reft_server.connections import ConnectionLimits, HttpConfig
from reft_server.engine import build_engine
from reft_server.engine.device_pool import DevicePool
from reft_server.engine.native import start_building
from reft_server.engine.pool import InterventionPool
from reft_server.engine.types import ModelInfo
from reft_server.errors import ConfigurationError, ReftError
from reft_server.fine_tuning.runner import TrainingBase
from reft_server.fine_tuning.service import FineTuning
from reft_server.logging_setup import handle_loop_exception
from reft_server.registry import Registry
from reft_server.tenants import TenantDirectory

if TYPE_CHECKING:
    from reft_server.tracing import Tracing

logger = logging.getLogger(__name__)

_ANSWER_MARGIN_S = 5
"""Time after the requests' own in which those that the stopping engine ended get their error through."""
_STOP_MARGIN_S = 10
"""Time after the requests' own that the whole shutdown gets; then the process ends without it."""


def check_exposure(listener: socket.socket, settings: Settings, directory: TenantDirectory) -> OpenTo:
    """Who may use the server while it has no API key.

    Raises:
        ConfigurationError: it has none, others reach the address, and nobody said `--insecure`.
    """
    if settings.insecure:
        return "everybody"
    if _is_loopback(listener):
        return "local"
    if not directory.snapshot.keys:
        raise ConfigurationError(
            f"Without API keys everybody who reaches {settings.host} could use this server. Make a key with "
            f"`reft-serve keys create --store-dir {settings.store_dir}`, or keep to 127.0.0.1, or say --insecure.",
            param="host",
        )
    return "nobody"


def _is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def build_app(
    settings: Settings, directory: TenantDirectory | None = None, *, open_to: OpenTo = "everybody"
) -> FastAPI:
    """Load the model, and join engine, store, registry and API. Nothing runs before the app's lifespan starts.

    `directory`, None for no keys, is closed with the app. `open_to`: see `check_exposure`.

    Raises:
        ModelUnavailableError, UnsupportedModelError: see `load_base_model` and `build_engine`.
        ConfigurationError: the model can't have this context window or KV cache, or `preload_dir` is no folder.
        StoreError: the store's folder can't be used.
    """
    if settings.preload_dir is not None and not settings.preload_dir.is_dir():
        raise ConfigurationError(f"--preload-dir {settings.preload_dir} is not a folder.", param="preload_dir")
    store = InterventionStore(settings.store_dir, settings.deleted_retention_s)
    building = start_building(settings.cache_dir) if settings.engine.model_path in ("auto", "native") else None
    base = load_base_model(settings)
    if building is not None:
        building.join()
    engine = build_engine(base.model, base.model_id, settings.engine.to_engine_settings(), cache_dir=settings.cache_dir)
    info = engine.model_info
    registry = Registry(
        store,
        InterventionPool(int(settings.intervention_pool_bytes)),
        engine,
        BaseModelSpec(
            model_id=info.model_id,
            fingerprint=info.fingerprint,
            hidden_size=info.hidden_size,
            num_layers=info.num_layers,
            row_sizes=info.row_sizes,
        ),
        FileLimits(max_file_bytes=int(settings.max_upload_bytes)),
        _device_pool(torch.device(info.device), settings),
        directory,
    )
    tuning = _fine_tuning(base, info, settings, registry)
    app = create_app(
        engine,
        base.tokenizer,
        registry,
        settings.to_api_settings(),
        tuning,
        directory,
        open_to=open_to,
        tracing=_tracing(settings),
    )
    if settings.preload_dir is not None:
        app.router.lifespan_context = _preloading(app.router.lifespan_context, registry, settings.preload_dir)
    return app


def _tracing(settings: Settings) -> Tracing | None:
    """None where no endpoint is set.

    Raises:
        ConfigurationError: one is set, and OpenTelemetry is not installed.
    """
    if settings.otlp_traces_endpoint is None:
        return None
    try:
        from reft_server.tracing import Tracing, otlp_provider
    except ImportError as error:
        raise ConfigurationError(
            "--otlp-traces-endpoint needs OpenTelemetry: pip install 'reft-serve[otel]'.", param="otlp_traces_endpoint"
        ) from error
    return Tracing(otlp_provider(settings.otlp_traces_endpoint))


def _fine_tuning(base: BaseModel, info: ModelInfo, settings: Settings, registry: Registry) -> FineTuning | None:
    """None where it is switched off. Nothing is on disk before it starts."""
    tuning = settings.fine_tuning.to_fine_tuning_settings()
    if not tuning.enabled:
        return None
    merging = ("--merge-lora", str(settings.merge_lora.expanduser().resolve())) if settings.merge_lora else ()
    training_base = TrainingBase(base.path, info.model_id, info.fingerprint, info.num_layers, merging)
    return FineTuning(tuning.dir or settings.store_dir / "fine-tuning", tuning, training_base, registry)


def _device_pool(device: torch.device, settings: Settings) -> DevicePool | None:
    """None on the CPU: there the pool's own sets are what the engine runs."""
    if device.type == "cpu":
        return None
    return DevicePool(device, int(settings.intervention_device_bytes), settings.engine.max_queue_time_s)


def _preloading(inner: Lifespan[Any], registry: Registry, folder: Path) -> Lifespan[Any]:
    """`inner`, and an import of the sets in `folder` and in the folders right inside it before the server listens.

    A store or a folder that fails is logged and does not stop the start: base requests can be answered all the same.
    """

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncGenerator[Any, None]:
        async with inner(app) as state:
            try:
                for source in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
                    for stored in await registry.preload(source):
                        logger.info("preload_imported reference=%s", stored.reference)
            except (ReftError, OSError) as error:
                logger.error("preload_failed folder=%s reason=%s", folder, error)
            yield state

    return lifespan


class HttpServer(uvicorn.Server):
    """uvicorn that says when it is ready, drains before it stops, and that a signal always ends.

    From the first signal on it goes on listening, and refuses what is new, until nothing runs or `grace_s` is over.
    Then it ends, with status 0 after SIGTERM.

    Args:
        stop_engine: ends every request that runs or waits, with a typed error.
        grace_s: time that requests get to finish at shutdown before `stop_engine`.
        stop_deadline_s: time from the signal to the end of the process, whatever hangs.
        lifecycle: of the app that is served.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        ready_text: str,
        stop_engine: Callable[[], Awaitable[None]],
        *,
        grace_s: float,
        stop_deadline_s: float,
        lifecycle: Lifecycle | None = None,
    ) -> None:
        super().__init__(config)
        self.grace_s = grace_s
        self._ready_text = ready_text
        self._stop_engine = stop_engine
        self._stop_margin_s = stop_deadline_s - grace_s
        self._lifecycle = lifecycle or Lifecycle()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(handle_loop_exception)
        await super().startup(sockets=sockets)
        self._loop = loop
        if self.started:
            sys.stdout.write(self._ready_text)
            sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's
        """Drain at the first signal; a second Ctrl-C does not wait."""
        if sig == signal.SIGINT or self._loop is None:
            self._captured_signals.append(sig)  # has its usual effect once the server has ended
        if self._lifecycle.is_draining:
            self.should_exit = True
            self.force_exit = sig == signal.SIGINT
            return
        self._lifecycle.drain()
        logger.info("server_stop signal=%s", signal.Signals(sig).name)
        # A daemon thread: it must fire while the main thread waits for a thread that never ends.
        deadline = threading.Timer(self.grace_s + self._stop_margin_s, _end_process)
        deadline.daemon = True
        deadline.start()
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._draining = asyncio.get_running_loop().create_task(self._drain())

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self.grace_s):
                await self._lifecycle.wait_until_idle()
        except TimeoutError:
            logger.warning("server_stop grace_s=%g: ending the requests that still run", self.grace_s)
            await self._stop_engine()
        finally:
            self.should_exit = True


def _end_process() -> None:
    sys.stderr.write("reft-serve: the shutdown took too long; ending without it\n")
    sys.stderr.flush()
    os._exit(1)


def run(app: FastAPI, settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status.

    Args:
        listener: bound, not listening yet.
    """
    config = HttpConfig(
        app,
        ConnectionLimits(settings.max_connections, settings.header_timeout_s, settings.write_timeout_s),
        log_config=None,
        access_log=False,  # it would hold the names in paths and queries; the API logs every request itself
        lifespan="on",
        timeout_graceful_shutdown=_ANSWER_MARGIN_S,
        server_header=False,
    )
    context: ApiContext = app.state.context
    server = HttpServer(
        config,
        ready_text(listener),
        context.engine.stop,
        grace_s=settings.shutdown_timeout_s,
        stop_deadline_s=settings.shutdown_timeout_s + _STOP_MARGIN_S,
        lifecycle=context.lifecycle,
    )
    server.run(sockets=[listener])
    return 0 if server.started else 1


def ready_text(listener: socket.socket) -> str:
    """What a newcomer sees once the server listens: its address, and a request to try."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # a browser can't go to "any address"
        host = "127.0.0.1"
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    return (
        f"\nreft-serve is ready on {url} (API: {url}/docs; Ctrl-C stops it). Try:\n\n"
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        '    -d \'{"messages": [{"role": "user", "content": "What is the capital of France?"}]}\'\n\n'
        f"  curl {url}/v1/interventions\n\n"
    )
