"""HF `generate` in a process of its own: one static batch per line read, its seconds per line written."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def main() -> None:
    """Read JSON lines `{"prompts": [[ids]], "max_tokens": n}`; write the seconds of each."""
    model = AutoModelForCausalLM.from_pretrained(Path(sys.argv[1]), dtype=torch.float32).eval()
    for line in sys.stdin:
        job = json.loads(line)
        prompts = torch.tensor(job["prompts"])
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=job["max_tokens"],
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        seconds = time.perf_counter() - started
        sys.stdout.write(f"{seconds}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
