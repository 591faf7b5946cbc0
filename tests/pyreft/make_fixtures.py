"""Checkpoints of every class on three tiny models, and the logits that pyreft itself computes with them.

    python tests/pyreft/make_fixtures.py tests/fixtures/pyreft

runs in pyreft's own environment (`make test-pyreft`) and writes one archive per architecture: `model/`, a folder per
checkpoint, and `expected.safetensors` with `<checkpoint>|<positions>` for the batch of `prompts`.
"""

from __future__ import annotations

import io
import logging
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from typing import Any

import stubs

stubs.install()

import pyreft  # noqa: E402
import pyvene as pv  # noqa: E402
import torch  # noqa: E402
from runs import PROMPT_LENGTHS, VOCAB_SIZE, prompts, run_batch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM  # noqa: E402

HIDDEN_SIZE = 32
RANK = 3
LAYERS = (0, 2)
_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
_GPT2 = {"vocab_size": VOCAB_SIZE, "n_embd": HIDDEN_SIZE, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_inner": 48}
MODELS = {"llama": _SHAPE, "qwen2": _SHAPE, "gpt2": _GPT2}
CLASSES = {
    "loreft": pyreft.LoreftIntervention,
    "noreft": pyreft.NoreftIntervention,
    "consreft": pyreft.ConsreftIntervention,
    "lobireft": pyreft.LobireftIntervention,
    "direft": pyreft.DireftIntervention,
    "nodireft": pyreft.NodireftIntervention,
}


def make_model(arch: str, folder: Path) -> Any:
    """Random weights, written in float16 and used in float32."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, **MODELS[arch], bos_token_id=None, eos_token_id=None, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape) * (0.3 if parameter.ndim > 1 else 0.1)
        parameter.data = noise if parameter.ndim > 1 else parameter.data + noise
    model.half().save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def make_intervention(name: str, **arguments: Any) -> Any:
    """One with random values, its R moved away from where it starts, as training moves it."""
    one = CLASSES[name](embed_dim=HIDDEN_SIZE, low_rank_dimension=RANK, dtype=torch.float32, add_bias=True, **arguments)
    with torch.no_grad():
        for parameter_name, parameter in one.named_parameters():
            if "parametrizations" in parameter_name:
                parameter += torch.randn(parameter.shape).tril(-1) * 0.2
            else:
                parameter.copy_(torch.randn(parameter.shape) * 0.4)
    return one.eval()


def attach(model: Any, rows: list[dict[str, Any]]) -> Any:
    reft = pyreft.get_reft_model(model, pyreft.ReftConfig(representations=rows), set_device=False)
    reft.eval()
    return reft


def rows_of(name: str, num_ends: int, **arguments: Any) -> list[dict[str, Any]]:
    return [
        {
            "layer": layer,
            "component": "block_output",
            "low_rank_dimension": RANK,
            "intervention": make_intervention(name, **arguments),
        }
        for _ in range(num_ends)
        for layer in LAYERS
    ]


def other_checkpoints() -> dict[str, list[dict[str, Any]]]:
    """On Llama alone: other components, a module path as component, an activation, and pyvene's constant rows."""
    row = torch.randn(HIDDEN_SIZE)
    constants = {"addition": pv.AdditionIntervention, "subtraction": pv.SubtractionIntervention,
                 "replacement": pv.VanillaIntervention, "zero": pv.ZeroIntervention}  # fmt: skip
    found: dict[str, list[dict[str, Any]]] = {
        component: [{"layer": 1, "component": component, "low_rank_dimension": RANK, "intervention":
                     make_intervention("loreft")}]
        for component in ("block_input", "mlp_input", "mlp_output", "attention_input", "attention_output")
    }  # fmt: skip
    moved = make_intervention("loreft")
    found["path"] = [{"component": "model.layers[1].mlp.output", "low_rank_dimension": RANK, "intervention": moved}]
    found["gelu"] = rows_of("loreft", 1, act_fn="gelu")
    for name, kind in constants.items():
        one = kind(embed_dim=HIDDEN_SIZE, source_representation=None if name == "zero" else row)
        found[name] = [{"layer": 1, "component": "block_output", "intervention": one}]
    return found


def make_checkpoints(arch: str, folder: Path) -> None:
    model = make_model(arch, folder / "model")
    expected = {}
    rows = prompts()
    torch.manual_seed(1)
    for name in CLASSES:
        for is_tied in (True, False):
            reft = attach(model, rows_of(name, 1 if is_tied else 2))
            checkpoint = f"{name}-{'tied' if is_tied else 'untied'}"
            reft.save(str(folder / checkpoint))
            for positions in ("f2", "l2", "f2+l3") if is_tied else ("f2+l3",):
                expected[f"{checkpoint}|{positions}"] = run_batch(reft, rows, positions, is_tied=is_tied)
    if arch == "llama":
        for name, representations in other_checkpoints().items():
            reft = attach(model, representations)
            reft.save(str(folder / name))
            expected[f"{name}|l2"] = run_batch(reft, rows, "l2", is_tied=True)
    ids = torch.cat(rows)
    save_file({"input_ids": ids, "lengths": torch.tensor(PROMPT_LENGTHS), **expected}, folder / "expected.safetensors")


def pack(folder: Path, archive: Path) -> None:
    """The same bytes for the same files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size = path.stat().st_size
            with path.open("rb") as file:
                tar.addfile(entry, file)
    archive.write_bytes(buffer.getvalue())


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for arch in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            make_checkpoints(arch, Path(folder))
            pack(Path(folder), target / f"{arch}.tar.xz")


if __name__ == "__main__":
    main()
