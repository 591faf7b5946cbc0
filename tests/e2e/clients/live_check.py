"""Clients of other people, unmodified, against a real server. Run by `make test-clients`, not by `make test`."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reft_interventions import attach, loads
from reft_server.base_model import default_model_path
from tests.e2e.conftest import MakeFile, Server

PYTHON = Path(os.environ["REFT_TEST_CLIENTS_PYTHON"])
HERE = Path(__file__).parent
TIMEOUT_S = 280
QUESTION = {"role": "user", "content": "What is the capital of France?"}
PROMPT = "The capital of France is"
STYLE = "client-style"


@pytest.fixture(scope="module", params=["base", STYLE])
def model(request: pytest.FixtureRequest, http: httpx.Client, make_file: MakeFile) -> str:
    """The base model, and an intervention named as a model."""
    http.post("/v1/interventions", params={"name": STYLE}, content=make_file(1)).raise_for_status()
    name: str = request.param
    return name


def run(arguments: list[str], folder: Path) -> str:
    """What a program of the clients' environment prints; it may reach nothing but the server."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("REFT_", "PYTHON"))}
    environment |= {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "NO_COLOR": "1"}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    done = subprocess.run(
        arguments, env=environment, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def run_script(name: str, server: Server, model: str, folder: Path) -> Any:
    out = run([str(PYTHON), str(HERE / name), f"{server.url}/v1", model], folder)
    return json.loads(out.splitlines()[-1])


def answer(http: httpx.Client, model: str, **fields: Any) -> Any:
    """The same request without any client."""
    url = "/v1/chat/completions" if "messages" in fields else "/v1/completions"
    body = {"model": model, "max_tokens": 12, "temperature": 0, **fields}
    return http.post(url, json=body).raise_for_status().json()["choices"][0]


def test_litellm(server: Server, http: httpx.Client, model: str, tmp_path: Path) -> None:
    found = run_script("use_litellm.py", server, model, tmp_path)
    chat = answer(http, model, messages=[QUESTION])
    assert found["chat"] == [chat["message"]["content"]] * 4
    assert found["reason"] == chat["finish_reason"]
    assert found["tokens"][0] == found["tokens"][1] <= 12
    assert found["text"] == answer(http, model, prompt=PROMPT)["text"]
    assert json.loads(found["bound"]) in ("Paris", "Rome")
    assert found["refusal"] == "NotFoundError"


def test_langchain(server: Server, http: httpx.Client, model: str, tmp_path: Path) -> None:
    found = run_script("use_langchain.py", server, model, tmp_path)
    chat = answer(http, model, messages=[{"role": "system", "content": "Answer shortly."}, QUESTION])
    assert found["chat"] == [chat["message"]["content"]] * 5
    assert found["reason"] == chat["finish_reason"]
    assert found["tokens"][0] == found["tokens"][1] <= 12
    assert found["text"] == answer(http, model, prompt=PROMPT)["text"]
    assert found["city"].keys() == {"name", "is_capital"}


QUESTIONS = [
    {"question": "The capital of France is", "choices": [" Paris", " Berlin", " a kind of cheese"]},
    {"question": "Two and two make", "choices": [" four", " seven and a half", " Paris"]},
    {"question": "The sky is", "choices": [" blue", " made of wood and stone", " seven"]},
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice", "doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}",
        "doc_to_target": 0, "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}{{choices[0]}}",
        "metric_list": [{"metric": "word_perplexity"}],
    },
    "generation": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


def plain_logprob(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Of the continuation, from one forward of the plain model."""
    ids = tokenizer(context + continuation)["input_ids"]
    start = len(tokenizer(context)["input_ids"])
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return sum(float(logprobs[index - 1, ids[index]]) for index in range(start, len(ids)))


def test_lm_eval_local_completions(
    server: Server, http: httpx.Client, make_file: MakeFile, model: str, tmp_path: Path
) -> None:
    """Loglikelihoods through `echo` are those of the plain model with hooks; generations those of the server."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(one) + "\n" for one in QUESTIONS))
    for name, fields in TASKS.items():
        task = {"task": f"reft_{name}", "dataset_path": "json", "test_split": "test", **fields}
        task["dataset_kwargs"] = {"data_files": {"test": str(data)}}
        (tmp_path / f"{name}.yaml").write_text(json.dumps(task))  # JSON is YAML
    arguments = f"model={model},base_url={server.url}/v1/completions,tokenizer={default_model_path()}"
    run(
        [
            *(str(PYTHON.with_name("lm_eval")), "run", "--model", "local-completions"),
            *("--model_args", f"{arguments},tokenizer_backend=huggingface,num_concurrent=2,max_retries=1"),
            *("--tasks", "reft_choices,reft_perplexity,reft_generation", "--include_path", str(tmp_path)),
            *("--output_path", str(tmp_path / "out"), "--log_samples"),
        ],
        tmp_path,
    )
    samples = {
        name: [
            json.loads(line)
            for line in next((tmp_path / "out").rglob(f"samples_reft_{name}_*")).read_text().splitlines()
        ]
        for name in TASKS
    }
    tokenizer = AutoTokenizer.from_pretrained(default_model_path())
    plain = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=torch.float32).eval()
    sets = [] if model == "base" else [(loads(make_file(1)), 1.0)]
    with attach(plain, sets):
        for sample in samples["choices"]:
            for choice, (logprob, _) in zip(sample["doc"]["choices"], sample["filtered_resps"], strict=True):
                expected = plain_logprob(plain, tokenizer, sample["doc"]["question"], choice)
                assert math.isclose(float(logprob), expected, rel_tol=1e-3, abs_tol=1e-3)
    for sample in samples["generation"]:
        text = answer(http, model, prompt=sample["doc"]["question"], max_tokens=8, stop=["\n"])["text"]
        assert sample["resps"][0][0] == text
    assert all(float(sample["filtered_resps"][0]) < 0 for sample in samples["perplexity"])


def test_guidellm_load_with_an_intervention_as_model(server: Server, model: str, tmp_path: Path) -> None:
    """A load test of the field, streaming, with the intervention's name as the model."""
    run(
        [
            *(str(PYTHON.with_name("guidellm")), "run", "--disable-console"),
            *("--backend", f"kind=openai_http,target={server.url},model={model},request_format=/v1/completions"),
            *("--tokenizer", f"kind=huggingface_auto,model={default_model_path()}"),
            *("--data", "kind=synthetic_text,prompt_tokens=24,output_tokens=8"),
            *("--profile", "kind=concurrent,streams=[4]", "--constraint", "kind=max_requests,count=12"),
            *("--output", f"kind=json,path={tmp_path / 'report.json'}"),
        ],
        tmp_path,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    totals = report["benchmarks"][0]["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (12, 0)
