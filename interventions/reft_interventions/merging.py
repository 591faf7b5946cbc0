"""A LoRA or DoRA folder of PEFT's merged into a base model, which then is the frozen one."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from .errors import AdapterError

logger = logging.getLogger(__name__)

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"


def merged_model_id(model_id: str, folder: Path) -> str:
    """What to call a base model with the adapter of `folder` merged in: `model+folder`."""
    return f"{model_id}+{folder.expanduser().resolve().name}"


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add a LoRA's or DoRA's delta to the weights it was trained for; the model's fingerprint changes with them.

    Args:
        model: the base model that the adapter was trained on, in any dtype; it is changed.
        folder: what PEFT's `save_pretrained` wrote: `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The same architecture without anything of PEFT's in it.

    Raises:
        AdapterError: PEFT is not installed, the folder holds no LoRA in safetensors, the adapter has tensors for which
            the model has no place, or of other shapes, or it changes an embedding that is the output head too.
    """
    folder = folder.expanduser()
    _check_config(folder)
    names = _tensor_names(folder)
    try:
        import peft
    except ImportError as error:
        raise AdapterError(
            "Merging a LoRA needs the package peft: pip install 'reft-serve[lora]'", param="merge_lora"
        ) from error
    with warnings.catch_warnings():
        # What PEFT warns of is checked below, and raised; the rest is about its own future.
        warnings.simplefilter("ignore")
        try:
            adapted: Any = peft.PeftModel.from_pretrained(model, str(folder), torch_device=str(model.device))
            _check_head(adapted, folder)
            _check_is_whole(set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)), names, folder)
            merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
        except (ValueError, RuntimeError, KeyError, TypeError, NotImplementedError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise AdapterError(
                f"The adapter in {folder} does not fit the base model: {reason}. Name the model it was trained on.",
                param="merge_lora",
            ) from error
    logger.info("adapter_merge path=%s num_tensors=%d", folder, len(names))
    merged.eval().requires_grad_(False)
    return merged


def _check_config(folder: Path) -> None:
    """Refuse what is no LoRA folder before PEFT sees it: PEFT would look for a missing file on the hub."""
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(
            f"{folder} holds no {CONFIG_NAME}: name a folder that PEFT's save_pretrained wrote.", param="merge_lora"
        ) from error
    except ValueError as error:
        raise AdapterError(f"{folder / CONFIG_NAME} is not valid JSON.", param="merge_lora") from error
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LORA":
        raise AdapterError(
            f"{folder} holds an adapter of the type {kind!r}: only LORA, with DoRA as its option, can be merged.",
            param="merge_lora",
        )


def _tensor_names(folder: Path) -> set[str]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise AdapterError(
            f"{folder} holds no {WEIGHTS_NAME}: pickled adapters are not read. Save it again with a newer PEFT.",
            param="merge_lora",
        )
    try:
        with safe_open(path, framework="pt") as file:
            # A copy of an adapted embedding may lie beside its adapter.
            return {name for name in file.keys() if ".base_layer." not in name}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is not a safetensors file: {error}", param="merge_lora") from error


def _check_is_whole(expected: set[str], given: set[str], folder: Path) -> None:
    """PEFT leaves tensors out in silence, for instance those of layers that the model does not have."""
    if expected != given:
        example = sorted(expected ^ given)[0]
        raise AdapterError(
            f"The adapter in {folder} does not fit the base model: it has {len(given - expected)} tensors too many and "
            f"lacks {len(expected - given)}, for instance {example}. Name the model it was trained on.",
            param="merge_lora",
        )


def _check_head(adapted: Any, folder: Path) -> None:
    """One matrix that is both embedding and output head can't take the delta of only one of them."""
    model = adapted.get_base_model()
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    is_adapted = any(hasattr(end, "base_layer") or hasattr(end, "original_module") for end in ends)
    if is_adapted and model.config.get_text_config().tie_word_embeddings:
        raise AdapterError(
            f"The adapter in {folder} changes the embedding or the output head, which are one matrix in this model: "
            "train it without them.",
            param="merge_lora",
        )
