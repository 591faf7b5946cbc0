"""From chosen chunks to tokens: a step is run, or launched and settled while the next one runs."""

from __future__ import annotations

import logging
from collections import Counter

from reft_server.errors import EngineStepError, ReftError

from .batch import Batch, build_batch
from .edit_plan import EditPlanner
from .launched import LaunchedStep
from .prompt_scores import score_prompts
from .sampler import SampledToken, sample
from .scheduler import ScheduledChunk, Scheduler
from .sequence import Sequence
from .single import LaunchingModel, Model
from .stream import publish
from .types import FinishReason, TokenOutput

logger = logging.getLogger(__name__)


class StepRunner:
    """Runs steps of one scheduler's choice, ends sequences, and publishes what came out. At most one is in flight.

    A model that can launch a step (`LaunchingModel`) works on one while the host chooses and lays out the next: that
    one takes the tokens it doesn't know yet on the device. From its launch on a step counts as computed; what is known
    of it only later, the tokens, is `expected` until then.

    Args:
        planner: of the model's edits; kept over restarts.
        eos_token_ids: of the model.
        counters: steps and tokens are counted here.
    """

    def __init__(
        self,
        model: Model,
        scheduler: Scheduler,
        planner: EditPlanner,
        eos_token_ids: frozenset[int],
        counters: Counter[str],
    ) -> None:
        self._model = model
        self._launcher = model if isinstance(model, LaunchingModel) else None
        self._scheduler = scheduler
        self._planner = planner
        self._eos_token_ids = eos_token_ids
        self._counters = counters
        self._outputs: dict[Sequence, list[TokenOutput]] = {}
        self._in_flight: LaunchedStep | None = None
        self._has_failed = False

    @property
    def is_ahead(self) -> bool:
        """Whether a step is in flight."""
        return self._in_flight is not None

    def run(self, chunks: list[ScheduledChunk]) -> None:
        """Launch the next step and settle the one in flight; or settle it first, and run the next one to its end."""
        previous = self._in_flight
        self._in_flight = self._launch(chunks, previous)
        if previous is not None:
            self._settle(previous)
        if self._in_flight is None:
            chunks = [chunk for chunk in chunks if not chunk.sequence.is_finished]
            if chunks:
                self._execute(chunks)

    def finish(
        self, sequence: Sequence, reason: FinishReason, error: ReftError | None = None, *, is_sound: bool = True
    ) -> None:
        """End a sequence without a token; nothing of one that is not sound is used again."""
        self._add_output(sequence, TokenOutput(None, finish_reason=reason, error=error))
        self._has_failed |= not is_sound
        self._scheduler.finish(sequence, is_sound=is_sound)

    def take_failed(self) -> bool:
        """Whether a sequence was ended as not sound since the last time."""
        has_failed, self._has_failed = self._has_failed, False
        return has_failed

    def publish(self) -> None:
        """Hand over what came out since the last time."""
        outputs, self._outputs = self._outputs, {}
        publish((sequence.stream, tokens) for sequence, tokens in outputs.items())

    def abandon(self) -> None:
        """Wait for the step in flight, whose weights and pages are given up, and forget it."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is not None:
            try:
                in_flight.wait()
            except Exception as error:  # noqa: BLE001 - the device may be what failed
                logger.warning("step in flight failed error=%s", type(error).__name__)

    def _launch(self, chunks: list[ScheduledChunk], previous: LaunchedStep | None) -> LaunchedStep | None:
        """The step, in flight; None where it has to run alone, behind the one before."""
        if self._launcher is None or not chunks or any(chunk.sequence.needs_host for chunk in chunks):
            return None
        try:
            batch = build_batch(chunks, self._launcher.kv_layout.device, self._planner)
            launched = self._launcher.launch(batch, previous)
        except Exception as error:  # noqa: BLE001 - it runs again, where the culprit is found
            logger.warning("launch failed, the step runs alone error=%s", type(error).__name__)
            return None
        self._advance(launched.batch)
        return launched

    def _settle(self, step: LaunchedStep) -> None:
        """Take in the tokens of a step; the one behind it may have been launched without them."""
        for sequence, token in step.read():
            self._receive(sequence, token)

    def _execute(self, chunks: list[ScheduledChunk]) -> None:
        """Run chunks in one forward; if that fails, each alone, so that only the culprit fails."""
        try:
            batch = build_batch(chunks, self._model.kv_layout.device, self._planner)
            logits = self._model.forward(batch)
            num_sampled = len(batch.sampled_sequences)
            tokens = sample(logits[:num_sampled], batch.sampled_sequences) if num_sampled else []
            scores = score_prompts(logits[num_sampled:], batch.scored)
        except Exception as error:
            if len(chunks) > 1:
                logger.warning(
                    "step failed, running its %d sequences one by one error=%s", len(chunks), type(error).__name__
                )
                for chunk in chunks:
                    self._execute([chunk])
                return
            logger.exception("request failed request_id=%s", chunks[0].sequence.request.request_id)
            message = "the forward pass failed for this request; the server's log has the reason"
            self.finish(chunks[0].sequence, "error", EngineStepError(message), is_sound=False)
            return
        for prompt_scores, outputs in scores:
            prompt_scores.add(outputs)
        only_read = [chunk.sequence for chunk in chunks if chunk.is_last and not chunk.is_sampled]
        self._advance(batch)
        for sequence in only_read:
            self._end_with_prompt(sequence)
        for sequence, token in zip(batch.sampled_sequences, tokens, strict=True):
            self._receive(sequence, token)

    def _advance(self, batch: Batch) -> None:
        """A step is in the cache, or will be before the next one reads it; its tokens are expected."""
        self._counters["steps"] += 1
        for chunk in batch.chunks:
            self._scheduler.computed(chunk)
            if chunk.start < chunk.sequence.prompt_length:
                self._counters["prompt_tokens"] += chunk.num_tokens
        for sequence in batch.sampled_sequences:
            sequence.expect_token()

    def _receive(self, sequence: Sequence, token: SampledToken) -> None:
        """Add a sampled token to its sequence, and end it if that was the last."""
        if not token.is_finite or not sequence.has_finite_scores:
            self._fail_not_finite(sequence)
            return
        token_id, sampling, matcher = token.token_id, sequence.sampling, sequence.matcher
        sequence.receive_token(token_id)
        if token.is_late and self._in_flight is not None:
            self._in_flight.void(sequence)
            sequence.expect_nothing()
        self._counters["generated_tokens"] += 1
        is_eos = token_id in self._eos_token_ids and not (sampling.ignore_eos and matcher is None)
        is_stop_token = is_eos or token_id in sampling.stop_token_ids
        if matcher is not None and not is_stop_token:
            matcher.accept(token_id)
        if matcher is not None and matcher.error is not None:
            self.finish(sequence, "error", matcher.error)
            return
        reason: FinishReason | None = None
        num_generated = sequence.num_generated_tokens
        if is_stop_token or (matcher is not None and matcher.is_complete):
            reason = "stop"
        elif num_generated >= sampling.max_tokens:
            reason = "length"
        output = TokenOutput(token_id, token.logprob, token.top_logprobs, reason, is_stop_token)
        if num_generated == 1:
            num_cached = sequence.num_cached_tokens or 0
            output = output._replace(
                num_cached_tokens=num_cached,
                queue_time_s=sequence.queue_time_s,
                prompt_tokens=sequence.prompt_tokens,
            )
        self._add_output(sequence, output)
        if reason is not None:
            self._scheduler.finish(sequence)

    def _end_with_prompt(self, sequence: Sequence) -> None:
        """End a sequence whose prompt is only read."""
        if not sequence.has_finite_scores:
            self._fail_not_finite(sequence)
            return
        reason: FinishReason = "stop" if sequence.request.captures else "length"
        output = TokenOutput(
            None, finish_reason=reason, queue_time_s=sequence.queue_time_s, prompt_tokens=sequence.prompt_tokens
        )
        self._add_output(sequence, output)
        self._scheduler.finish(sequence)

    def _fail_not_finite(self, sequence: Sequence) -> None:
        message = "the logits of this request are not finite: its intervention overflows on this prompt"
        self.finish(sequence, "error", EngineStepError(message), is_sound=False)

    def _add_output(self, sequence: Sequence, output: TokenOutput) -> None:
        self._outputs.setdefault(sequence, []).append(output)
