"""Fixtures shared by every test: tiny random base models and intervention sets for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

# Before transformers imports Triton: without a GPU its kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import HealthCheck, settings
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from reft_interventions import FORMULAS, BaseModelRef, InterventionSet, InterventionSpec, Manifest, base_model_spec
from reft_interventions.components import ROW_KINDS, is_head, whole_component
from reft_interventions.model_tree import site_width, use_exact_attention

from .postgres import Postgres, run_postgres
from .s3_server import CREDENTIALS, S3Server, run_s3_server

settings.register_profile(
    "long", max_examples=2000, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)

TinyModel = Callable[..., PreTrainedModel]
MakeSet = Callable[..., InterventionSet]

_LLAMA_SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
_GPT_SHAPE: dict[str, Any] = {"vocab_size": 128, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
_CONFIGS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "llama": {**_LLAMA_SHAPE, "tie_word_embeddings": True},
        "mistral": {**_LLAMA_SHAPE, "sliding_window": 5, "head_dim": 16},
        "qwen2": {**_LLAMA_SHAPE},
        "qwen3": {**_LLAMA_SHAPE, "head_dim": 16},
        "gemma": {**_LLAMA_SHAPE, "head_dim": 16},
        "gemma2": {
            **_LLAMA_SHAPE,
            "head_dim": 8,
            "sliding_window": 5,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 10.0,
        },
        "gemma3_text": {**_LLAMA_SHAPE, "head_dim": 8, "sliding_window": 5, "query_pre_attn_scalar": 8},
        "phi3": {**_LLAMA_SHAPE},
        "gpt2": {**_GPT_SHAPE, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 256, "n_inner": 64},
        "gpt_neox": {
            **_GPT_SHAPE,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    }
)
ARCHITECTURES = tuple(_CONFIGS)


def _build(arch: str, seed: int, **overrides: Any) -> PreTrainedModel:
    config = AutoConfig.for_model(arch, **{**_CONFIGS[arch], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            # Wider than the usual 0.02, and biases and norms not constant: greedy tokens then vary, and a
            # forgotten bias or norm shows.
            noise = torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 0.1)
            parameter.data = noise if parameter.ndim > 1 else parameter.data + noise
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    use_exact_attention(model)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model() -> TinyModel:
    """`tiny_model(arch, seed=0, **config_overrides)`: a random decoder, float32, vocabulary 128; cached, frozen."""
    built: dict[tuple[Any, ...], PreTrainedModel] = {}

    def get(arch: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
        key = (arch, seed, *sorted((name, repr(value)) for name, value in overrides.items()))
        if key not in built:
            built[key] = _build(arch, seed, **overrides).requires_grad_(False)
        return built[key]

    return get


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL server; a machine without one fails, because a skipped test would go unnoticed."""
    with run_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A real S3 server process."""
    with run_s3_server() as server:
        yield server


@pytest.fixture
def bucket_url(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket, and the right to use it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return s3_server.empty_bucket()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind that a server can have, in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'database.sqlite3'}"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.empty_database()


@pytest.fixture(params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each architecture that `tiny_model` knows, in turn."""
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def make_set() -> MakeSet:
    """`make_set(model, spec, ..., seed=0, dtype=float32, strength=1.0, name="tiny", stores_source=True)`.

    Each spec is a dict of `InterventionSpec` fields; layer 1, `block_output`, `loreft`, rank 4, `f1+l1`, the model's
    width, head 1 and untied parameters where it says nothing. Values are random and strong enough to change the tokens.
    Unless `stores_source`, a `dii` needs a source with every request.
    """

    def make(
        model: PreTrainedModel,
        *specs: Mapping[str, Any],
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        strength: float = 1.0,
        name: str = "tiny",
        stores_source: bool = True,
    ) -> InterventionSet:
        base = base_model_spec(model, "tiny")
        completed = tuple(_complete_spec(model, spec, index) for index, spec in enumerate(specs or ({},)))
        manifest = Manifest(
            name=name,
            base_model=BaseModelRef(
                id="tiny", fingerprint=base.fingerprint, hidden_size=base.hidden_size, num_layers=base.num_layers
            ),
            interventions=completed,
        )
        generator = torch.Generator().manual_seed(seed)
        groups = [_random_group(spec, base.hidden_size, generator, strength) for spec in manifest.parameter_groups]
        for spec, group in zip(manifest.parameter_groups, groups, strict=True):
            if spec.formula == "dii" and stores_source:
                group["source"] = strength * torch.randn(spec.row_size(base.hidden_size), generator=generator)
        return InterventionSet.create(
            manifest, [{key: value.to(dtype) for key, value in group.items()} for group in groups]
        )

    return make


def _complete_spec(model: PreTrainedModel, spec: Mapping[str, Any], index: int) -> InterventionSpec:
    formula = FORMULAS[spec.get("formula", "loreft")]
    defaults = {
        "layer": 1,
        "component": "block_output",
        "formula": formula.id,
        "low_rank_dimension": 4 if formula.has_low_rank else 0,
        "positions": "f1+l1",
        "parameters": index,
    }
    component = spec.get("component", "block_output")
    if is_head(component):
        defaults["head"] = 1
    if ROW_KINDS[whole_component(component)] != "hidden":
        defaults["width"] = site_width(model, component)
    return InterventionSpec(**{**defaults, **spec})


def _random_group(
    spec: InterventionSpec, hidden_size: int, generator: torch.Generator, strength: float
) -> dict[str, torch.Tensor]:
    width = spec.row_size(hidden_size)
    group = FORMULAS[spec.formula].initial_parameters(width, spec.low_rank_dimension, generator)
    for name, value in group.items():
        if name != "rotate_layer":
            group[name] = value + strength * torch.randn(value.shape, generator=generator) * 0.5
    return group


@pytest.fixture
def restored_logging() -> Iterator[None]:
    """Put the root logger back as pytest had it."""
    root = logging.getLogger()
    saved = (root.level, root.handlers[:])
    own = {name: logging.getLogger(name).level for name in ("reft_server", "reft_interventions", "py.warnings")}
    yield
    logging.captureWarnings(False)
    root.setLevel(saved[0])
    root.handlers[:] = saved[1]
    for name, level in own.items():
        logging.getLogger(name).setLevel(level)
