"""From a transformers model to a running engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reft_interventions.errors import UnsupportedComponentError
from reft_interventions.model_tree import base_model_spec
from reft_interventions.user_folders import default_cache_dir
from reft_server.errors import ConfigurationError, UnsupportedModelError

from .checks import check_exact, reference_logits, run_largest_step
from .device import cache_sizes, measure_memory, use_device
from .engine import LocalEngine
from .generic_model import GenericModel
from .kernels import AttentionShape, Kernels, TorchKernels
from .kv_memory import BLOCK_SIZE
from .llama_shape import can_pack
from .native import NativeUnavailableError, load_library
from .native_model import NativeModel
from .packed_model import PackedModel
from .settings import EngineSettings
from .single import Model
from .types import ModelInfo

if TYPE_CHECKING:
    from .cuda import GraphedModel

logger = logging.getLogger(__name__)


_NAMES = {NativeModel: "native", PackedModel: "packed", GenericModel: "generic"}


def build_engine(
    model: PreTrainedModel,
    model_id: str,
    settings: EngineSettings,
    *,
    cache_dir: Path | None = None,
    reserved_bytes: int = 0,
) -> LocalEngine:
    """Take a frozen model over, check that it is served exactly, and return the engine, not started yet.

    Args:
        model: in eval mode, on its device. The native and packed paths free its weights: don't use it afterwards.
        cache_dir: where compiled kernels are kept; None = the user's cache folder.
        reserved_bytes: of a GPU's memory, what the caches leave for interventions.

    Raises:
        UnsupportedModelError: the architecture can't be served exactly.
        ConfigurationError: `max_model_len` or `kv_cache_bytes` can't work with this model on this device, or
            `model_path` is native and the kernels can't be compiled here.
    """
    try:
        info = _model_info(model, model_id, settings)
    except UnsupportedComponentError as error:
        raise UnsupportedModelError(f"{type(model).__name__} can't be served: {error.message}") from error
    model.requires_grad_(False)
    use_device(model.device)
    reference = reference_logits(model, info.vocab_size)
    path = _model_path(model, info, settings, cache_dir or default_cache_dir())
    paged = path if isinstance(path, PackedModel) and path.kernels.is_paged else None
    for name, choice in (("attention", settings.attention), ("products", settings.products)):
        if choice != "auto" and paged is None:
            raise ConfigurationError(
                f"{name}={choice} needs the packed path with Triton's kernels (device=cuda, kernels=auto)",
                param=f"engine_{name}",
            )
    served: Model = path
    graphed: GraphedModel | None = None
    if paged is not None and settings.decode_graphs and model.device.type == "cuda":
        from .cuda import GraphedModel  # imports Triton, which is there: the kernels are its own

        served = graphed = GraphedModel(paged, max_num_seqs=settings.max_num_seqs, max_model_len=info.max_model_len)
        if settings.products == "auto":
            graphed.choose_products()
    check_exact(served, reference, info.vocab_size, type(model).__name__, settings.weight_dtype)
    logger.info(
        "model ready path=%s kernels=%s dtype=%s device=%s max_model_len=%d",
        _NAMES[type(path)],
        path.kernels.name if isinstance(path, PackedModel) else "own",
        info.dtype,
        info.device,
        info.max_model_len,
    )
    memory = measure_memory(model.device, lambda: run_largest_step(served, info, settings))
    min_bytes = served.kv_layout.bytes_per_token * BLOCK_SIZE
    sizes = cache_sizes(settings, memory, min_bytes=min_bytes, reserved_bytes=reserved_bytes)
    logger.info("cache sizes kv_bytes=%d prefix_bytes=%d", sizes.kv_bytes, sizes.prefix_bytes)
    try:
        engine = LocalEngine(served, info, settings, sizes)
        if graphed is not None:
            graphed.prepare(engine.kv_cache)
    except torch.OutOfMemoryError as error:
        raise ConfigurationError(
            "The GPU's memory ended while its caches and decode graphs were made: lower --engine-kv-cache-bytes, "
            "--engine-device-memory-share or --engine-max-num-seqs.",
            param="engine_kv_cache_bytes",
        ) from error
    return engine


def _model_path(
    model: PreTrainedModel, info: ModelInfo, settings: EngineSettings, cache_dir: Path
) -> NativeModel | PackedModel | GenericModel:
    if settings.weight_dtype != "model" and settings.model_path not in ("auto", "native"):
        raise ConfigurationError(
            f"weight_dtype={settings.weight_dtype} needs model_path=native", param="engine_weight_dtype"
        )
    wanted = "native" if settings.weight_dtype != "model" else settings.model_path
    if wanted in ("packed", "native") and not can_pack(model):
        raise UnsupportedModelError(f"{type(model).__name__} has no {wanted} path; use model_path=generic")
    if wanted == "native" and not _is_float32_on_cpu(model):
        raise ConfigurationError("model_path=native needs dtype=float32 and device=cpu", param="engine_model_path")
    if wanted == "generic" or not can_pack(model):
        return GenericModel(model)
    if wanted != "packed" and settings.kernels != "triton" and _is_float32_on_cpu(model):
        try:
            library = load_library(cache_dir)
        except NativeUnavailableError as error:
            if wanted == "native":
                raise ConfigurationError(f"model_path=native: {error}", param="engine_model_path") from error
            logger.warning("native kernels unavailable, the packed path serves reason=%s", error)
        else:
            return NativeModel(
                model,
                info.max_model_len,
                library,
                weight_dtype=settings.weight_dtype,
                num_threads=settings.num_threads,
            )
    return PackedModel(model, info.max_model_len, _kernels(model, settings))


def _kernels(model: PreTrainedModel, settings: EngineSettings) -> Callable[[AttentionShape, Tensor], Kernels[Any]]:
    """Triton's on a GPU, or where they are asked for and the interpreter can run them."""
    if settings.kernels == "torch" or (settings.kernels == "auto" and model.device.type != "cuda"):
        return TorchKernels
    try:
        # An import of Triton, which most machines don't have.
        from .cuda import (
            DEFAULT_TILE,
            KernelsUnavailableError,
            Products,
            TritonKernels,
            check_launch,
            choose_attention,
        )
    except ImportError as error:
        return _without_triton(settings, error)
    if model.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigurationError(
            "kernels=triton needs device=cuda, or TRITON_INTERPRET=1 to try them slowly", param="engine_kernels"
        )

    try:
        check_launch(model.device)
    except KernelsUnavailableError as error:
        return _without_triton(settings, error)

    def make(shape: AttentionShape, rotary: Tensor) -> Kernels[Any]:
        attention = choose_attention(settings.attention, shape, model.dtype, model.device)
        products = Products(DEFAULT_TILE if settings.products == "triton" else None)
        return TritonKernels(shape, rotary, attention, products)

    return make


def _without_triton(settings: EngineSettings, error: Exception) -> type[TorchKernels]:
    if settings.kernels == "triton":
        raise ConfigurationError(f"kernels=triton: {error}", param="engine_kernels") from error
    logger.warning("triton unavailable, torch's kernels serve reason=%s", error)
    return TorchKernels


def _is_float32_on_cpu(model: PreTrainedModel) -> bool:
    return model.dtype == torch.float32 and model.device.type == "cpu"


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
        row_sizes=spec.row_sizes,
        vocab_size=int(model.config.get_text_config().vocab_size),
        max_model_len=settings.max_model_len or window,
        eos_token_ids=frozenset(eos_ids),
        dtype=str(model.dtype).removeprefix("torch."),
        device=str(model.device),
    )
