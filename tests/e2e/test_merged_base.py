"""`reft-serve --merge-lora` and `reft-train --merge-lora`, as a user runs them: one base model for both."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.server_process import running_server
from reft_interventions import load, save
from reft_interventions.merging import merge_adapter
from reft_interventions.model_tree import fingerprint
from reft_interventions.store import InterventionStore
from reft_interventions.training.cli import main as train
from tests.adapters import save_adapter
from tests.fakes.tokenizers import byte_level_tokenizer

PROMPT_IDS = [40, 60, 80, 100, 120]


def test_sets_trained_on_the_merged_base_are_served_and_others_refused(
    tiny_model: Any, make_set: Any, tmp_path: Path
) -> None:
    base = tiny_model("llama", vocab_size=512)
    base.save_pretrained(tmp_path / "tiny")
    byte_level_tokenizer().save_pretrained(tmp_path / "tiny")
    adapter = save_adapter(base, tmp_path / "formal", use_dora=True)
    merged = merge_adapter(copy.deepcopy(base), adapter)

    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Paris is", "completion": " in France."}) + "\n")
    trained, plain = tmp_path / "trained.safetensors", tmp_path / "plain.safetensors"
    on_merged = ("--model", str(tmp_path / "tiny"), "--merge-lora", str(adapter))
    assert train([*on_merged, "--data", str(tmp_path / "rows.jsonl"), "--output", str(trained), "--lr", "0.5"]) == 0
    reference = load(trained).manifest.base_model
    assert (reference.id, reference.fingerprint) == ("tiny+formal", fingerprint(merged))
    save(make_set(base), plain)
    with InterventionStore(tmp_path / "store") as store:
        store.put(plain, "stored-before")

    with (
        running_server(tmp_path / "store", *on_merged, "--device", "cpu", "--log-level", "warning") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        body = {"prompt": PROMPT_IDS, "max_tokens": 8, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        expected = merged.generate(
            torch.tensor([PROMPT_IDS]), max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
        )[0, len(PROMPT_IDS) :]
        answer = http.post("/v1/completions", json=body).json()
        assert answer["model"] == "tiny+formal"
        assert answer["choices"][0]["token_ids"] == expected.tolist()

        uploaded = http.post("/v1/interventions?name=new", content=trained.read_bytes())
        assert uploaded.status_code == 201, uploaded.text
        assert http.post("/v1/completions", json={**body, "intervention": "new"}).status_code == 200

        refusals = (
            http.post("/v1/interventions?name=old", content=plain.read_bytes()),
            http.post("/v1/completions", json={**body, "intervention": "stored-before"}),
        )
        for refused in refusals:
            assert refused.status_code == 422
            error = refused.json()["error"]
            assert error["code"] == "intervention_base_mismatch"
            assert "train it again on this one" in error["message"]
