"""The parts of a server put together: model, engine, store, registry and API."""

from __future__ import annotations

import ipaddress
import logging
import socket
from functools import partial
from typing import TYPE_CHECKING

import torch
from fastapi import FastAPI

from reft_interventions import BaseModelSpec
from reft_interventions.file_format import FileLimits
from reft_server.api.app import create_app
from reft_server.api.authentication import OpenTo
from reft_server.api.context import ApiContext
from reft_server.base_model import BaseModel, load_base_model
from reft_server.config import Settings
from reft_server.engine import build_engine
from reft_server.engine.device_pool import DevicePool
from reft_server.engine.engine import LocalEngine
from reft_server.engine.native import start_building
from reft_server.engine.pool import InterventionPool
from reft_server.engine.types import ModelInfo
from reft_server.errors import ConfigurationError
from reft_server.fine_tuning.runner import TrainingBase
from reft_server.fine_tuning.service import FineTuning
from reft_server.logging_setup import configure_logging
from reft_server.preload import preloading
from reft_server.registry import Registry
from reft_server.reload import SettingsReload
from reft_server.storage import open_store
from reft_server.tenants import TenantDirectory

if TYPE_CHECKING:
    from reft_server.tracing import Tracing

logger = logging.getLogger(__name__)


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
    settings: Settings,
    directory: TenantDirectory | None = None,
    *,
    open_to: OpenTo = "everybody",
    reload: SettingsReload | None = None,
) -> FastAPI:
    """Load the model, and join engine, store, registry and API. Nothing runs before the app's lifespan starts.

    `directory`, None for no keys, is closed with the app. `open_to`: see `check_exposure`. `reload` learns who uses
    which settings.

    Raises:
        ModelUnavailableError, UnsupportedModelError: see `load_base_model` and `build_engine`.
        ConfigurationError: the model can't have this context window or KV cache, or `preload_dir` is no folder.
        StoreError: the store's folder can't be used.
    """
    if settings.preload_dir is not None and not settings.preload_dir.is_dir():
        raise ConfigurationError(f"--preload-dir {settings.preload_dir} is not a folder.", param="preload_dir")
    store = open_store(settings)
    building = start_building(settings.cache_dir) if settings.engine.model_path in ("auto", "native") else None
    base = load_base_model(settings)
    if building is not None:
        building.join()
    engine = build_engine(
        base.model,
        base.model_id,
        settings.engine.to_engine_settings(base.model.device.type),
        cache_dir=settings.cache_dir,
        reserved_bytes=int(settings.intervention_device_bytes),
    )
    info = engine.model_info
    device_pool = _device_pool(torch.device(info.device), settings)
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
        device_pool,
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
        reload=reload,
    )
    if reload is not None:
        reload.on_change(partial(_use_settings, app.state.context, engine, device_pool))
    if settings.preload_dir is not None:
        app.router.lifespan_context = preloading(app.router.lifespan_context, registry, settings.preload_dir)
    return app


def _use_settings(context: ApiContext, engine: LocalEngine, device_pool: DevicePool | None, settings: Settings) -> None:
    """Give the parts of a running server their reloadable settings."""
    context.live_settings.current = settings.to_api_settings()
    context.grammars.max_bytes = int(settings.max_grammar_bytes)
    context.registry.loader.limits = FileLimits(max_file_bytes=int(settings.max_upload_bytes))
    context.registry.retention_s = settings.deleted_retention_s
    context.shadows.num_slots = settings.max_shadow_requests
    context.directory.audit_retention_s = settings.audit_retention_s
    context.directory.defaults = settings.tenant.to_tenant_limits()
    engine.bound_queue(settings.engine.max_queue_len, settings.engine.max_queue_time_s)
    if device_pool is not None:
        device_pool.max_wait_s = settings.engine.max_queue_time_s
    configure_logging(settings.log_level, settings.log_format)


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
    return FineTuning(settings.fine_tuning_folder, tuning, training_base, registry)


def _device_pool(device: torch.device, settings: Settings) -> DevicePool | None:
    """None on the CPU: there the pool's own sets are what the engine runs."""
    if device.type == "cpu":
        return None
    return DevicePool(device, int(settings.intervention_device_bytes), settings.engine.max_queue_time_s)
