"""Upload, use and re-upload under load: no answer is lost, and none is wrong for the version it says it used."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from tests.e2e.conftest import MakeFile, Server

PROMPTS = ("The capital of France is", "Once upon a time", "My favourite colour is blue because")
NAME = "swap"
NUM_WORKERS = 6
NUM_AFTER_SWAP = 4
"""Answers that each worker must still get after the second upload."""


@dataclass(frozen=True)
class Answer:
    prompt: str
    sent_at: float
    received_at: float
    version: int
    text: str


def upload(http: httpx.Client, name: str, data: bytes) -> int:
    response = http.post("/v1/interventions", params={"name": name}, content=data)
    assert response.status_code == 201, response.text
    return int(response.json()["version"])


def ask(http: httpx.Client, prompt: str, intervention: str | None, max_tokens: int = 12) -> Answer:
    sent_at = time.monotonic()
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    response = http.post("/v1/completions", json={**body, "intervention": intervention})
    assert response.status_code == 200, response.text
    payload = response.json()
    version = payload["intervention"][0]["version"] if intervention else 0
    return Answer(prompt, sent_at, time.monotonic(), version, payload["choices"][0]["text"])


def test_reupload_under_load_gives_every_answer_from_the_version_it_names(
    server: Server, http: httpx.Client, make_file: MakeFile
) -> None:
    files = {1: make_file(11), 2: make_file(12)}
    # What each version answers, asked alone, under names of their own.
    for version, data in files.items():
        upload(http, f"expected-{version}", data)
    expected = {
        (version, prompt): ask(http, prompt, f"expected-{version}").text for version in files for prompt in PROMPTS
    }
    assert all(expected[1, prompt] != expected[2, prompt] for prompt in PROMPTS)

    assert upload(http, NAME, files[1]) == 1
    swapped_at: list[float] = []

    def work(worker: int) -> list[Answer]:
        answers: list[Answer] = []
        num_after = 0
        with httpx.Client(base_url=server.url, timeout=120) as client:
            while num_after < NUM_AFTER_SWAP:
                answers.append(ask(client, PROMPTS[(worker + len(answers)) % len(PROMPTS)], NAME))
                num_after += bool(swapped_at) and answers[-1].sent_at > swapped_at[0]
        return answers

    with ThreadPoolExecutor(NUM_WORKERS) as pool:
        futures = [pool.submit(work, worker) for worker in range(NUM_WORKERS)]
        time.sleep(1.0)
        upload_sent_at = time.monotonic()
        try:
            assert upload(http, NAME, files[2]) == 2
        finally:
            swapped_at.append(time.monotonic())  # also ends the workers
        answers = [answer for future in futures for answer in future.result()]

    for answer in answers:
        assert answer.text == expected[answer.version, answer.prompt]
        if answer.received_at < upload_sent_at:
            assert answer.version == 1
        if answer.sent_at > swapped_at[0]:
            assert answer.version == 2
    assert {answer.version for answer in answers} == {1, 2}


def test_stream_in_flight_finishes_on_the_version_it_started_with(
    server: Server, http: httpx.Client, make_file: MakeFile
) -> None:
    name, prompt, max_tokens = "in-flight", PROMPTS[1], 64
    upload(http, name, make_file(21, positions="all"))  # edits every generated token too
    alone = ask(http, prompt, f"{name}@1", max_tokens).text
    body = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
    text = ""
    num_after = 0
    is_swapped = False
    with http.stream("POST", "/v1/completions", json={**body, "intervention": name, "stream": True}) as response:
        for line in response.iter_lines():
            if not line or line == "data: [DONE]":
                continue
            text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
            num_after += is_swapped
            if not is_swapped:
                is_swapped = True
                with httpx.Client(base_url=server.url, timeout=120) as other:
                    upload(other, name, make_file(22, positions="all"))
                    assert other.delete(f"/v1/interventions/{name}", params={"version": "1"}).status_code == 200
                    assert ask(other, prompt, name, 4).version == 2
    assert text == alone
    assert num_after > 0


def test_upload_is_used_by_the_next_request_and_gone_after_its_delete(http: httpx.Client, make_file: MakeFile) -> None:
    base = ask(http, PROMPTS[0], None).text
    upload(http, "fresh", make_file(31))
    assert ask(http, PROMPTS[0], "fresh").text != base
    assert http.delete("/v1/interventions/fresh").status_code == 200
    response = http.post("/v1/completions", json={"prompt": PROMPTS[0], "intervention": "fresh"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "intervention_not_found")
    assert ask(http, PROMPTS[0], None).text == base


def test_simultaneous_uploads_under_one_name_all_get_a_version(
    server: Server, http: httpx.Client, make_file: MakeFile
) -> None:
    files = [make_file(seed) for seed in range(41, 45)]
    versions: list[int] = []

    def send(data: bytes) -> None:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            versions.append(upload(client, "race", data))

    threads = [threading.Thread(target=send, args=(data,)) for data in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == [1, 2, 3, 4]
    downloads = {http.get("/v1/interventions/race/download", params={"version": str(v)}).content for v in versions}
    assert downloads == set(files)
