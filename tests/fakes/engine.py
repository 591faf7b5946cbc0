"""An engine with scripted tokens: API tests take milliseconds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import torch

from reft_server.engine.types import EngineStats, GenerationRequest, ModelInfo, TokenOutput, TokenStream
from reft_server.errors import EngineDeadError, InvalidRequestError, ReftError
from tests.intervention_sets import BASE
from tests.self_test_engine import SelfTestEngine

Script = Callable[[GenerationRequest], Sequence[int]]
EOS = 0


def echo(request: GenerationRequest) -> Sequence[int]:
    """The prompt, again."""
    return request.prompt_token_ids


class FakeEngine(SelfTestEngine):
    """Answers with what `script` says, cut at `max_tokens`; ends with EOS when the script is shorter.

    Args:
        refuse: raised by the submission whose number (from 0) is `refuse_at`.
        fail: raised by every stream after `fail_after` tokens.
        hold_after: every stream stops after so many tokens until `release` is called; None = never.
        step: tokens per step.
        num_waiting: what `stats` says of the queue.
    """

    def __init__(self, script: Script = echo, *, vocab_size: int = 512, max_model_len: int = 256) -> None:
        super().__init__()
        self.script = script
        self.vocab_size = vocab_size
        self.max_model_len = max_model_len
        self.refuse: ReftError | None = None
        self.refuse_at = 0
        self.fail: Exception | None = None
        self.fail_after = 0
        self.hold_after: int | None = None
        self.released = asyncio.Event()
        self.step = 1
        self.num_waiting = 3
        self.ready = True
        self.broken = False
        self.is_started = False
        self.submitted: list[GenerationRequest] = []
        self.streams: list[FakeStream] = []

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(
            model_id=BASE.model_id,
            fingerprint=BASE.fingerprint,
            hidden_size=BASE.hidden_size,
            num_layers=BASE.num_layers,
            vocab_size=self.vocab_size,
            max_model_len=self.max_model_len,
            eos_token_ids=frozenset({EOS}),
            dtype="float32",
            device="cpu",
        )

    @property
    def is_ready(self) -> bool:
        return self.ready and self.is_started

    @property
    def is_broken(self) -> bool:
        return self.broken

    def submit(self, request: GenerationRequest) -> TokenStream:
        if not self.is_started:
            raise EngineDeadError("not started")
        if self.refuse is not None and len(self.submitted) == self.refuse_at:
            raise self.refuse
        if any(token_id >= self.vocab_size for token_id in request.prompt_token_ids):
            raise InvalidRequestError("a token id is out of the vocabulary", param="prompt")
        self.submitted.append(request)
        self.streams.append(FakeStream(self, request))
        return self.streams[-1]

    def stats(self) -> EngineStats:
        return EngineStats(
            num_requests_running=sum(not stream.is_over for stream in self.streams),
            num_requests_waiting=self.num_waiting,
            kv_cache_usage=0.25,
            num_prompt_tokens=sum(len(request.prompt_token_ids) for request in self.submitted),
            num_generated_tokens=sum(stream.num_tokens for stream in self.streams),
        )

    def start(self) -> None:
        self.is_started = True
        self._loop = asyncio.get_running_loop()

    def release(self) -> None:
        """Let held streams go on; from any thread."""
        self._loop.call_soon_threadsafe(self.released.set)

    async def stop(self) -> None:
        self.is_started = False


class FakeStream:
    """The scripted tokens of one request."""

    def __init__(self, engine: FakeEngine, request: GenerationRequest) -> None:
        self._engine = engine
        self._request = request
        self.num_tokens = 0
        self.is_cancelled = False
        self.is_finished = False
        self._error: ReftError | None = None

    def fail(self, error: ReftError) -> None:
        self._error = error

    @property
    def is_over(self) -> bool:
        return self.is_cancelled or self.is_finished

    def cancel(self) -> None:
        if not self.is_finished:
            self.is_cancelled = True

    async def __aiter__(self) -> AsyncIterator[list[TokenOutput]]:
        outputs = self._outputs()
        for capture in self._request.captures:
            size = self._engine.model_info.hidden_size
            ids = torch.tensor(self._request.prompt_token_ids, dtype=torch.float32)
            capture.note(0, ids[:, None].expand(-1, size))
        while outputs:
            if self._engine.hold_after is not None and self.num_tokens >= self._engine.hold_after:
                while not (self._engine.released.is_set() or self._error):
                    await asyncio.sleep(0.001)
            if self._error is not None:
                raise self._error
            if self._engine.fail is not None and self.num_tokens >= self._engine.fail_after:
                raise self._engine.fail
            await asyncio.sleep(0)
            step, outputs = outputs[: self._engine.step], outputs[self._engine.step :]
            self.num_tokens += len(step)
            self.is_finished = not outputs
            yield step

    def _outputs(self) -> list[TokenOutput]:
        if self._request.captures:
            return [TokenOutput(None, finish_reason="stop")]
        sampling = self._request.sampling
        script = list(self._engine.script(self._request))
        ids = [*script, EOS][: sampling.max_tokens]
        outputs = [] if ids else [TokenOutput(None, finish_reason="length")]
        for index, token_id in enumerate(ids):
            is_stop = index == len(script) or token_id in sampling.stop_token_ids
            is_last = is_stop or index == len(ids) - 1
            reason = "stop" if is_stop else "length" if is_last else None
            outputs.append(self._output(token_id, reason, is_stop_token=is_stop))
            if is_last:
                break
        return [outputs[0]._replace(prompt_tokens=self._prompt_tokens()), *outputs[1:]]

    def _prompt_tokens(self) -> tuple[TokenOutput, ...]:
        if self._request.sampling.num_prompt_logprobs is None:
            return ()
        first, *rest = self._request.prompt_token_ids
        return (TokenOutput(first), *(self._output(token_id, None, is_stop_token=False) for token_id in rest))

    def _output(self, token_id: int, reason: str | None, *, is_stop_token: bool) -> TokenOutput:
        num_logprobs = self._request.sampling.num_logprobs
        if num_logprobs is None:
            return TokenOutput(token_id, finish_reason=reason, is_stop_token=is_stop_token)  # type: ignore[arg-type]
        top = tuple(((token_id + rank) % self._engine.vocab_size, -0.5 - rank) for rank in range(num_logprobs))
        return TokenOutput(token_id, -0.5, top, reason, is_stop_token)  # type: ignore[arg-type]
