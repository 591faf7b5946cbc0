"""Compiling the native kernels for this machine, once: the library is kept in the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

logger = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent / "csrc"
_FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
# gcc would take multiply and add apart in short chains on some processors: a sum then depends on its loop's shape.
_FUSED = "--param=avoid-fma-max-bits=0"
_TUNING = (("-march=native", _FUSED), ("-march=native",), ("-mcpu=native",), ())  # the first that the compiler takes
_TIMEOUT_S = 120.0


class NativeUnavailableError(Exception):
    """The native kernels can't be used on this machine; the message says why."""


def build_library(cache_dir: Path) -> Path:
    """The compiled kernels' path; compiles them if this machine's are not in `cache_dir` yet.

    The file's name is a hash of the sources, the compiler's version and the processor's features. It is written
    beside its place and renamed, so that processes that build at the same time don't see each other's half.

    Raises:
        NativeUnavailableError: there is no C compiler, it fails, or the folder can't be written.
    """
    compiler = _find_compiler()
    folder = cache_dir / "native"
    path = folder / f"kernels-{_key(compiler)}.so"
    try:
        if path.is_file() and path.stat().st_size:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as work:
            built = Path(work) / "kernels.so"
            _compile(compiler, built)
            built.replace(path)
    except OSError as error:
        raise NativeUnavailableError(f"the kernels can't be built in {folder}: {error}") from error
    logger.info("native kernels compiled duration_s=%.1f path=%s", time.perf_counter() - started, path)
    return path


def start_building(cache_dir: Path) -> threading.Thread:
    """Compile in a thread of its own, next to the loading of a model. A failure shows when the library is loaded."""

    def build() -> None:
        with contextlib.suppress(NativeUnavailableError):
            build_library(cache_dir)

    thread = threading.Thread(target=build, name="reft-compiler", daemon=True)
    thread.start()
    return thread


def _find_compiler() -> list[str]:
    """`$CC`, or the first of cc, gcc and clang on the path."""
    configured = shlex.split(os.environ.get("CC", ""))
    for command in [configured] if configured else [["cc"], ["gcc"], ["clang"]]:
        found = shutil.which(command[0])
        if found is not None:
            return [found, *command[1:]]
    wanted = shlex.join(configured) or "cc, gcc or clang"
    raise NativeUnavailableError(f"no C compiler was found ({wanted}); on Debian: apt install gcc libc6-dev")


def _key(compiler: list[str]) -> str:
    digest = hashlib.sha256(repr((compiler[1:], _FLAGS, _TUNING)).encode())
    for source in sorted(_SOURCES.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    digest.update(_run([*compiler, "--version"]).stdout.encode())
    digest.update(_processor().encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` depends on: the processor's model and features."""
    names = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    described = sorted({line for line in lines if line.startswith(names)})
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *described])


def _compile(compiler: list[str], path: Path) -> None:
    """Raises `NativeUnavailableError` with the end of the compiler's output."""
    for tuning in _TUNING:
        finished = _run([*compiler, *_FLAGS, *tuning, str(_SOURCES / "model.c"), "-o", str(path), "-lm"])
        if finished.returncode == 0 and path.is_file():
            return
    output = (finished.stderr or finished.stdout).strip()[-500:]
    raise NativeUnavailableError(f"{compiler[0]} could not compile the kernels: {output}")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NativeUnavailableError(f"{command[0]} can't be run: {error}") from error
