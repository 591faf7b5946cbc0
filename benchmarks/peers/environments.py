"""Where the other software is: environments that `make bench-peers` builds beside our own."""

from __future__ import annotations

import subprocess
from ctypes.util import find_library
from pathlib import Path

ROOT = Path(__file__).parents[2]


class MissingPeerError(RuntimeError):
    """A peer's environment has not been built."""


def python(name: str) -> Path:
    """The python of a peer's environment.

    Raises:
        MissingPeerError: it is not there.
    """
    return _existing(ROOT / f".venv-{name}" / "bin" / "python", name)


def llama_server() -> Path:
    """llama.cpp's server, built from the sources that llama-cpp-python ships.

    Raises:
        MissingPeerError: it is not there.
    """
    return _existing(ROOT / ".venv-llama_cpp" / "bin" / "llama-server", "llama_cpp")


def gguf(dtype: str) -> Path:
    """The default model as a GGUF file with weights of a type, `f32` or `f16`.

    Raises:
        MissingPeerError: it is not there.
    """
    return _existing(ROOT / ".venv-llama_cpp" / f"smollm2-{dtype}.gguf", "llama_cpp")


def installed(python: Path, distribution: str) -> str:
    """The version of a distribution in an environment."""
    script = f"from importlib.metadata import version; print(version({distribution!r}))"
    return subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def vllm_preloads(python: Path) -> list[Path]:
    """What vLLM's documentation wants preloaded: its OpenMP, else it uses one core, and tcmalloc if there is one."""
    openmp = python.parents[1] / "lib" / "libiomp5.so"
    tcmalloc = [*python.parents[1].glob("lib/libtcmalloc*.so.4")]
    found = find_library("tcmalloc_minimal")
    return [path for path in (*tcmalloc[:1], Path(found) if found and not tcmalloc else None, openmp) if path]


def _existing(path: Path, name: str) -> Path:
    if not path.exists():
        raise MissingPeerError(f"{path.relative_to(ROOT)} is missing: run `make bench-peers PEERS={name}`")
    return path
