"""Which models are served, and which are refused at start in a sentence."""

from __future__ import annotations

import copy
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import triton
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from reft_server.engine import EngineSettings, build, build_engine
from reft_server.engine.attention import attend
from reft_server.engine.cuda import launch
from reft_server.engine.generic_model import GenericModel
from reft_server.engine.kernels import TorchKernels
from reft_server.engine.native_model import NativeModel
from reft_server.engine.packed_model import PackedModel
from reft_server.engine.single import run_alone
from reft_server.errors import ConfigurationError, UnsupportedModelError

SHAPE = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip


def random_model(arch: str, **config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(arch, **config), dtype=torch.float32).eval()
        for parameter in model.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3
    return model


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3"])
def test_llama_shape_takes_the_native_path(arch: str, tiny_model: Any) -> None:
    engine = build_engine(copy.deepcopy(tiny_model(arch)), "tiny", EngineSettings())
    assert isinstance(engine._model, NativeModel)


def test_llama_shape_in_another_dtype_takes_the_packed_path(tiny_model: Any) -> None:
    model = copy.deepcopy(tiny_model("llama")).double()
    with pytest.raises(ConfigurationError, match="dtype=float32"):
        build_engine(model, "tiny", EngineSettings(model_path="native"))
    assert isinstance(build_engine(model, "tiny", EngineSettings())._model, PackedModel)


@pytest.mark.parametrize("arch", ["olmo2", "stablelm", "mixtral"])
def test_other_decoders_take_the_generic_path(arch: str) -> None:
    engine = build_engine(random_model(arch, **SHAPE), "tiny", EngineSettings())
    assert isinstance(engine._model, GenericModel)


@pytest.mark.parametrize(
    ("arch", "config"),
    [
        ("bloom", {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
        ("mamba", {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2}),
        ("gpt_oss", {**SHAPE, "num_local_experts": 4, "head_dim": 8}),
    ],
)
def test_architecture_that_cannot_be_exact_is_refused_by_name(arch: str, config: dict[str, Any]) -> None:
    model = random_model(arch, **config)
    with pytest.raises(UnsupportedModelError, match=r"can't be served"):
        build_engine(model, "tiny", EngineSettings())


def test_a_soft_cap_counts_where_transformers_would_leave_it_out(tiny_model: Any) -> None:
    """Its versions before 5.21 give Gemma 2 SDPA by default, which has no soft cap."""
    model = copy.deepcopy(tiny_model("gemma2"))
    model.config._attn_implementation = "sdpa"
    assert isinstance(build_engine(model, "tiny", EngineSettings())._model, GenericModel)


@pytest.mark.parametrize(("model_path", "module"), [("packed", "kernels"), ("generic", "generic_model")])
@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_build_refuses_logits_that_differ_from_the_plain_model(
    model_path: str, module: str, factor: float, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"reft_server.engine.{module}.attend", lambda *args, **kwargs: attend(*args, **kwargs) * factor)
    with pytest.raises(UnsupportedModelError, match="exactly"):
        build_engine(copy.deepcopy(tiny_model("llama")), "tiny", EngineSettings(model_path=model_path))


def test_packed_path_is_refused_where_there_is_none(tiny_model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="model_path=generic"):
        build_engine(copy.deepcopy(tiny_model("gpt2")), "tiny", EngineSettings(model_path="packed"))


def test_window_longer_than_the_model_is_refused(tiny_model: Any) -> None:
    with pytest.raises(ConfigurationError, match="at most 256"):
        build_engine(copy.deepcopy(tiny_model("llama")), "tiny", EngineSettings(max_model_len=257))


@pytest.mark.parametrize(("weight_dtype", "bound"), [("bfloat16", 0.03), ("int8", 0.2)])
def test_smaller_weights_are_close_and_need_the_native_path(weight_dtype: Any, bound: float, tiny_model: Any) -> None:
    base = copy.deepcopy(tiny_model("llama"))
    for parameter in base.parameters():
        parameter.data = parameter.data * 0.3 if parameter.ndim > 1 else parameter.data
    with pytest.raises(ConfigurationError, match="needs model_path=native"):
        build_engine(base, "tiny", EngineSettings(weight_dtype=weight_dtype, model_path="packed"))
    model = build_engine(copy.deepcopy(base), "tiny", EngineSettings(weight_dtype=weight_dtype))._model
    expected = base(input_ids=torch.tensor([[1, 2, 3]])).logits[0, -1]
    difference = (run_alone(model, [1, 2, 3])[0] - expected).abs().max() / (expected.max() - expected.min())
    assert 1e-5 < difference < bound


def test_a_gpu_without_a_compiler_gets_torchs_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Triton compiles what it launches kernels with, by the machine's own C compiler."""

    def fail(_: torch.Tensor) -> None:
        raise RuntimeError("Failed to find C compiler.\nAnd more.")

    monkeypatch.setattr(launch, "silu_mul", fail)
    gpu = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # there is no such device
    assert build._kernels(cast(PreTrainedModel, gpu), EngineSettings()) is TorchKernels
    assert "Failed to find C compiler" in caplog.text
    with pytest.raises(ConfigurationError, match="cuda:0: Failed to find C compiler") as info:
        build._kernels(cast(PreTrainedModel, gpu), EngineSettings(kernels="triton"))
    assert info.value.param == "engine_kernels"


def test_a_gpu_with_an_old_triton_gets_torchs_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(triton, "__version__", "3.1.0")
    monkeypatch.delitem(sys.modules, "reft_server.engine.cuda")
    gpu = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.bfloat16)
    assert build._kernels(cast(PreTrainedModel, gpu), EngineSettings()) is TorchKernels
    assert "Triton 3.1.0 is too old" in caplog.text
