"""Train and score every method on every task; each run adds one record, and a second call goes on where it stopped.

Question: what do ReFT, LoRA, prefix and prompt tuning reach on the same rows, in which time and size?
Baseline: the base model by the likelihood of the labels, or by what it would write. Ceiling: accuracy 1.

    python -m benchmarks.methods.run --data-dir build/methods [--device cuda] [--tasks spam]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from benchmarks.machine import describe
from benchmarks.methods.methods import METHODS
from benchmarks.methods.peft_training import num_trained, train_peft
from benchmarks.methods.results import RECORDS, Run, append_record, chosen_rate, is_done, load_records, planned
from benchmarks.methods.scoring import Score, score
from benchmarks.methods.tasks import TASKS
from reft_interventions import load, save
from reft_interventions.hooks import Applied, site_edits
from reft_interventions.training import Dataset, Trainer, TrainingOptions, load_model, read_dataset

MODEL = "smollm2-135m-instruct"
BATCH_SIZE = 16


def num_epochs(run: Run) -> int:
    """One to choose a learning rate; else at least 48 steps, in at least 2 and at most 30 epochs."""
    return 1 if run.split == "dev" else max(2, min(30, math.ceil(48 * BATCH_SIZE / run.num_examples)))


class Runner:
    """Runs on one machine.

    Args:
        data_dir: what `benchmarks.methods.tasks` wrote.
        device: `cpu`, `cuda` or `cuda:N`.
    """

    def __init__(self, data_dir: Path, device: str) -> None:
        self._data_dir, self._device = data_dir, device

    def run(self, run: Run, records: list[dict[str, Any]]) -> dict[str, Any]:
        """Train, score, and describe."""
        model, tokenizer, _ = load_model(MODEL, self._device)
        model.eval().requires_grad_(False)
        held_out = self._rows(run.task, run.split, tokenizer)
        method, labels = METHODS[run.method], TASKS[run.task].labels
        if method.reft is None and method.peft is None:
            scored = score(model, tokenizer, held_out.examples, labels)
            return {**asdict(run), **_scored(scored, held_out)}
        lr = run.lr or chosen_rate(records, run.method)
        options = TrainingOptions(
            **(method.reft or {}),
            epochs=num_epochs(run),
            lr=lr,
            batch_size=min(BATCH_SIZE, run.num_examples),
            precision="bfloat16",
            seed=run.seed,
        )
        everything = self._rows(run.task, "train", tokenizer)
        data = replace(everything, examples=everything.examples[: run.num_examples])
        with tempfile.TemporaryDirectory() as scratch:
            train = self._train_reft if method.reft is not None else self._train_peft
            figures, scored = train(run, model, tokenizer, options, data, held_out, Path(scratch))
        return {
            **asdict(replace(run, lr=lr)),
            **_scored(scored, held_out),
            **figures,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "num_steps": options.epochs * math.ceil(len(data.examples) / options.batch_size),
            "num_train": len(data.examples),
            "precision": options.precision,
        }

    def _train_reft(
        self,
        run: Run,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TrainingOptions,
        data: Dataset,
        held_out: Dataset,
        scratch: Path,
    ) -> tuple[dict[str, Any], Score]:
        clock = _Clock(model.device)
        trainer = Trainer(model, tokenizer, options, data)
        result = trainer.run()
        seconds = clock.read()
        save(result.intervention_set, scratch / "set.safetensors")
        edits = site_edits(model, Applied(load(scratch / "set.safetensors")))
        scored = score(model, tokenizer, held_out.examples, TASKS[run.task].labels, edits)
        size = (scratch / "set.safetensors").stat().st_size
        return {"num_parameters": trainer.trainable.num_parameters, "file_bytes": size, **seconds}, scored

    def _train_peft(
        self,
        run: Run,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TrainingOptions,
        data: Dataset,
        held_out: Dataset,
        scratch: Path,
    ) -> tuple[dict[str, Any], Score]:
        method = METHODS[run.method]
        assert method.peft is not None
        clock = _Clock(model.device)
        adapted = train_peft(
            model,
            *method.peft,
            options,
            data,
            int(tokenizer.pad_token_id),
            starts_from_rows=method.starts_from_rows,
        )
        seconds = clock.read()
        adapted.model.save_pretrained(scratch)
        scored = score(adapted, tokenizer, held_out.examples, TASKS[run.task].labels)
        size = (scratch / "adapter_model.safetensors").stat().st_size
        return {"num_parameters": num_trained(adapted), "file_bytes": size, **seconds}, scored

    def _rows(self, task: str, split: str, tokenizer: PreTrainedTokenizerBase) -> Dataset:
        return read_dataset(self._data_dir / task / f"{split}.jsonl", tokenizer, max_length=128)


class _Clock:
    """Seconds since it was made, on the wall and of this process's threads."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()

    def read(self) -> dict[str, float]:
        wall, cpu = (round(now - then, 2) for now, then in zip(self._now(), self._start, strict=True))
        return {"train_wall_s": wall, "train_cpu_s": cpu}

    def _now(self) -> tuple[float, float]:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter(), time.process_time()


def _scored(scored: Score, held_out: Dataset) -> dict[str, Any]:
    return {"accuracy": scored.accuracy, "loss": scored.loss, "num_held_out": len(held_out.examples)}


def main() -> None:
    """Do what is planned and not done yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the file to read and add to")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=tuple(TASKS))
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=tuple(METHODS))
    arguments = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    runner, machine = Runner(arguments.data_dir, arguments.device), describe()
    for run in planned():
        records = load_records(arguments.records)
        is_wanted = run.task in arguments.tasks and run.method in arguments.methods
        if not is_wanted or is_done(run, records):
            continue
        record = runner.run(run, records) | {"device": arguments.device, "machine": machine}
        append_record(record, arguments.records)
        print(json.dumps({name: value for name, value in record.items() if name != "machine"}), flush=True)


if __name__ == "__main__":
    main()
