"""The training loop: a frozen base model, live interventions at the positions that the server will edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import TrainingError
from ..intervention_set import InterventionSet
from ..model_tree import base_model_spec
from .batches import Batch, collate, epoch_order
from .checkpoint import Progress, load_checkpoint, run_key, save_checkpoint
from .das import SourceRows
from .data import Dataset
from .loss import Edits, Evaluation, answer_loss, evaluate
from .options import TrainingOptions
from .prefix_cache import PrefixCache, is_worthwhile, num_unedited
from .reporting import Reporter, SilentReporter
from .run_manifest import HeldOut, SetDescription, build_manifest
from .schedule import build_optimizer, learning_rate
from .trainable import TrainableSet


@dataclass(frozen=True)
class TrainingResult:
    """The trained set and what was measured on the way; evaluations are None without held-out rows."""

    intervention_set: InterventionSet
    progress: Progress
    before: Evaluation | None
    after: Evaluation | None
    orthonormality_error: float


class Trainer:
    """One run. `train` is the short way to use it.

    Args:
        model: the base model; it is frozen here and never changed.
        tokenizer: its tokenizer, for the padding id.
        options: what to train.
        data: rows to learn.
        evaluation: held-out rows, or None.
        checkpoint: where to write checkpoints and find the one to continue.

    Raises:
        TrainingError: the options don't fit the model or the rows, or they need held-out rows and there are none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: TrainingOptions,
        data: Dataset,
        evaluation: Dataset | None = None,
        *,
        model_id: str = "",
        checkpoint: Path | None = None,
    ) -> None:
        if options.patience is not None and evaluation is None:
            raise TrainingError("early stopping needs held-out rows: --eval-data or --eval-fraction", param="patience")
        if options.save_every and checkpoint is None:
            raise TrainingError("checkpoints need a path", param="save_every")
        self._model = model.eval().requires_grad_(False)
        self._base = base_model_spec(model, model_id)
        self._options, self._data, self._evaluation = options, data, evaluation
        self._checkpoint = checkpoint
        self.trainable = TrainableSet(options, self._base, model.device)
        self._all_examples = (*data.examples, *(evaluation.examples if evaluation else ()))
        self.trainable.check_examples(self._all_examples)
        self._optimizer = build_optimizer(self.trainable, options)
        self._progress = Progress()
        self._best: dict[str, Tensor] | None = None
        self._latest: tuple[int, Evaluation] | None = None
        self._pad_token_id = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0
        )
        self._prefixes: PrefixCache | None = None
        self._lengths = [example.num_tokens for example in data.examples]
        self._rows_per_step = options.batch_size * options.gradient_accumulation
        self._num_steps = options.epochs * math.ceil(len(data.examples) / self._rows_per_step)
        eval_sha256 = evaluation.sha256 if evaluation else None
        self._key = run_key(options, data.sha256, eval_sha256, self._base.fingerprint)

    def resume(self) -> None:
        """Continue from the checkpoint.

        Raises:
            TrainingError: there is none, it is damaged, or it belongs to another run.
        """
        if self._checkpoint is None:
            raise TrainingError("resuming needs a checkpoint's path", param="resume")
        self._progress, self._best = load_checkpoint(self._checkpoint, self._key, self.trainable, self._optimizer)

    def run(self, reporter: Reporter | None = None, description: SetDescription | None = None) -> TrainingResult:
        """Train to the end.

        Raises:
            TrainingError: the loss is not finite, or a checkpoint can't be written.
        """
        reporter = reporter or SilentReporter()
        if self.trainable.is_interchange:
            self.trainable.use_sources(self._build_sources(reporter))
        # An interchange begins with a random subspace, which is what the learned one is compared with.
        before = self._evaluate(reporter, "before", with_edits=self.trainable.is_interchange)
        self._prefixes = self._build_prefixes(reporter)
        reporter.started(self._num_steps, self._progress.step, self.trainable.num_parameters)
        while self._progress.epoch < self._options.epochs and not self._is_stopped():
            self._run_epoch(reporter)
        after = self._finish(reporter)
        held_out = HeldOut(self._evaluation, before, after) if self._evaluation and before and after else None
        manifest = build_manifest(
            description or SetDescription(),
            self._base,
            self.trainable.specs,
            self._options,
            self._data,
            self._progress,
            held_out,
        )
        return TrainingResult(
            self.trainable.to_intervention_set(manifest),
            self._progress,
            before,
            after,
            self.trainable.orthonormality_error(),
        )

    def _run_epoch(self, reporter: Reporter) -> None:
        options, progress = self._options, self._progress
        order = epoch_order(self._lengths, self._rows_per_step, options.seed, progress.epoch)
        for indices in order[progress.step_in_epoch :]:
            loss, num_tokens = self._step(indices)
            progress.step += 1
            progress.step_in_epoch += 1
            progress.losses.append(loss)
            reporter.stepped(progress.step, loss, num_tokens)
            if options.save_every and progress.step % options.save_every == 0:
                self._save()
        progress.epoch += 1
        progress.step_in_epoch = 0
        if options.eval_every and progress.epoch % options.eval_every == 0:
            self._look_at_held_out_rows(reporter)
        if options.save_every:
            self._save()

    def _step(self, indices: Sequence[int]) -> tuple[float, int]:
        """One optimizer step on these rows; the loss per answer token and the tokens read."""
        size = self._options.batch_size
        batches = [self._batch(indices[start : start + size]) for start in range(0, len(indices), size)]
        loss = self._backward(batches)
        parameters = list(self.trainable.named_parameters().values())
        self.trainable.project_gradients()
        torch.nn.utils.clip_grad_norm_(parameters, self._options.max_grad_norm)
        rate = learning_rate(self._progress.step, self._num_steps, self._options)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.trainable.retract()
        return loss, sum(batch.num_tokens for batch in batches)

    def _batch(self, indices: Sequence[int]) -> Batch:
        if self._prefixes is not None:
            return self._prefixes.batch(indices)
        return collate([self._data.examples[index] for index in indices], self._pad_token_id)

    def _build_prefixes(self, reporter: Reporter) -> PrefixCache | None:
        """Keys and values that no step changes, where keeping them pays."""
        examples, options = self._data.examples, self._options
        rules = [spec.intervention_positions for spec in self.trainable.specs]
        lengths = [num_unedited(rules, len(example.prompt_ids)) for example in examples]
        if not is_worthwhile(self._model, lengths, examples, options.prefix_cache_mb * 10**6):
            return None
        reporter.preparing(sum(lengths))
        with self._precision():
            return PrefixCache(self._model, examples, lengths, self._pad_token_id, options.batch_size)

    def _build_sources(self, reporter: Reporter) -> SourceRows:
        examples = self._all_examples
        reporter.preparing(sum(len(example.source_ids or ()) for example in examples))
        specs, size = self.trainable.specs, self._options.batch_size
        return SourceRows(self._model, specs, examples, self._pad_token_id, size)

    def _dropout_generator(self) -> torch.Generator | None:
        """A step's own, so that a resumed run drops what an uninterrupted one drops."""
        if not self._options.dropout:
            return None
        return torch.Generator().manual_seed(self._options.seed * 1_000_003 + self._progress.step)

    def _precision(self) -> torch.autocast:
        is_reduced = self._options.precision == "bfloat16"
        return torch.autocast(self._model.device.type, torch.bfloat16, enabled=is_reduced)

    def _backward(self, batches: Sequence[Batch]) -> float:
        num_answer_tokens = sum(batch.num_answer_tokens for batch in batches)
        total = 0.0
        dropout = self._dropout_generator()
        for batch in batches:
            edits = self.trainable.site_edits(batch, dropout)
            # Divided by the tokens of the whole step, so that accumulation equals one large batch.
            with self._precision():
                loss = answer_loss(self._model, batch, edits) / num_answer_tokens
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise TrainingError(
                f"the loss is {total} at step {self._progress.step + 1}; lower --lr or check the data", param="lr"
            )
        return total

    def _evaluate(self, reporter: Reporter, label: str, *, with_edits: bool = True) -> Evaluation | None:
        if self._evaluation is None:
            return None
        edits: Edits = self.trainable.site_edits if with_edits else []
        examples, size = self._evaluation.examples, self._options.batch_size
        evaluation = evaluate(self._model, examples, edits, self._pad_token_id, size)
        reporter.evaluated(label, evaluation)
        return evaluation

    def _look_at_held_out_rows(self, reporter: Reporter) -> None:
        progress = self._progress
        evaluation = self._evaluate(reporter, f"epoch {progress.epoch}")
        if evaluation is None:
            return
        progress.eval_losses.append(evaluation.loss)
        self._latest = progress.epoch, evaluation
        if self._options.patience is None:
            return
        if progress.best_eval_loss is None or evaluation.loss < progress.best_eval_loss:
            progress.best_eval_loss, progress.best_epoch = evaluation.loss, progress.epoch
            named = self.trainable.named_parameters()
            self._best = {name: value.detach().to("cpu", copy=True) for name, value in named.items()}

    def _finish(self, reporter: Reporter) -> Evaluation | None:
        """Take the best epoch's parameters where they were kept, and score what will be saved."""
        if self._best is not None:
            self.trainable.load(self._best)
        elif self._latest is not None and self._latest[0] == self._progress.epoch:
            reporter.evaluated("after", self._latest[1])
            return self._latest[1]
        return self._evaluate(reporter, "after")

    def _is_stopped(self) -> bool:
        patience, progress = self._options.patience, self._progress
        return patience is not None and progress.epoch - progress.best_epoch >= patience

    def _save(self) -> None:
        if self._checkpoint is not None:
            save_checkpoint(self._checkpoint, self._key, self._progress, self.trainable, self._optimizer, self._best)


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    options: TrainingOptions,
    data: Dataset,
    evaluation: Dataset | None = None,
    *,
    model_id: str = "",
    description: SetDescription | None = None,
    reporter: Reporter | None = None,
) -> TrainingResult:
    """Train an intervention set on a frozen base model.

    Args:
        model: the base model; its parameters lose `requires_grad` and keep their values.
        tokenizer: its tokenizer.
        options: what to train and how.
        data: from `read_dataset`.
        evaluation: held-out rows, scored before and after.
        model_id: the base model's name in the manifest.
        description: name, licence, prompt template … for the manifest.
        reporter: shows progress; None = nothing.

    Raises:
        TrainingError: options that don't fit, or a loss that is not finite.
    """
    return Trainer(model, tokenizer, options, data, evaluation, model_id=model_id).run(reporter, description)
