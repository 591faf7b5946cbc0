"""Writes to a store until it is killed. Run by test_store_crash.py, never imported.

The process imports everything once; each line of stdin is a job as JSON, run in a forked child that owns its store:

    {"job": "loop", "seed": 1, "delay_s": 0.1, "journals": ["a.jsonl", "b.jsonl"], "names": [...], "deletes": true}
        one child per journal writes until SIGKILL after `delay_s`
    {"job": "step", "step": 3, "seed": 1, "operation": "put" | "delete" | "bury" | "restore" | "purge",
     "name": "haiku"}
        the child kills itself with SIGKILL just before its `step`-th file operation

and is answered by a line `killed` or `finished`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from reft_interventions.store import InterventionStore

RETENTION_S = 3600.0
FILE_OPERATIONS = frozenset({"open", "os.rename", "os.link", "os.remove", "os.mkdir", "shutil.copyfile"})


def put(store: InterventionStore, source: Path, name: str) -> dict[str, Any]:
    path = store.new_temp_path()
    shutil.copyfile(source, path)
    stored = store.put(path, name)
    return {"version": stored.version, "content_hash": stored.content_hash}


def loop(root: Path, sources: list[Path], job: dict[str, Any], journal: str, seed: int) -> None:
    """Announce each operation, do it, acknowledge it; a written line survives the kill."""
    chance = random.Random(seed)
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with InterventionStore(root, RETENTION_S) as store:
        while True:
            name = chance.choice(job["names"])
            if job["deletes"] and chance.random() < 0.2 and (dead := store.deleted(name)):
                version = chance.choice(dead).version
                event: dict[str, Any] = {"operation": "restore", "name": name, "version": version}
                os.write(descriptor, (json.dumps(event | {"acknowledged": False}) + "\n").encode())
                event["content_hash"] = store.restore(name, version)[0].content_hash
            elif job["deletes"] and chance.random() < 0.3 and any(stored.name == name for stored in store.list()):
                version = chance.choice([None, store.resolve(name).version])
                event = {"operation": "delete", "name": name, "version": version}
                os.write(descriptor, (json.dumps(event | {"acknowledged": False}) + "\n").encode())
                store.delete(name, version, is_final=chance.random() < 0.3)
            else:
                source = chance.choice(sources)
                event = {"operation": "put", "name": name, "source": source.name}
                os.write(descriptor, (json.dumps(event | {"acknowledged": False}) + "\n").encode())
                event |= put(store, source, name)
            os.write(descriptor, (json.dumps(event | {"acknowledged": True}) + "\n").encode())


def step(root: Path, sources: list[Path], job: dict[str, Any]) -> None:
    remaining = int(job["step"])

    def die_at_step(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal remaining
        if event in FILE_OPERATIONS and str(root) in str(arguments):
            if remaining == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            remaining -= 1

    sys.addaudithook(die_at_step)
    operation = job["operation"]
    with InterventionStore(root, RETENTION_S) as store:
        if operation == "put":
            put(store, sources[job["seed"] % len(sources)], job["name"])
        elif operation == "restore":
            store.restore(job["name"])
        elif operation == "purge":
            store.purge(job["name"])
        else:
            store.delete(job["name"], is_final=operation == "delete")


def run(root: Path, sources: list[Path], job: dict[str, Any]) -> str:
    children = []
    for number, journal in enumerate(job.get("journals", [""])):
        child = os.fork()
        if child == 0:
            if job["job"] == "step":
                step(root, sources, job)
            else:
                loop(root, sources, job, journal, job["seed"] * 1000 + number)
            os._exit(0)
        children.append(child)
    if job["job"] == "loop":
        time.sleep(job["delay_s"])
        for child in children:
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if all(status == -signal.SIGKILL for status in statuses):
        return "killed"
    return "finished" if statuses == [0] else f"failed {statuses}"


def main() -> None:
    root, folder = Path(sys.argv[1]), Path(sys.argv[2])
    sources = sorted(folder.glob("*.safetensors"))
    for line in sys.stdin:
        sys.stdout.write(run(root, sources, json.loads(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
