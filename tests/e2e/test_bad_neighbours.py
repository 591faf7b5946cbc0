"""Bad requests and hostile uploads get a named error; neighbours, and the server, don't notice."""

from __future__ import annotations

import gzip
import json
import pickle
import threading
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import MAX_UPLOAD_BYTES, MakeFile, Server

PROMPTS = ("The capital of France is", "Once upon a time", "Water boils at", "The sun")
JSON = {"content-type": "application/json"}
BODY: dict[str, Any] = {"max_tokens": 24, "temperature": 0, "ignore_eos": True}
BAD_REQUESTS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"prompt": [10**6]}, "prompt"),
    ({"prompt": [49_152]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["fine", ""]}, "prompt"),
    ({"prompt": [7] * 9000}, "prompt"),
    ({"max_tokens": 100_000}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"top_k": 10**6}, "top_k"),
    ({"top_k": -5}, "top_k"),
    ({"temperature": -0.5}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 2}, "top_p"),
    ({"n": 0}, "n"),
    ({"logprobs": 1000}, "logprobs"),
    ({"stop_token_ids": [-3]}, "stop_token_ids[0]"),
    ({"seed": 2**70}, "seed"),
    ({"intervention": "no-such"}, "intervention"),
    ({"intervention": "../../etc/passwd"}, "intervention"),
    ({"model": "no-such"}, "model"),
)


def answer(http: httpx.Client, prompt: str, **headers: str) -> str:
    response = http.post("/v1/completions", json={**BODY, "prompt": prompt}, headers=headers)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["text"]
    return text


def test_bad_requests_are_refused_and_neighbours_finish_unharmed(server: Server, http: httpx.Client) -> None:
    alone = {prompt: answer(http, prompt) for prompt in PROMPTS}
    is_over = threading.Event()
    wrong: list[str] = []
    num_answers = [0] * len(PROMPTS)

    def neighbour(index: int) -> None:
        prompt = PROMPTS[index]
        with httpx.Client(base_url=server.url, timeout=120) as client:
            while not (is_over.is_set() and num_answers[index]):
                if answer(client, prompt) != alone[prompt]:
                    wrong.append(prompt)
                num_answers[index] += 1

    threads = [threading.Thread(target=neighbour, args=(index,)) for index in range(len(PROMPTS))]
    for thread in threads:
        thread.start()
    try:
        for fields, param in BAD_REQUESTS:
            for stream in (False, True):
                body = {**BODY, "prompt": "fine", "stream": stream, **fields}
                response = http.post("/v1/completions", content=json.dumps(body), headers=JSON)
                error = response.json()["error"]
                assert 400 <= response.status_code < 500, (fields, response.text)
                assert error["param"] == param, (fields, error)
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert all(num_answers)
    assert http.get("/ready").status_code == 200


def test_requests_with_one_request_id_are_all_answered(server: Server, http: httpx.Client) -> None:
    alone = {prompt: answer(http, prompt) for prompt in PROMPTS}
    answers: dict[str, str] = {}

    def ask(prompt: str) -> None:
        with httpx.Client(base_url=server.url, timeout=120) as client:
            answers[prompt] = answer(client, prompt, **{"x-request-id": "the-same"})

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == alone


def num_running(http: httpx.Client) -> float:
    lines = http.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("reft:num_requests_running ")).split()[1])


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_the_engine(server: Server, http: httpx.Client, stream: bool) -> None:
    # Alone it would run for minutes.
    body = {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": stream}

    def leave() -> None:
        with httpx.Client(base_url=server.url, timeout=httpx.Timeout(60, read=2.0)) as client:
            if not stream:
                with pytest.raises(httpx.ReadTimeout):
                    client.post("/v1/completions", json=body)
                return
            with client.stream("POST", "/v1/completions", json=body) as response:
                next(response.iter_lines())
                assert num_running(http) == 1

    leave()
    deadline = time.monotonic() + 20
    while num_running(http):
        assert time.monotonic() < deadline
        time.sleep(0.02)


class _Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("executed",))


def hostile_files(good: bytes) -> dict[str, tuple[bytes, int, tuple[str, ...]]]:
    invalid = ("invalid_intervention_file",)
    header_size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + header_size])
    name = next(key for key in header if key.endswith("learned_source_bias"))
    start, end = header[name]["data_offsets"]
    data = bytearray(good)
    data[8 + header_size + start : 8 + header_size + end] = b"\x00\x00\xc0\x7f" * ((end - start) // 4)  # NaN
    return {
        "empty": (b"", 400, ("invalid_request",)),
        "truncated": (good[:-100], 422, invalid),
        "header of a gigabyte": ((1 << 30).to_bytes(8, "little") + b"{}", 413, ("intervention_file_too_large",)),
        "pickle": (pickle.dumps(_Payload()), 422, ("invalid_intervention_file", "intervention_file_too_large")),
        "gzip bomb": (
            gzip.compress(bytes(50 << 20)),
            422,
            ("invalid_intervention_file", "intervention_file_too_large"),
        ),
        "not a number": (bytes(data), 422, ("invalid_intervention_values",)),
        "above the cap": (good + bytes(MAX_UPLOAD_BYTES), 413, ("intervention_file_too_large", "payload_too_large")),
        "far above the cap": (bytes(20 << 20), 413, ("intervention_file_too_large", "payload_too_large")),
    }


def test_hostile_uploads_are_refused_and_nothing_is_stored(
    server: Server, http: httpx.Client, make_file: MakeFile
) -> None:
    files_before, listed_before = server.stored_files(), http.get("/v1/interventions").json()
    cases = hostile_files(make_file(1))
    other_base = ("intervention_base_mismatch", "invalid_intervention_shape")
    cases["another hidden size"] = (make_file(1, hidden_size=128), 422, other_base)
    cases["a layer too far"] = (make_file(1, num_layers=31, layer=30), 422, other_base)
    for case, (content, status, codes) in cases.items():
        response = http.post("/v1/interventions", params={"name": "hostile"}, content=content)
        assert response.json()["error"]["code"] in codes, (case, response.text)
        assert response.status_code in (status, 413), (case, response.text)
    for name in ("../escape", "a/b", "/etc/passwd", "..", "", "x" * 500, "nul\x00byte"):
        response = http.post("/v1/interventions", params={"name": name}, content=make_file(1))
        assert response.status_code == 400, (name, response.text)
    assert server.stored_files() == files_before
    assert http.get("/v1/interventions").json() == listed_before
    assert http.get("/ready").status_code == 200


@pytest.mark.parametrize("headers", [{"host": "evil.example"}, {"origin": "https://evil.example"}])
def test_other_sites_pages_can_neither_generate_nor_upload(
    server: Server, http: httpx.Client, make_file: MakeFile, headers: dict[str, str]
) -> None:
    """What a browser on this machine sends for a page of another site; a text/plain body needs no preflight."""
    files_before = server.stored_files()
    plain = headers | {"content-type": "text/plain"}
    responses = [
        http.post("/v1/completions", content=json.dumps(BODY | {"prompt": "hi"}), headers=plain),
        http.post("/v1/interventions", params={"name": "planted"}, content=make_file(1), headers=plain),
        http.get("/v1/interventions", headers=headers),
    ]
    assert [response.status_code for response in responses] == [403] * 3
    assert server.stored_files() == files_before
