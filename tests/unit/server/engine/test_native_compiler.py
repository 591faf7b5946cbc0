"""Compiling the native kernels: once, atomically, and a server that works without them."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from reft_server.engine import EngineSettings, build_engine
from reft_server.engine.native import NativeUnavailableError, compiler, load_library
from reft_server.engine.native.compiler import build_library
from reft_server.engine.native_model import NativeModel
from reft_server.engine.packed_model import PackedModel
from reft_server.errors import ConfigurationError


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_library_is_compiled_once(tmp_path: Path) -> None:
    path = build_library(tmp_path)
    written = path.stat().st_mtime_ns
    assert build_library(tmp_path) == path
    assert path.stat().st_mtime_ns == written
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_other_sources_are_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_library(tmp_path / "cache")
    sources = tmp_path / "csrc"
    sources.mkdir()
    for source in compiler._SOURCES.iterdir():
        (sources / source.name).write_bytes(source.read_bytes())
    (sources / "model.c").write_bytes((sources / "model.c").read_bytes() + b"/* changed */\n")
    monkeypatch.setattr(compiler, "_SOURCES", sources)
    assert build_library(tmp_path / "cache") != first


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + b"\0" * 4096])
def test_corrupt_library_is_built_again(content: bytes, tmp_path: Path) -> None:
    path = build_library(tmp_path)
    path.unlink()  # another inode: a loaded library must not change under its users
    path.write_bytes(content)
    load_library(tmp_path)
    assert path.stat().st_size > len(content)


def test_processes_and_threads_build_at_the_same_time(tmp_path: Path) -> None:
    code = "import sys, pathlib, reft_server.engine.native as n; n.load_library(pathlib.Path(sys.argv[1]))"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    threads = [threading.Thread(target=load_library, args=(tmp_path,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list((tmp_path / "native").iterdir())) == 1


def test_compiler_with_arguments_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -O1")
    load_library(tmp_path)
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    with pytest.raises(NativeUnavailableError, match="no-such-compiler"):
        build_library(tmp_path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (None, "apt install gcc"),
        ("echo 'cc: fatal error: stdint.h not found' >&2; exit 1", "stdint.h not found"),
        ("exit 0", "could not compile"),
        ('while [ "$1" != -o ]; do [ $# -gt 0 ] || exit 0; shift; done; echo junk > "$2"', "can't be loaded"),
    ],
)
def test_server_works_without_native_kernels(
    body: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tiny_model: Any,
) -> None:
    """No compiler, a broken one, one that makes nothing, one that makes something else."""
    if body is not None:
        script(tmp_path / "cc", body)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    engine = build_engine(copy.deepcopy(tiny_model("llama")), "tiny", EngineSettings(), cache_dir=tmp_path)
    assert isinstance(engine._model, PackedModel)
    assert any("packed path serves" in record.message and reason in record.message for record in caplog.records)
    with pytest.raises(ConfigurationError, match=reason):
        build_engine(tiny_model("llama"), "tiny", EngineSettings(model_path="native"), cache_dir=tmp_path)


def test_folder_that_cannot_be_written_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / "native").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(NativeUnavailableError, match="native"):
        build_library(tmp_path)


def test_engine_keeps_its_kernels_in_the_folder_it_is_given(tmp_path: Path, tiny_model: Any) -> None:
    engine = build_engine(copy.deepcopy(tiny_model("llama")), "tiny", EngineSettings(), cache_dir=tmp_path)
    assert isinstance(engine._model, NativeModel)
    assert len(list((tmp_path / "native").iterdir())) == 1
