"""From a transformers model to a running engine."""

from __future__ import annotations

import logging

from transformers import PreTrainedModel

from reft_interventions.errors import UnsupportedComponentError
from reft_interventions.model_tree import base_model_spec
from reft_server.errors import ConfigurationError, UnsupportedModelError

from .checks import check_exact, reference_logits
from .engine import LocalEngine
from .generic_model import GenericModel
from .packed_model import PackedModel, can_pack
from .settings import EngineSettings
from .single import Model
from .types import ModelInfo

logger = logging.getLogger(__name__)


def build_engine(model: PreTrainedModel, model_id: str, settings: EngineSettings) -> LocalEngine:
    """Take a frozen model over, check that it is served exactly, and return the engine, not started yet.

    Args:
        model: in eval mode, on its device. The packed path frees its linear weights: don't use it afterwards.

    Raises:
        UnsupportedModelError: the architecture can't be served exactly.
        ConfigurationError: `max_model_len` or `kv_cache_bytes` can't work with this model.
    """
    try:
        info = _model_info(model, model_id, settings)
    except UnsupportedComponentError as error:
        raise UnsupportedModelError(f"{type(model).__name__} can't be served: {error.message}") from error
    model.requires_grad_(False)
    reference = reference_logits(model, info.vocab_size)
    path = _model_path(model, info, settings)
    name = "packed" if isinstance(path, PackedModel) else "generic"
    check_exact(path, reference, info.vocab_size, type(model).__name__)
    logger.info(
        "model ready path=%s dtype=%s device=%s max_model_len=%d", name, info.dtype, info.device, info.max_model_len
    )
    return LocalEngine(path, info, settings)


def _model_path(model: PreTrainedModel, info: ModelInfo, settings: EngineSettings) -> Model:
    if settings.model_path == "packed" and not can_pack(model):
        raise UnsupportedModelError(f"{type(model).__name__} has no packed path; use model_path=generic")
    if settings.model_path != "generic" and can_pack(model):
        return PackedModel(model, info.max_model_len)
    return GenericModel(model)


def _model_info(model: PreTrainedModel, model_id: str, settings: EngineSettings) -> ModelInfo:
    spec = base_model_spec(model, model_id)
    window = int(model.config.get_text_config().max_position_embeddings)
    if settings.max_model_len is not None and settings.max_model_len > window:
        raise ConfigurationError(f"max_model_len can be at most {window} for {model_id}", param="max_model_len")
    generation_config = model.generation_config
    eos = generation_config.eos_token_id if generation_config is not None else model.config.eos_token_id
    eos_ids = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return ModelInfo(
        model_id=model_id,
        fingerprint=spec.fingerprint,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        vocab_size=int(model.config.get_text_config().vocab_size),
        max_model_len=settings.max_model_len or window,
        eos_token_ids=frozenset(eos_ids),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
    )
