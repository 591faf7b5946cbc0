"""A running server takes the settings that may change out of its file, all of them or none."""

from __future__ import annotations

import logging
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from reft_server.config import Settings, load_settings, setting_fields
from reft_server.http_server import HttpServer, make_server
from reft_server.reload import SettingsReload
from reft_server.serving import build_app
from reft_server.tenants import TenantDirectory
from tests.fakes.tokenizers import byte_level_tokenizer

BEFORE = """
max_body_bytes = 2000
"""
AFTER = """
port = 1
deleted_retention_s = 1
audit_retention_s = 86401
max_shadow_requests = 2
max_upload_bytes = 2001
max_body_bytes = 2002
request_timeout_s = 3
max_concurrent_requests = 4
max_connections = 5
header_timeout_s = 6
body_timeout_s = 7
write_timeout_s = 8
max_choices_per_request = 9
max_chat_tokens = 10
max_grammar_bytes = 11
shutdown_timeout_s = 12
log_level = "warning"
log_format = "json"
[engine]
max_num_seqs = 13
max_queue_len = 14
max_queue_time_s = 15
[tenant]
share_prefixes = true
requests_per_minute = 16
tokens_per_minute = 17
max_concurrent_requests = 18
max_stored_bytes = 19
max_sets = 20
max_upload_bytes = 21
"""

LARGE: Mapping[str, Any] = MappingProxyType(
    {
        "content": b'{"prompt": "x", "max_tokens": 1}' + b" " * 1100,
        "headers": {"content-type": "application/json"},
    }
)
"""A request whose body has more than 1024 bytes."""


@dataclass(frozen=True)
class Server:
    """A server that was put together and answers its client, but does not listen."""

    client: TestClient
    http: HttpServer
    file: Path
    settings: Settings

    def reload(self) -> httpx.Response:
        """Ask for it with an operator's key."""
        directory: TenantDirectory = self.client.app.state.context.directory  # type: ignore[attr-defined]
        _, born = directory.create_key("", ["admin", "infer"])
        self.client.headers["authorization"] = f"Bearer {born.text}"
        return self.client.post("/v1/admin/reload")  # type: ignore[no-any-return]


EFFECTS: Mapping[str, Callable[[Any, HttpServer], object]] = MappingProxyType(
    {
        "deleted_retention_s": lambda app, _: app.registry.retention_s,
        "audit_retention_s": lambda app, _: app.directory.audit_retention_s,
        "max_shadow_requests": lambda app, _: app.shadows.num_slots,
        "max_upload_bytes": lambda app, _: (app.settings.max_upload_bytes, app.registry.loader.limits.max_file_bytes),
        "max_body_bytes": lambda app, _: app.settings.max_body_bytes,
        "request_timeout_s": lambda app, _: app.settings.request_timeout_s,
        "max_concurrent_requests": lambda app, _: app.settings.max_concurrent_requests,
        "max_connections": lambda _, http: http.config.connection_limits.max_connections,
        "header_timeout_s": lambda _, http: http.config.connection_limits.header_timeout_s,
        "body_timeout_s": lambda app, _: app.settings.body_timeout_s,
        "write_timeout_s": lambda _, http: http.config.connection_limits.write_timeout_s,
        "max_choices_per_request": lambda app, _: app.settings.max_choices_per_request,
        "max_chat_tokens": lambda app, _: app.settings.max_chat_tokens,
        "max_grammar_bytes": lambda app, _: app.grammars.max_bytes,
        "shutdown_timeout_s": lambda _, http: http.grace_s,
        "log_level": lambda *_: logging.getLogger("reft_server").level,
        "log_format": lambda *_: type(logging.getLogger().handlers[0].formatter).__name__,
        "engine.max_queue_len": lambda app, _: app.engine._settings.max_queue_len,
        "engine.max_queue_time_s": lambda app, _: app.engine._scheduler.settings.max_queue_time_s,
        "tenant.share_prefixes": lambda app, _: app.settings.shares_prefixes,
        "tenant.requests_per_minute": lambda app, _: app.directory.limits_of("").requests_per_minute,
        "tenant.tokens_per_minute": lambda app, _: app.directory.limits_of("").tokens_per_minute,
        "tenant.max_concurrent_requests": lambda app, _: app.directory.limits_of("").max_concurrent_requests,
        "tenant.max_stored_bytes": lambda app, _: app.directory.limits_of("").max_stored_bytes,
        "tenant.max_sets": lambda app, _: app.directory.limits_of("").max_sets,
        "tenant.max_upload_bytes": lambda app, _: app.directory.limits_of("").max_upload_bytes,
    }
)
"""Where each reloadable setting is found once it acts; one without a case here fails a test."""
EXPECTED = {
    "max_upload_bytes": (2001, 2001),
    "max_body_bytes": 2002,
    "log_level": logging.WARNING,
    "log_format": "JsonFormatter",
    "tenant.share_prefixes": True,
}


@pytest.fixture(scope="module")
def model(tiny_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model in a folder."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model("llama", vocab_size=512).save_pretrained(folder)
    byte_level_tokenizer().save_pretrained(folder)
    return folder


def options(model: Path, tmp_path: Path) -> dict[str, Any]:
    """What the command line would say, besides a new settings file."""
    file = tmp_path / "reft.toml"
    file.write_text(BEFORE)
    engine = {"model_path": "packed"}
    return {"config": file, "model": str(model), "store_dir": tmp_path / "store", "device": "cpu", "engine": engine}


@pytest.fixture
def server(model: Path, tmp_path: Path, restored_logging: None) -> Iterator[Server]:
    read = partial(load_settings, options(model, tmp_path))
    settings, directory = read(), TenantDirectory.in_memory()
    reload = SettingsReload(settings, read, directory)
    with socket.socket() as listener, TestClient(build_app(settings, directory, reload=reload)) as client:
        listener.bind(("127.0.0.1", 0))
        http = make_server(client.app, settings, listener, reload)  # type: ignore[arg-type]
        yield Server(client, http, tmp_path / "reft.toml", settings)


def test_reload_brings_every_reloadable_setting_to_where_it_acts(server: Server) -> None:
    reloadable = {field.key: field for field in setting_fields() if field.is_reloadable}
    assert set(EFFECTS) == set(reloadable)
    server.file.write_text(AFTER)
    answer = server.reload().json()
    assert answer["object"] == "settings.reload"
    assert set(answer["changed"]) == set(reloadable)
    assert set(answer["needs_restart"]) == {"port", "engine.max_num_seqs"}
    new = load_settings({"config": server.file})
    context = server.client.app.state.context  # type: ignore[attr-defined]
    for key, effect in EFFECTS.items():
        assert effect(context, server.http) == EXPECTED.get(key, reloadable[key].value_in(new)), key
    assert context.engine._settings.max_num_seqs == server.settings.engine.to_engine_settings().max_num_seqs


def test_reload_is_felt_by_the_next_request_and_undone_by_another(server: Server) -> None:
    server.file.write_text("max_body_bytes = 1024\n[tenant]\nrequests_per_minute = 100\n")
    assert server.reload().json()["changed"] == ["max_body_bytes", "tenant.requests_per_minute"]
    refused = server.client.post("/v1/completions", **LARGE)
    assert refused.status_code == 413
    assert refused.headers["x-ratelimit-limit-requests"] == "100"
    server.file.write_text(BEFORE)
    assert server.reload().json()["changed"] == ["max_body_bytes", "tenant.requests_per_minute"]
    answer = server.client.post("/v1/completions", **LARGE)
    assert answer.status_code == 200
    assert "x-ratelimit-limit-requests" not in answer.headers
    assert server.reload().json() == {"object": "settings.reload", "changed": [], "needs_restart": []}


@pytest.mark.parametrize("text", ["max_body_bytes = 1024\nport = 70000", "max_body_bytes = 1024\nprot = 1", "x"])
def test_reload_of_a_file_at_fault_changes_nothing(server: Server, text: str) -> None:
    server.file.write_text(text)
    refused = server.reload()
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "settings_reload_failed")
    context = server.client.app.state.context  # type: ignore[attr-defined]
    assert context.settings.max_body_bytes == 2000


def test_sighup_reloads_and_a_file_at_fault_does_not_end_the_server(model: Path, tmp_path: Path) -> None:
    chosen = options(model, tmp_path)
    command = [sys.executable, "-m", "reft_server.cli", "--port", "0", "--engine-model-path", "packed"]
    for key in ("config", "model", "store_dir", "device"):
        command += [f"--{key.replace('_', '-')}", str(chosen[key])]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REFT_")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = next(found[1] for line in process.stdout if (found := re.search(r"ready on (http://[\d.:]+)", line)))
            logged: queue.Queue[str] = queue.Queue()
            threading.Thread(target=lambda: [logged.put(line) for line in process.stderr or ()], daemon=True).start()
            for text, words in (
                ("max_body_bytes = 1", "settings_reload_failed"),
                ("max_body_bytes = 1024", "settings_reloaded"),
            ):
                (tmp_path / "reft.toml").write_text(text)
                process.send_signal(signal.SIGHUP)
                while words not in logged.get(timeout=30):
                    pass
            assert httpx.post(f"{url}/v1/completions", **LARGE).status_code == 413
        finally:
            process.terminate()
            process.wait(60)
    assert process.returncode == 0
