"""The nested parts of the settings tree: `--engine-...`, `--tenant-...`, `--fine-tuning-...`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ByteSize, ConfigDict, Field
from pydantic.config import JsonDict

from reft_server.api.settings import ApiSettings
from reft_server.engine.settings import (
    AttentionChoice,
    EngineSettings,
    KernelChoice,
    ModelPath,
    PrefixCacheScope,
    ProductChoice,
    WeightDtype,
)
from reft_server.fine_tuning.settings import FineTuningSettings
from reft_server.tenants.model import TenantLimits

RELOADABLE: Final[JsonDict] = {"reloadable": True}
"""Marks a setting that a running server takes from the settings file anew (`reft_server.reload`)."""

_ENGINE = EngineSettings()
_BATCH_ON_GPU: Mapping[str, int] = MappingProxyType({"max_num_seqs": 256, "max_num_batched_tokens": 2048})
_API = ApiSettings()
_TUNING = FineTuningSettings()


def plain(value: Any) -> Any:
    """A size as a number; anything else as it is."""
    return int(value) if isinstance(value, ByteSize) else value


class EngineGroup(BaseModel):
    """`EngineSettings` with bounds, as the user sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int | None = Field(
        None, ge=1, le=4096, description="Sequences that run in one batch; unset = 32, on a GPU 256."
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=1,
        le=1 << 20,
        description="Tokens of one step; longer prompts are prefilled in chunks. Unset = 512, on a GPU 2048.",
    )
    kv_cache_bytes: ByteSize | None = Field(
        None,
        ge=1 << 20,
        le=1 << 44,
        description="Bound of the KV cache, such as 2GiB; unset = 2GiB, on a GPU what is left of the share.",
    )
    prefix_cache_bytes: ByteSize | None = Field(
        None,
        ge=0,
        le=1 << 44,
        description="Bound of the prefix cache, besides the KV cache; unset = 1GiB, on a GPU a third of what is left.",
    )
    device_memory_share: float = Field(
        _ENGINE.device_memory_share,
        gt=0,
        le=1,
        description="Part of a GPU's memory for model, steps, interventions and those caches whose size is unset.",
    )
    prefix_cache_scope: PrefixCacheScope = Field(
        _ENGINE.prefix_cache_scope,
        description="shared = all requests reuse what their edits leave equal, intervention = only those with the same "
        "interventions, off = none.",
    )
    max_queue_len: int = Field(
        _ENGINE.max_queue_len,
        ge=0,
        le=1 << 20,
        description="Requests that may wait; one more is refused at once.",
        json_schema_extra=RELOADABLE,
    )
    max_queue_time_s: float = Field(
        _ENGINE.max_queue_time_s,
        gt=0,
        le=86_400,
        description="A request that waits longer is refused, seconds.",
        json_schema_extra=RELOADABLE,
    )
    max_step_time_s: float = Field(
        _ENGINE.max_step_time_s,
        gt=0,
        le=86_400,
        description="A step that takes longer hangs: requests fail, and /ready is red until it ends, seconds.",
    )
    max_model_len: int | None = Field(
        _ENGINE.max_model_len, ge=2, le=1 << 24, description="Context window in tokens; unset = the model's own."
    )
    num_threads: int | None = Field(
        _ENGINE.num_threads, ge=1, le=1024, description="Threads of a forward pass; unset = one per core."
    )
    model_path: ModelPath = Field(
        _ENGINE.model_path,
        description="native = the Llama shape in C, compiled at the first start; packed = the same in torch; "
        "generic = transformers' modules; auto = the first of them that works.",
    )
    kernels: KernelChoice = Field(
        _ENGINE.kernels,
        description="What the packed path runs between its matrix products: torch, triton (over paged K and V), or "
        "auto = triton on a GPU that has it.",
    )
    attention: AttentionChoice = Field(
        _ENGINE.attention,
        description="Attention beside Triton's kernels: triton = our own, torch = torch's varlen attention with block "
        "tables, fa3 = FlashAttention-3; auto = the first of fa3, torch and triton that works on this GPU.",
    )
    products: ProductChoice = Field(
        _ENGINE.products,
        description="Matrix products of up to 8 rows, beside Triton's kernels: triton = our own, torch = cuBLAS, "
        "auto = for each shape what is faster on this GPU, timed at start.",
    )
    decode_graphs: bool = Field(
        _ENGINE.decode_graphs,
        description="On a GPU, replay decode steps from CUDA graphs and run one step ahead; false to find a fault.",
    )
    weight_dtype: WeightDtype = Field(
        _ENGINE.weight_dtype,
        description="How the native path stores weights: model = exactly; bfloat16, int8 = in a half and a quarter of "
        "the memory, faster and not exact.",
    )

    def to_engine_settings(self, device: str = "cpu") -> EngineSettings:
        """The same values as the engine takes them; those unset that depend on the kind of device are chosen."""
        values = {name: plain(value) for name, value in self.model_dump().items()}
        for name, on_gpu in _BATCH_ON_GPU.items():
            if values[name] is None:
                values[name] = getattr(_ENGINE, name) if device == "cpu" else on_gpu
        return EngineSettings(**values)


class FineTuningGroup(BaseModel):
    """`FineTuningSettings` with bounds, as the user sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(_TUNING.enabled, description="Serve /v1/files and /v1/fine_tuning.")
    dir: Path | None = Field(
        _TUNING.dir, description="Folder of files and jobs, for one server; unset = fine-tuning in the store's folder."
    )
    device: str = Field(
        _TUNING.device, pattern=r"^(cpu|cuda(:\d+)?)$", description="Where jobs train: cpu, cuda or cuda:N."
    )
    num_threads: int = Field(_TUNING.num_threads, ge=1, le=1024, description="Threads of one training process.")
    niceness: int = Field(
        _TUNING.niceness,
        ge=0,
        le=19,
        description="Of a training process: 19 leaves it what serving does not use, 0 an equal share.",
    )
    max_running: int = Field(_TUNING.max_running, ge=1, le=64, description="Jobs that train at once.")
    max_queued: int = Field(
        _TUNING.max_queued,
        ge=0,
        le=10_000,
        description="Jobs of one tenant that may wait; one more is refused with 429.",
    )
    max_jobs: int = Field(
        _TUNING.max_jobs,
        ge=1,
        le=100_000,
        description="Jobs of one tenant that are kept; the oldest that have ended make room.",
    )
    max_memory_bytes: ByteSize = Field(
        ByteSize(_TUNING.max_memory_bytes),
        ge=1 << 20,
        le=1 << 44,
        description="Memory of one training process, the base model included; more ends the job.",
    )
    max_time_s: float = Field(
        _TUNING.max_time_s, gt=0, le=31_536_000, description="A training process that runs longer is ended, seconds."
    )
    max_steps: int = Field(_TUNING.max_steps, ge=1, le=1 << 30, description="Optimizer steps of one job.")
    max_restarts: int = Field(
        _TUNING.max_restarts, ge=0, le=1000, description="Crashes of the server that a running job survives."
    )
    checkpoint_steps: int = Field(
        _TUNING.checkpoint_steps, ge=1, le=1 << 30, description="Optimizer steps between a job's checkpoints."
    )
    max_file_bytes: ByteSize = Field(
        ByteSize(_TUNING.max_file_bytes), ge=1 << 10, le=1 << 34, description="Largest file to train on, such as 64MiB."
    )
    max_files: int = Field(_TUNING.max_files, ge=1, le=1 << 20, description="Files to train on, of one tenant.")
    max_total_bytes: ByteSize = Field(
        ByteSize(_TUNING.max_total_bytes), ge=1 << 10, le=1 << 44, description="Their size together."
    )

    def to_fine_tuning_settings(self) -> FineTuningSettings:
        """The same values as the jobs take them."""
        return FineTuningSettings(**{name: plain(value) for name, value in self.model_dump().items()})


class TenantGroup(BaseModel):
    """What tenants may do without limits of their own, as the user sets it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share_prefixes: bool = Field(
        _API.shares_prefixes,
        description="Tenants reuse what was computed for each other's prompts, and can tell.",
        json_schema_extra=RELOADABLE,
    )
    requests_per_minute: int | None = Field(
        None,
        ge=0,
        lt=1 << 53,
        description="Requests of one tenant per minute, on any route that needs a key.",
        json_schema_extra=RELOADABLE,
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=0,
        lt=1 << 53,
        description="Prompt and generated tokens of one tenant per minute.",
        json_schema_extra=RELOADABLE,
    )
    max_concurrent_requests: int | None = Field(
        None,
        ge=0,
        lt=1 << 53,
        description="Generations of one tenant that run or wait at once.",
        json_schema_extra=RELOADABLE,
    )
    max_stored_bytes: ByteSize | None = Field(
        None,
        ge=0,
        lt=1 << 53,
        description="Intervention files of one tenant, all versions together, such as 1GiB.",
        json_schema_extra=RELOADABLE,
    )
    max_sets: int | None = Field(
        None, ge=0, lt=1 << 53, description="Names of intervention sets of one tenant.", json_schema_extra=RELOADABLE
    )
    max_upload_bytes: ByteSize | None = Field(
        None,
        ge=0,
        lt=1 << 53,
        description="Largest intervention file of a tenant; REFT_MAX_UPLOAD_BYTES holds too.",
        json_schema_extra=RELOADABLE,
    )

    def to_tenant_limits(self) -> TenantLimits:
        """The limits of a tenant that has none of its own."""
        return TenantLimits(
            **{field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(TenantLimits)}
        )
