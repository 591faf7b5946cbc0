"""ReFT folders of the `adapters` library on a tiny Llama, and the logits that it computes with them.

    python tests/pyreft/make_adapter_fixtures.py tests/fixtures/adapters

needs `adapters==1.3.0`, which wants transformers 4.57, besides what `make_fixtures.py` needs; it writes `llama.tar.xz`.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import adapters
import torch
from adapters import DiReftConfig, LoReftConfig, NoReftConfig
from make_fixtures import make_model, pack
from runs import PROMPT_LENGTHS, prompts
from safetensors.torch import save_file

CHECKPOINTS = {
    "loreft": LoReftConfig(r=2, prefix_positions=2, suffix_positions=3),
    "loreft-prefix": LoReftConfig(r=2, prefix_positions=2, layers=[0, 2]),
    "noreft-tied": NoReftConfig(r=2, prefix_positions=2, suffix_positions=2, tied_weights=True),
    "direft-suffix": DiReftConfig(r=2, prefix_positions=0, suffix_positions=2, non_linearity="relu", layers=[1]),
}
LONG = 3  # the first prompts: long enough that neither end is cut


def run_batch(model: torch.nn.Module, rows: list[torch.Tensor]) -> torch.Tensor:
    """The logits of every prompt token of one left-padded batch."""
    width = max(len(row) for row in rows)
    input_ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        input_ids[index, width - len(row) :], mask[index, width - len(row) :] = row, 1
    position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=input_ids, attention_mask=mask, position_ids=position_ids).logits
    return torch.cat([logits[index, width - len(row) :] for index, row in enumerate(rows)])


def make(folder: Path) -> None:
    model = make_model("llama", folder / "model")
    adapters.init(model)
    torch.manual_seed(2)
    expected, rows = {}, prompts()
    for name, config in CHECKPOINTS.items():
        model.add_adapter(name, config=config)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if f".refts.{name}." in parameter_name:
                    is_rotation = "parametrizations" in parameter_name
                    noise = torch.randn(parameter.shape)
                    parameter += noise.T.tril(-1).T * 0.2 if is_rotation else noise * 0.4
        (folder / name).mkdir()
        model.save_adapter(str(folder / name), name, use_safetensors=name == "noreft-tied", with_head=False)
        model.set_active_adapters(name)
        model.eval()
        expected[f"{name}|long"] = run_batch(model, rows[:LONG])
        expected[f"{name}|alone"] = torch.cat([run_batch(model, [row]) for row in rows])
    ids = torch.cat(rows)
    save_file({"input_ids": ids, "lengths": torch.tensor(PROMPT_LENGTHS), **expected}, folder / "expected.safetensors")


def main() -> None:
    warnings.simplefilter("ignore")
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder))
        pack(Path(folder), target / "llama.tar.xz")


if __name__ == "__main__":
    main()
