"""A real PostgreSQL server for tests, from the system's packages; each test gets as good as its own database."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

MISSING = "PostgreSQL's programs are not here: `apt-get install postgresql` (Debian, Ubuntu), then run the tests again"
_START_S = 60.0


class Postgres:
    """A server, reached over a socket in its folder only, by its superuser.

    PostgreSQL refuses to run as root: for root it runs as the user `nobody`.

    Raises:
        FileNotFoundError: it is not installed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._user: dict[str, Any] = {"cwd": folder}
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
            group = "nogroup" if _has_group("nogroup") else "nobody"
            self._user |= {"user": "nobody", "group": group, "extra_groups": []}
        initdb = [_program("initdb"), "-D", self._data, "-U", "reft", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, **self._user)

    def start(self) -> None:
        """Returns when it can be used."""
        # No port, and no promise about power cuts.
        options = ("-k", self._folder, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=50")
        command = [_program("postgres"), "-D", self._data, *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, **self._user)
        until = time.monotonic() + _START_S
        while True:
            try:
                psycopg.connect(self.conninfo).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.02)
            else:
                return

    def stop(self) -> None:
        """End it, and every connection, in order."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)

    def empty_database(self) -> str:
        """The URL of what a client takes for an empty database: a schema of its own, made in a millisecond."""
        schema = f"test_{uuid.uuid4().hex}"
        with psycopg.connect(self.conninfo, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return f"postgresql://reft@/postgres?host={self._folder}&options=-csearch_path%3D{schema}"

    @property
    def conninfo(self) -> str:
        """For psycopg."""
        return f"host={self._folder} user=reft dbname=postgres"


@contextmanager
def run_postgres() -> Iterator[Postgres]:
    """A running server in a folder of its own; both are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="reft-postgres-"))  # short: a socket's path has 107 bytes
    try:
        postgres = Postgres(folder)
        try:
            postgres.start()
            yield postgres
        finally:
            postgres.stop()
    finally:
        shutil.rmtree(folder)


def _program(name: str) -> Path:
    """Debian keeps the programs out of PATH, by version."""
    found = shutil.which(name)
    candidates = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not candidates:
        raise FileNotFoundError(MISSING)
    return candidates[-1]


def _has_group(name: str) -> bool:
    groups = Path("/etc/group").read_text(encoding="utf-8").splitlines()
    return any(line.startswith(f"{name}:") for line in groups)
