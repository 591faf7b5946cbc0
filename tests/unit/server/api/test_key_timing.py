"""Checking a key does the same work whatever is wrong with it, so that its time tells nothing. No clock is read."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from reft_server.tenants import TenantDirectory
from reft_server.tenants.keys import new_key

MakeClient = Callable[..., Any]


@pytest.fixture
def directory() -> TenantDirectory:
    directory = TenantDirectory.in_memory()
    directory.open()
    directory.create_tenant("acme")
    return directory


class Work:
    """Counts what a check computes, and notes what it compares."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashed: list[int] = []
        self.compared: list[tuple[int, int]] = []
        digest, compare = hmac.digest, hmac.compare_digest

        def counting_digest(key: bytes, message: bytes, kind: Any) -> bytes:
            self.hashed.append(len(message))
            return digest(key, message, kind)

        def counting_compare(one: bytes, other: bytes) -> bool:
            self.compared.append((len(one), len(other)))
            return compare(one, other)

        monkeypatch.setattr(hmac, "digest", counting_digest)
        monkeypatch.setattr(hmac, "compare_digest", counting_compare)

    def take(self) -> tuple[list[int], list[tuple[int, int]]]:
        """What was done since the last time."""
        done = (self.hashed[:], self.compared[:])
        self.hashed.clear()
        self.compared.clear()
        return done


def keys_of_all_kinds(directory: TenantDirectory) -> dict[str, str]:
    """One that works, and one of each kind that does not; all of them well formed."""
    alive, dead = (directory.create_key("acme", ["infer"]) for _ in range(2))
    directory.revoke_key(dead[0].key_id)
    _, late = directory.create_key("acme", ["infer"])
    directory.rotate_key(late.key_id)  # ends now
    secret = alive[1].text.split("-", 2)[2]
    wrong = {index: "B" if secret[index] == "A" else "A" for index in (0, -2)}
    return {
        "alive": alive[1].text,
        "unknown": new_key().text,
        "wrong at its beginning": f"reft-{alive[0].key_id}-{wrong[0]}{secret[1:]}",
        "wrong at its end": f"reft-{alive[0].key_id}-{secret[:-2]}{wrong[-2]}{secret[-1]}",
        "revoked": dead[1].text,
        "expired": late.text,
    }


def test_every_well_formed_key_costs_one_hash_and_one_constant_time_comparison(
    directory: TenantDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = keys_of_all_kinds(directory)
    work = Work(monkeypatch)
    for kind, key in keys.items():
        assert (directory.snapshot.caller(key) is not None) == (kind == "alive"), kind
        # Of equal lengths: for others the comparison would end at once.
        assert work.take() == ([43], [(32, 32)]), kind


def test_request_with_a_wrong_key_answers_after_the_same_work(
    make_client: MakeClient, directory: TenantDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    client: TestClient = make_client(directory=directory)
    keys = keys_of_all_kinds(directory)
    work = Work(monkeypatch)
    bodies = set()
    for kind, key in keys.items():
        answer = client.get("/v1/models", headers={"authorization": f"Bearer {key}"})
        assert work.take() == ([43], [(32, 32)]), kind
        if kind != "alive":
            bodies.add((answer.status_code, answer.text))
    assert len(bodies) == 1
