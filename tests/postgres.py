"""A real PostgreSQL server for tests, from the system's packages; each test gets as good as its own database."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

MISSING = "PostgreSQL's programs are not here: `apt-get install postgresql` (Debian, Ubuntu), then run the tests again"
_START_S = 60.0


@dataclass(frozen=True)
class Postgres:
    """A running server, reached over a socket in `folder` only, by its superuser."""

    folder: Path

    def empty_database(self) -> str:
        """The URL of what a client takes for an empty database: a schema of its own, made in a millisecond."""
        schema = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return f"postgresql://reft@/postgres?host={self.folder}&options=-csearch_path%3D{schema}"

    @property
    def conninfo(self) -> str:
        """For psycopg."""
        return f"host={self.folder} user=reft dbname=postgres"


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """Start a server in a folder of its own, and stop it.

    PostgreSQL refuses to run as root: for root it runs as the user `nobody`.

    Raises:
        FileNotFoundError: it is not installed.
    """
    folder = Path(tempfile.mkdtemp(prefix="reft-postgres-"))  # short: a socket's path has 107 bytes
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody")
        user = {"user": "nobody", "group": "nogroup" if _has_group("nogroup") else "nobody", "extra_groups": []}
    data = folder / "data"
    try:
        initdb = [_program("initdb"), "-D", data, "-U", "reft", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **user)
        # No port, and no promise about power cuts.
        options = ("-k", folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=50")
        with (folder / "log").open("wb") as log:
            command = [_program("postgres"), "-D", data, *options]
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, **user)
            try:
                postgres = Postgres(folder)
                _wait(postgres, process)
                yield postgres
            finally:
                process.terminate()
                process.wait(30)
    finally:
        shutil.rmtree(folder)


def _program(name: str) -> Path:
    """Debian keeps the programs out of PATH, by version."""
    found = shutil.which(name)
    candidates = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not candidates:
        raise FileNotFoundError(MISSING)
    return candidates[-1]


def _wait(postgres: Postgres, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            psycopg.connect(postgres.conninfo).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


def _has_group(name: str) -> bool:
    groups = Path("/etc/group").read_text(encoding="utf-8").splitlines()
    return any(line.startswith(f"{name}:") for line in groups)
