"""Run what the images and compose files run, on a machine without Docker: as root on Linux with overlayfs.

    python tests/docker/try_outside.py [--scratch DIR] [--torch-index URL] [--python PYTHON]

The machine's own file system stands for the base image, under an overlay that is thrown away: each instruction of the
Dockerfile is carried out there as it is written, `apt-get` and `useradd` too. Then the entry point runs as the image's
user, on a read-only root, without capabilities and without a network but its own, with compose's command and
environment, until the image's health check passes; it answers a chat and ends on SIGTERM. For the stack a real
PostgreSQL runs beside it, and Prometheus' configuration is checked where `promtool` is on the PATH. Not covered: the
base images themselves, Grafana, and a GPU.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_HOST_VARIABLES = re.compile(r"PIP_\w+|\w+_proxy|SSL_CERT_FILE|REQUESTS_CA_BUNDLE", re.IGNORECASE)
_CLONE_NEWNET = 0x40000000  # linux/sched.h; os.unshare comes with Python 3.12
_URL = "http://127.0.0.1:8000"


@dataclass
class Stage:
    """A file system under construction, and what the instructions so far have set."""

    root: Path
    env: dict[str, str] = field(default_factory=lambda: {"PATH": _BASE_PATH})
    arguments: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "0"
    health_check: list[str] = field(default_factory=list)
    entry_point: list[str] = field(default_factory=list)

    def command(self, arguments: list[str], env: dict[str, str] | None = None) -> list[str]:
        """`arguments` in this file system, as its user and with its environment."""
        home = "/root" if self.user == "0" else "/home/reft"
        pairs = [f"{name}={value}" for name, value in ({"HOME": home} | self.env | (env or {})).items()]
        rights = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        if self.user != "0":
            rights += ["--bounding-set=-all", "--no-new-privs"]
        return ["chroot", str(self.root), *rights, "env", "-i", f"--chdir={self.folder}", *pairs, *arguments]

    def run(self, line: str) -> None:
        """A RUN instruction. pip's own settings come from the machine."""
        host = {name: value for name, value in os.environ.items() if _HOST_VARIABLES.fullmatch(name)}
        subprocess.run(self.command(["/bin/sh", "-c", line], host | self.arguments), check=True)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(keyword, rest) of each instruction of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            keyword, _, rest = line.strip().partition(" ")
            yield keyword.upper(), rest.strip()


def build(scratch: Path, arguments: dict[str, str], python: Path) -> Stage:
    """Carry out the Dockerfile; returns its last stage."""
    stages: dict[str, Stage] = {}
    stage: Stage | None = None
    for keyword, rest in instructions((DOCKER / "Dockerfile").read_text()):
        say(f"{keyword} {rest}")
        if keyword == "FROM":
            name = rest.split(" AS ")[1] if " AS " in rest else "last"
            stage = stages[name] = Stage(overlay(scratch / name, python))
        elif stage is not None:
            carry_out(stage, keyword, rest, arguments, stages)
    return stages["last"]


def carry_out(stage: Stage, keyword: str, rest: str, arguments: dict[str, str], stages: dict[str, Stage]) -> None:
    """One instruction behind FROM."""
    if keyword == "ARG":
        name, _, default = rest.partition("=")
        stage.arguments[name] = arguments.get(name, default)
    elif keyword == "ENV":
        for pair in shlex.split(rest):
            name, _, value = pair.partition("=")
            stage.env[name] = value.replace("$PATH", stage.env["PATH"])
    elif keyword == "RUN":
        stage.run(rest)
    elif keyword == "COPY":
        *sources, target = [word for word in rest.split() if not word.startswith("--from=")]
        origin = re.search(r"--from=(\S+)", rest)
        copy(stage, stages[origin[1]].root if origin else ROOT, sources, target)
    elif keyword == "WORKDIR":
        stage.folder = rest
        inside(stage, rest).mkdir(parents=True, exist_ok=True)
    elif keyword == "USER":
        stage.user = rest
    elif keyword == "HEALTHCHECK":
        stage.health_check = json.loads(rest[rest.index("CMD") + 3 :])
    elif keyword == "ENTRYPOINT":
        stage.entry_point = json.loads(rest)
    elif keyword not in ("EXPOSE", "VOLUME"):
        raise ValueError(f"{keyword} is not known here")


def copy(stage: Stage, origin: Path, sources: list[str], target: str) -> None:
    """A COPY instruction: a folder's content goes into the target, files go below it or become it."""
    for source in sources:
        found = origin / source.lstrip("/")
        place = inside(stage, target)
        if found.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info") if origin == ROOT else None
            shutil.copytree(found, place, symlinks=True, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(found, place)


def inside(stage: Stage, path: str) -> Path:
    return stage.root / str(Path(stage.folder) / path).lstrip("/")


def overlay(folder: Path, python: Path) -> Path:
    """The machine's file system, to be written to at will, with `python` where Python's images have it."""
    for name in ("upper", "work", "root"):
        (folder / name).mkdir(parents=True)
    root = folder / "root"
    options = f"lowerdir=/,upperdir={folder / 'upper'},workdir={folder / 'work'}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True)
    for name in ("proc", "dev", "sys"):
        subprocess.run(["mount", "--rbind", f"/{name}", str(root / name)], check=True)
    starter = root / "usr/local/bin/python"  # not a link: an environment made through one would look for Python there
    starter.unlink(missing_ok=True)
    starter.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    starter.chmod(0o755)
    for parent in python.parents:  # some lie in a home that only its owner may enter
        below = root / str(parent).lstrip("/")
        below.chmod(below.stat().st_mode | 0o555)
    for name in ("passwd", "group"):  # base images have nobody with the number of the image's user
        lines = (root / "etc" / name).read_text().splitlines(keepends=True)
        (root / "etc" / name).write_text("".join(line for line in lines if line.split(":")[2] != "1000"))
    with (root / "etc/hosts").open("a") as file:
        file.write("\n127.0.0.1 server postgres prometheus\n")
    return root


@contextmanager
def container(stage: Stage, service: dict[str, Any], data: Path, variables: dict[str, str]) -> Iterator[None]:
    """A compose service of the image: started, healthy, and ended by SIGTERM."""
    env = environment(service, variables)
    checked = stage.command(stage.health_check)
    if subprocess.run(checked, capture_output=True, check=False).returncode == 0:
        raise RuntimeError("something else answers on port 8000")
    seal(stage, data)
    started = time.monotonic()
    process = subprocess.Popen(stage.command([*stage.entry_point, *service.get("command", [])], env))
    try:
        while subprocess.run(checked, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() - started > 300:
                raise RuntimeError(f"the server did not become healthy, status {process.poll()}")
            time.sleep(1)
        say(f"healthy after {time.monotonic() - started:.1f} s")
        yield
        process.send_signal(signal.SIGTERM)
        if process.wait(20) != 0:
            raise RuntimeError(f"the server ended with {process.returncode}")
        say("ended by SIGTERM with 0")
    finally:
        process.kill()


def seal(stage: Stage, data: Path) -> None:
    """Make the root read-only but for the volume and /tmp, as the compose files say."""
    if os.path.ismount(stage.root / "data"):
        subprocess.run(["umount", str(stage.root / "data")], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(stage.root / "tmp")], check=True)
        subprocess.run(["mount", "-o", "remount,ro", str(stage.root)], check=True)
    data.mkdir(exist_ok=True)
    os.chown(data, 1000, 1000)
    subprocess.run(["mount", "--bind", str(data), str(stage.root / "data")], check=True)


def environment(service: dict[str, Any], variables: dict[str, str]) -> dict[str, str]:
    """A service's environment with `${NAME:?...}` filled in."""
    found = service.get("environment", {})
    return {name: re.sub(r"\$\{(\w+)[^}]*\}", lambda m: variables[m[1]], value) for name, value in found.items()}


def try_one_server(stage: Stage, scratch: Path) -> None:
    """compose.yml."""
    service = compose("compose.yml")["server"]
    with container(stage, service, scratch / "data", {}):
        body = {"model": "default", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 8}
        body["model"] = json.loads(fetch("/v1/models"))["data"][0]["id"]
        say(json.loads(fetch("/v1/chat/completions", json.dumps(body)))["choices"][0]["message"]["content"])


def try_stack(stage: Stage, scratch: Path) -> None:
    """compose.stack.yml: the server on PostgreSQL, and the key that Prometheus reads metrics with."""
    services = compose("compose.stack.yml")
    variables = {"POSTGRES_PASSWORD": "letters1", "GRAFANA_PASSWORD": "unused"}
    data = scratch / "stack-data"
    seal(stage, data)
    subprocess.run(["cp", "-a", str(scratch / "data" / "cache"), str(data)], check=True)
    with postgres(services["postgres"], scratch / "postgres", variables):
        made = [*stage.entry_point, "keys", "create", "--scopes", "metrics"]
        env = environment(services["server"], variables)
        key = subprocess.run(stage.command(made, env), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        with container(stage, services["server"], data, variables):
            if "reft:ready 1" not in fetch("/metrics", key=key):
                raise RuntimeError("the metrics' key opens no metrics")
            try:
                fetch("/metrics")
            except urllib.error.HTTPError as error:
                say(f"metrics without a key: {error.code}")
            else:
                raise RuntimeError("metrics need no key")
    check_prometheus(scratch / "prometheus", key)


@contextmanager
def postgres(service: dict[str, Any], folder: Path, variables: dict[str, str]) -> Iterator[None]:
    """The machine's PostgreSQL with the service's user, database and password, until its health check passes."""
    env = environment(service, variables)
    folder.mkdir()
    shutil.chown(folder, "nobody", "nogroup")
    password = folder / "password"
    password.write_text(env["POSTGRES_PASSWORD"])
    shutil.chown(password, "nobody")
    nobody: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": [], "cwd": folder}
    made = ["initdb", "-D", folder / "data", "-U", env["POSTGRES_USER"], "-A", "scram-sha-256", "--pwfile", password]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL, **nobody)
    process = subprocess.Popen(["postgres", "-D", folder / "data", "-k", folder], stderr=subprocess.DEVNULL, **nobody)
    try:
        check = service["healthcheck"]["test"][1:]
        for _ in range(service["healthcheck"]["retries"] * 5):
            if subprocess.run(check, stdout=subprocess.DEVNULL, check=False).returncode == 0:
                break
            time.sleep(1)
        # The image's entry point makes the database.
        address = f"postgresql://{env['POSTGRES_USER']}:{env['POSTGRES_PASSWORD']}@127.0.0.1/postgres"
        subprocess.run(["psql", "-q", address, "-c", f"CREATE DATABASE {env['POSTGRES_DB']}"], check=True)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)


def check_prometheus(folder: Path, key: str) -> None:
    """Prometheus' own checker over its configuration and the alerts, where there is one."""
    if shutil.which("promtool") is None:
        say("left out: no promtool on the PATH")
        return
    folder.mkdir()
    for name in ("prometheus.yml", "prometheus-alerts.yml"):
        shutil.copy(DOCKER / name, folder)
    (folder / "metrics-key").write_text(key)
    subprocess.run(["promtool", "check", "config", str(folder / "prometheus.yml")], check=True)


def compose(name: str) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())["services"]
    return services


def fetch(path: str, body: str | None = None, key: str | None = None) -> str:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    request = urllib.request.Request(_URL + path, body.encode() if body else None, headers)
    with urllib.request.urlopen(request, timeout=120) as response:
        text: str = response.read().decode()
    return text


def say(line: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)


def main() -> None:
    """Build with the machine's network in a mount namespace of its own, then run in a network of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"), help="on another file system than /")
    parser.add_argument("--torch-index", default="", help="of torch's wheels (default: pip's own index)")
    parser.add_argument("--python", type=Path, default=Path(os.path.realpath(sys.executable)))
    options = parser.parse_args()
    if "TRY_OUTSIDE" not in os.environ:
        os.environ["TRY_OUTSIDE"] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation=private", sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(dir=options.scratch, ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        try:
            stage = build(scratch, {"TORCH_INDEX": options.torch_index}, options.python)
            fetch_model(stage, scratch / "data")
            if ctypes.CDLL(None).unshare(_CLONE_NEWNET):
                raise OSError("no network namespace can be made here")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            try_one_server(stage, scratch)
            try_stack(stage, scratch)
        finally:
            for mounted in sorted(scratch.glob("*/root")):
                subprocess.run(["umount", "--recursive", "--lazy", str(mounted)], check=False)
    say("all passed")


def fetch_model(stage: Stage, data: Path) -> None:
    """What the first start fetches, while there is a network."""
    seal(stage, data)
    host = {name: value for name, value in os.environ.items() if _HOST_VARIABLES.fullmatch(name)}
    subprocess.run(stage.command([*stage.entry_point, "--fetch-only"], host), check=True)


if __name__ == "__main__":
    main()
