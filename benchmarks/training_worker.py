"""Our side of `benchmarks.training`, in a process of its own.

    python -m benchmarks.training_worker MODEL_FOLDER POSITIONS BATCH_SIZE PREFIX_CACHE_MB

The same lines in and out as `benchmarks.pyreft_worker`, and `prepare_seconds`: what filling the prefix cache took.
"""

from __future__ import annotations

import json
import sys
import time

from benchmarks.resident import peak_bytes, reset_peak
from reft_interventions.training import Dataset, TokenizedExample, Trainer, TrainingOptions, load_model
from reft_interventions.training.reporting import SilentReporter


class StepTimes(SilentReporter):
    """When the steps began and ended."""

    def __init__(self) -> None:
        self.started_s = self.ended_s = 0.0

    def started(self, *_: object) -> None:
        self.started_s = time.perf_counter()

    def stepped(self, *_: object) -> None:
        self.ended_s = time.perf_counter()


def main() -> None:
    folder, positions, batch_size, prefix_cache_mb = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    model, tokenizer, _ = load_model(folder)
    options = TrainingOptions(
        positions=positions, batch_size=batch_size, epochs=1, prefix_cache_mb=prefix_cache_mb, max_length=2048
    )
    for line in sys.stdin:
        rows = json.loads(line)["rows"]
        examples = tuple(TokenizedExample(tuple(prompt), tuple(answer), 0) for prompt, answer in rows)
        trainer = Trainer(model, tokenizer, options, Dataset(examples, 0, ""))
        times = StepTimes()
        reset_peak()
        began_s = time.perf_counter()
        losses = trainer.run(times).progress.losses
        result = {
            "seconds": times.ended_s - times.started_s,
            "prepare_seconds": times.started_s - began_s,
            "num_steps": len(losses),
            "peak_bytes": peak_bytes(),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
