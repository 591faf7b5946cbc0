"""HF `generate` in a process of its own: both ends of its pipe."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from benchmarks.pausable import PausableProcess


class HFGenerate(PausableProcess):
    """The process that runs this module: one static batch at a time, no HTTP."""

    def __init__(self, model_path: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.hf_worker", str(model_path)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def generate_s(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Seconds of `generate` on prompts of one length, as one batch."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        super().close()


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
