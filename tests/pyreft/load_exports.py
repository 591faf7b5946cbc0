"""Load folders that `reft export` wrote with pyreft's own `ReftModel.load`, and write the logits that it computes.

    python tests/pyreft/load_exports.py FOLDER

runs in pyreft's environment. FOLDER holds `model/`, the exported folders, and `cases.json`, which maps each to its
positions (null = every token) and whether it is tied; the logits go to `FOLDER/loaded.safetensors`.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import warnings
from pathlib import Path

import stubs

stubs.install()

import pyreft  # noqa: E402
import torch  # noqa: E402
from runs import prompts, run_batch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

LINEAR = (
    pyreft.LoreftIntervention,
    pyreft.NoreftIntervention,
    pyreft.DireftIntervention,
    pyreft.NodireftIntervention,
)


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    folder = Path(sys.argv[1])
    # Two arguments that pyreft's files don't record: without add_bias two of its classes can't be loaded at all, and
    # without dtype W and b become bfloat16. The exported sets of this check have no b2.
    for kind in LINEAR:
        kind.__init__ = functools.partialmethod(kind.__init__, dtype=torch.float32, add_bias=False)
    logits = {}
    for name, (positions, is_tied) in json.loads((folder / "cases.json").read_text()).items():
        model = AutoModelForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32, attn_implementation="eager"
        ).eval()
        reft = pyreft.ReftModel.load(str(folder / name), model)
        reft.eval()
        logits[name] = run_batch(reft, prompts(), positions, is_tied=is_tied)
    save_file(logits, folder / "loaded.safetensors")


if __name__ == "__main__":
    main()
