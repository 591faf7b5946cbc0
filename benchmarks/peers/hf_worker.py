"""HF `generate`, and PEFT's mixed batches on it: `python -m benchmarks.peers.hf_worker MODEL_FOLDER [ADAPTERS_FOLDER]`.

One static batch without HTTP. With adapters, each folder in ADAPTERS_FOLDER is a LoRA, named as the folder.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.peers.worker_loop import serve_jobs

BASE = "__base__"
"""PEFT's word for a row without an adapter."""


def generate(model: Any, prompts: list[list[int]], num_new_tokens: int, **arguments: Any) -> None:
    """Greedy, exactly so many tokens for every prompt; prompts have one length."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_new_tokens,
            min_new_tokens=num_new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            **arguments,
        )


def load_loras(model: Any, folders: list[Path]) -> Any:
    """PEFT's model with every adapter; all have one configuration.

    PEFT's loader walks over the model and all that is loaded for each adapter: 512 of them took more than five minutes.
    So only the first goes through it; the others join its layers as copies of the first with weights of their own.
    """
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    first = folders[0].name
    with_loras = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=first)
    layers = {path: module for path, module in with_loras.named_modules() if isinstance(module, LoraLayer)}
    for folder in folders[1:]:
        with_loras.peft_config[folder.name] = with_loras.peft_config[first]
        tensors = load_file(folder / "adapter_model.safetensors")
        for path, layer in layers.items():
            settings = (layer.r, layer.lora_alpha, layer.scaling, layer.lora_bias, layer.use_rslora, layer.use_dora)
            for by_adapter in (*settings, layer.lora_dropout):
                by_adapter[folder.name] = by_adapter[first]
            for part, weights in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B)):
                weights[folder.name] = copy.deepcopy(weights[first])
                weights[folder.name].weight.data.copy_(tensors[f"{path}.{part}.weight"])
    return with_loras.eval()


def make_run(model: Any, *, has_loras: bool) -> Callable[[list[list[int]], int, list[str | None]], None]:
    def run(prompts: list[list[int]], num_new_tokens: int, adapters: list[str | None]) -> None:
        chosen = set(adapters)
        if not has_loras:
            generate(model, prompts, num_new_tokens)
        elif chosen == {None}:
            with model.disable_adapter():
                generate(model, prompts, num_new_tokens)
        elif len(chosen) == 1:  # PEFT's fast way: no batch is split
            model.set_adapter(adapters[0])
            generate(model, prompts, num_new_tokens)
        else:
            generate(model, prompts, num_new_tokens, adapter_names=[adapter or BASE for adapter in adapters])

    return run


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(Path(sys.argv[1]), dtype=torch.float32).eval()
    if len(sys.argv) == 2:
        serve_jobs(version("transformers"), make_run(model, has_loras=False))
    else:
        model = load_loras(model, sorted(Path(sys.argv[2]).iterdir()))
        serve_jobs(version("peft"), make_run(model, has_loras=True))


if __name__ == "__main__":
    main()
