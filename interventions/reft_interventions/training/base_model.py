"""Find and load the base model to train on: a local folder, a hub id, or the default model that the server fetched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import TrainingError
from ..model_tree import use_exact_attention
from ..user_folders import DEFAULT_MODEL, default_cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def locate_model(name: str) -> tuple[str, str]:
    """The folder or hub id to load, and the model's name for the manifest.

    Raises:
        TrainingError: there is no such folder, or the default model has not been fetched yet.
    """
    if name.lower() != DEFAULT_MODEL or Path(name).is_dir():
        folder = Path(name).expanduser()
        if folder.is_dir():
            return str(folder), folder.resolve().name
        if name.count("/") != 1 or name.startswith((".", "~", "/")):
            raise TrainingError(
                f"the model {name!r} is neither a folder, nor a Hugging Face id (organisation/name), "
                f"nor {DEFAULT_MODEL!r}",
                param="model",
            )
        return name, name
    models = _cache_folder() / "models"
    folders = sorted(path for path in models.glob(f"{DEFAULT_MODEL}-*") if (path / "config.json").is_file())
    if not folders:
        raise TrainingError(
            f"the default model is not in {models}; fetch it with `reft-serve --fetch-only`, or name a folder",
            param="model",
        )
    return str(folders[-1]), DEFAULT_MODEL


def load_model(
    name: str, device: str = "cpu", merge_lora: Path | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """The model in float32, with a LoRA merged in if one is named, its tokenizer, and its name for the manifest.

    Raises:
        TrainingError: it can't be found or loaded.
        AdapterError: `merge_lora` can't be merged into it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer  # takes seconds; `locate_model` needs none of it

    from ..merging import merge_adapter, merged_model_id

    source, model_id = locate_model(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"the model {name!r} can't be loaded: {first_line}", param="model") from error
    use_exact_attention(model)
    model.to(torch.device(device))  # type: ignore[arg-type]  # transformers wraps `to` without its types
    if merge_lora is not None:
        model, model_id = merge_adapter(model, merge_lora), merged_model_id(model_id, merge_lora)
    return model, tokenizer, model_id


def _cache_folder() -> Path:
    configured = os.environ.get("REFT_CACHE_DIR")
    return Path(configured).expanduser() if configured else default_cache_dir()
