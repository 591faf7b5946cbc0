"""A server over a base model with a LoRA merged in: its name, and which sets it takes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from reft_interventions import save
from reft_interventions.merging import merge_adapter
from reft_server.config import load_settings
from reft_server.serving import build_app
from tests.adapters import save_adapter
from tests.fakes.tokenizers import byte_level_tokenizer


def test_server_on_a_merged_base_takes_sets_of_it_only(tiny_model: Any, make_set: Any, tmp_path: Path) -> None:
    base = tiny_model("llama", vocab_size=512)
    base.save_pretrained(tmp_path / "tiny")
    byte_level_tokenizer().save_pretrained(tmp_path / "tiny")
    folder = save_adapter(base, tmp_path / "formal")
    settings = {"model": str(tmp_path / "tiny"), "store_dir": str(tmp_path / "store"), "device": "cpu"}
    app = build_app(load_settings({**settings, "merge_lora": str(folder), "engine": {"model_path": "packed"}}))
    save(make_set(base), tmp_path / "old.safetensors")
    save(make_set(merge_adapter(copy.deepcopy(base), folder)), tmp_path / "new.safetensors")
    with TestClient(app) as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny+formal"
        refused = client.post("/v1/interventions?name=old", content=(tmp_path / "old.safetensors").read_bytes())
        assert refused.json()["error"]["code"] == "intervention_base_mismatch"
        accepted = client.post("/v1/interventions?name=new", content=(tmp_path / "new.safetensors").read_bytes())
        assert accepted.status_code == 201
