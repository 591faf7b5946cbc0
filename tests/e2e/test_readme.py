"""README's commands, run as a newcomer would run them, against a real server process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r'<!-- test:(?P<kind>\w+)(?: expect="(?P<expect>[^"]*)")? -->\n```bash\n(?P<code>.*?)^```', re.S | re.M
)
START_TIMEOUT_S = 120
COMMAND_TIMEOUT_S = 240

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="README's commands need curl")


@dataclass(frozen=True)
class Server:
    """A running server, and a folder that looks like a clone."""

    url: str
    clone: Path


def blocks(kind: str) -> list[tuple[str, str | None]]:
    """The marked blocks of a kind: commands, and what their output must contain."""
    return [(match["code"], match["expect"]) for match in BLOCK.finditer(README) if match["kind"] == kind]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """What `make serve` starts, on a free port and with a store of its own."""
    clone = tmp_path_factory.mktemp("clone")
    (clone / "examples").symlink_to(ROOT / "examples")
    command = [sys.executable, "-m", "reft_server.cli", "--port", "0", "--preload-dir", "examples"]
    command += ["--store-dir", str(clone / "store")]
    with (clone / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=clone, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout is not None
    try:
        ready = (re.search(r"ready on (http://[\d.:]+)", line) for line in process.stdout)
        url = next((match[1] for match in ready if match), None)  # the end of stdout ends the wait, too
        assert url, (clone / "log").read_text()
        assert httpx.get(f"{url}/ready", timeout=START_TIMEOUT_S).status_code == 200
        yield Server(url, clone)
    finally:
        process.terminate()
        process.stdout.close()
        assert process.wait(timeout=30) == 0, "SIGTERM drains and ends well"


def run(code: str, server: Server) -> str:
    """Run a block in the clone, its address and the way to our commands replaced; returns its output."""
    code = code.replace("http://127.0.0.1:8000", server.url)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code.replace("curl ", "curl -sS --fail-with-body ")],
        cwd=server.clone,
        env={**os.environ, "REFT_URL": server.url, "PATH": path},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}\n{(server.clone / 'log').read_text()}"
    return done.stdout


def test_readme_has_the_blocks_that_are_tested_here() -> None:
    assert len(blocks("quickstart")) >= 3
    assert len(blocks("train")) == 1
    assert README.count("<!-- test:") == len(blocks("quickstart")) + len(blocks("train"))


@needs_curl
@pytest.mark.parametrize("index", range(len(blocks("quickstart"))))
def test_readme_quick_start_commands_run(server: Server, index: int) -> None:
    code, expect = blocks("quickstart")[index]
    assert expect, "a block without an expectation shows little"
    assert expect in run(code, server).splitlines()[-1]


@pytest.mark.slow
def test_readme_training_commands_run(server: Server) -> None:
    (code, _) = blocks("train")[0]
    short, num_replaced = re.subn(r"--epochs \d+", "--epochs 1", code)
    assert num_replaced == 1
    assert "pirate" in run(short, server)
    listed = httpx.get(f"{server.url}/v1/interventions").json()["data"]
    assert "pirate" in [entry["name"] for entry in listed]
