"""kill -9 at any moment: what was acknowledged is there, what is there is whole, and numbers are never used again."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from reft_interventions import load, save
from reft_interventions.errors import InterventionNotFoundError
from reft_interventions.store import InterventionStore
from tests.intervention_sets import make_set

RETENTION_S = 3600.0
NUM_KILLS = 25
NAMES = ["a", "b", "c"]
Living = dict[str, dict[int, str]]
"""name -> version -> content hash."""


class CrashWriter:
    """The process of crash_writer.py."""

    def __init__(self, root: Path, sources: Path) -> None:
        script = Path(__file__).with_name("crash_writer.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(root), str(sources)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def run(self, **job: Any) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """File name -> content hash of the sets that the writer puts."""
    folder = tmp_path / "sources"
    folder.mkdir()
    return {f"{seed}.safetensors": save(make_set(seed), folder / f"{seed}.safetensors") for seed in range(8)}


@pytest.fixture
def writer(tmp_path: Path, sources: dict[str, str]) -> Iterator[CrashWriter]:
    started = CrashWriter(tmp_path / "store", tmp_path / "sources")
    yield started
    started.close()


def living(store: InterventionStore) -> Living:
    return {
        stored.name: {version.version: version.content_hash for version in store.versions(stored.name)}
        for stored in store.list()
    }


def check_whole(root: Path) -> Living:
    """Open the store as the next server would, and check everything that is visible."""
    with InterventionStore(root) as store:
        found = living(store)
        for name in found:
            for stored in store.versions(name):
                assert store.load(stored).content_hash == stored.content_hash
        for path in root.glob("blobs/sha256/*/*"):
            assert load(path).content_hash == f"sha256:{path.stem}", "a half file is visible"
        report = store.rebuild()
        assert report.num_unreadable_records == 0
        assert living(store) == found, "the index and the records disagree"
    return found


def outcomes(
    before: Living,
    event: dict[str, Any],
    last_used: dict[str, int],
    sources: dict[str, str],
    seen: dict[tuple[str, int], str],
) -> list[Living]:
    """Every state that is legal when the process died inside `event`."""
    name = event["name"]
    versions = before.get(name, {})
    states = [versions]
    if event["operation"] == "put":
        states.append({**versions, last_used.get(name, 0) + 1: sources[event["source"]]})
    elif event["operation"] == "restore":
        states.append({**versions, event["version"]: seen[name, event["version"]]})
    elif event["version"] is None:
        # Oldest first: any number of the oldest may be gone.
        states += [dict(sorted(versions.items())[count:]) for count in range(1, len(versions) + 1)]
    else:
        states.append({version: found for version, found in versions.items() if version != event["version"]})
    others = {other: found for other, found in before.items() if other != name}
    return [others | ({name: state} if state else {}) for state in states]


def replay(state: Living, journal: Path, last_used: dict[str, int], seen: dict[tuple[str, int], str]) -> dict[str, Any]:
    """Apply the acknowledged operations to `state`; returns the one that was under way, or {}."""
    pending: dict[str, Any] = {}
    for line in journal.read_text().splitlines() if journal.exists() else []:
        event = json.loads(line)
        if not event["acknowledged"]:
            pending = event
            continue
        pending = {}
        versions = state.setdefault(event["name"], {})
        if event["operation"] in ("put", "restore"):
            key = (event["name"], event["version"])
            assert seen.setdefault(key, event["content_hash"]) == event["content_hash"], "a number was used again"
            versions[event["version"]] = event["content_hash"]
            last_used[event["name"]] = max(last_used.get(event["name"], 0), event["version"])
        elif event["version"] is None:
            versions.clear()
        else:
            versions.pop(event["version"])
        if not versions:
            del state[event["name"]]
    return pending


def test_store_survives_kill_at_random_moments(tmp_path: Path, sources: dict[str, str], writer: CrashWriter) -> None:
    chance = random.Random(0)
    state: Living = {}
    last_used: dict[str, int] = {}
    seen: dict[tuple[str, int], str] = {}
    num_acknowledged = number = 0
    # On a busy machine some die before they have done anything: they do not count.
    while number < NUM_KILLS or (num_acknowledged <= NUM_KILLS and number < 10 * NUM_KILLS):
        journal = tmp_path / f"journal-{number}.jsonl"
        job = {"seed": number, "delay_s": chance.uniform(0.005, 0.12), "journals": [str(journal)], "names": NAMES}
        assert writer.run(job="loop", deletes=True, **job) == "killed"
        pending = replay(state, journal, last_used, seen)
        num_acknowledged += journal.read_text().count('"acknowledged": true') if journal.exists() else 0
        found = check_whole(tmp_path / "store")
        assert found in (outcomes(state, pending, last_used, sources, seen) if pending else [state])
        state = found
        for name, versions in found.items():
            for version, content_hash in versions.items():
                assert seen.setdefault((name, version), content_hash) == content_hash
                last_used[name] = max(last_used.get(name, 0), version)
        number += 1
    assert num_acknowledged > NUM_KILLS, "the kills came before anything happened: raise delay_s"


def test_two_writers_killed_together_lose_nothing(tmp_path: Path, sources: dict[str, str], writer: CrashWriter) -> None:
    expected: dict[tuple[str, int], str] = {}
    for number in range(6):
        journals = [tmp_path / f"{side}-{number}.jsonl" for side in ("left", "right")]
        answer = writer.run(
            job="loop", seed=number, delay_s=0.15, journals=[str(j) for j in journals], names=["a"], deletes=False
        )
        assert answer == "killed"
        for journal in journals:
            replay({}, journal, {}, expected)
    found = check_whole(tmp_path / "store")
    assert expected
    assert {key: found[key[0]].get(key[1]) for key in expected} == expected
    assert sorted(found["a"]) == list(range(1, len(found["a"]) + 1))


@pytest.mark.parametrize("operation", ["put", "delete", "bury"])
def test_store_survives_kill_before_every_file_operation(
    tmp_path: Path, sources: dict[str, str], writer: CrashWriter, operation: str
) -> None:
    root, pristine = tmp_path / "store", tmp_path / "pristine"
    with InterventionStore(pristine) as store:
        for seed in (0, 1):
            store.put(tmp_path / "sources" / f"{seed}.safetensors", "haiku")
    before = check_whole(pristine)
    kind = "put" if operation == "put" else "delete"
    event = {"operation": kind, "name": "haiku", "version": None, "source": "2.safetensors"}
    legal = outcomes(before, event, {"haiku": 2}, sources, {})
    seen: list[Living] = []
    answer = "killed"
    while answer == "killed":
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pristine, root)
        answer = writer.run(job="step", step=len(seen), seed=2, operation=operation, name="haiku")
        seen.append(check_whole(root))
        assert seen[-1] in legal
    assert answer == "finished"
    assert seen[0] == before
    assert seen[-1] == legal[-1]
    assert len(seen) > 8, "too few file operations were seen: the audit hook misses them"
    assert all(state in seen for state in legal), "a kill half-way never showed"


@pytest.mark.parametrize("operation", ["restore", "purge"])
def test_tombstones_survive_kill_before_every_file_operation(
    tmp_path: Path, sources: dict[str, str], writer: CrashWriter, operation: str
) -> None:
    root, pristine = tmp_path / "store", tmp_path / "pristine"
    with InterventionStore(pristine, RETENTION_S) as store:
        for seed in (0, 1):
            store.put(tmp_path / "sources" / f"{seed}.safetensors", "haiku")
        store.delete("haiku")
    seen: list[tuple[list[int], list[int]]] = []
    answer = "killed"
    while answer == "killed":
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(pristine, root)
        answer = writer.run(job="step", step=len(seen), operation=operation, name="haiku")
        alive = sorted(check_whole(root).get("haiku", {}))
        with InterventionStore(root, RETENTION_S) as store:
            dead = [stored.version for stored in store.deleted("haiku")]
            # Done again, it ends where it would have ended; and what can be restored is whole.
            if dead:
                getattr(store, operation)("haiku")
            assert sorted(living(store).get("haiku", {})) == ([1, 2] if operation == "restore" else [])
        seen.append((alive, dead))
    assert answer == "finished"
    assert seen[0] == ([], [1, 2])
    half_way, done = {"restore": (([2], [1]), ([1, 2], [])), "purge": (([], [2]), ([], []))}[operation]
    assert seen[-1] == done
    assert half_way in seen, "a kill half-way never showed"
    assert all(state in (seen[0], half_way, done) for state in seen)


def test_a_first_start_killed_anywhere_can_be_repeated(
    tmp_path: Path, sources: dict[str, str], writer: CrashWriter
) -> None:
    step, answer = 0, ""
    while answer != "finished":
        root = tmp_path / "store"
        answer = writer.run(job="step", step=step, seed=1, operation="put", name="haiku")
        found = check_whole(root)
        assert found in ({}, {"haiku": {1: sources["1.safetensors"]}})
        root.rename(tmp_path / f"used-{step}")
        step += 1
    with InterventionStore(tmp_path / f"used-{step - 1}") as store:
        assert store.resolve("haiku").content_hash == sources["1.safetensors"]
        with pytest.raises(InterventionNotFoundError):
            store.resolve("haiku", 2)
