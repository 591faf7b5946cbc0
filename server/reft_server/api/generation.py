"""The choices of one request, run side by side: engine tokens in, pieces of text out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace

from reft_client.types import Timing
from reft_server.engine.types import GenerationRequest, TokenOutput, TokenStream
from reft_server.errors import EngineDeadError, RequestTimeoutError
from reft_server.request_context import current_request, note
from reft_server.tenants import SHARED
from reft_server.tenants.model import label_of

from .context import ApiContext
from .detokenizer import StopStringFilter
from .routed import route_label
from .tool_calls import CallPiece
from .translation import GenerationPlan

_LOGGED_HASH_LENGTH = len("sha256:") + 12  # as many digits as a reference to a version needs


@dataclass(slots=True)  # not frozen, which takes three times as long to make
class Delta:
    """The next piece of one choice.

    Args:
        tokens: the tokens of the text, for logprobs; without EOS and stop tokens.
        text_offsets: characters of the answer before each of `tokens`.
        token_ids: every generated id, EOS and stop tokens too.
        num_cached_tokens: prompt tokens that were not computed again; in the choice's first piece.
        calls: what of the text is tool calls; `text` is the rest.
        timing: in the choice's last piece.
    """

    index: int
    text: str
    tokens: tuple[TokenOutput, ...]
    text_offsets: tuple[int, ...]
    token_ids: tuple[int, ...]
    finish_reason: str | None
    num_cached_tokens: int = 0
    calls: tuple[CallPiece, ...] = ()
    timing: Timing | None = None


@dataclass
class Answer:
    """One whole choice, put together from its deltas."""

    text: str = ""
    tokens: list[TokenOutput] = field(default_factory=list)
    text_offsets: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    num_cached_tokens: int = 0
    calls: list[CallPiece] = field(default_factory=list)
    timing: Timing | None = None

    def add(self, delta: Delta) -> None:
        """Append a piece."""
        self.text += delta.text
        self.tokens += delta.tokens
        self.text_offsets += delta.text_offsets
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason
        self.num_cached_tokens += delta.num_cached_tokens
        self.timing = delta.timing
        for piece in delta.calls:
            if piece.index < len(self.calls):
                whole = self.calls[piece.index]
                self.calls[piece.index] = replace(whole, arguments=whole.arguments + piece.arguments)
            else:
                self.calls.append(piece)


class Choice:
    """One engine request on its way to text. `deadline` is in the event loop's time, seconds.

    `num_tokens` are generated so far.
    """

    def __init__(
        self, context: ApiContext, plan: GenerationPlan, index: int, stream: TokenStream, deadline: float
    ) -> None:
        self._index = index
        self._stream = stream
        self._deadline = deadline
        self._timeout_s = context.settings.request_timeout_s
        self._metrics = context.metrics
        self._detokenizer = context.tokenization.detokenizer()
        self._stops = StopStringFilter(plan.stop_strings)
        self._tool_parser = None if plan.tool_parser is None else plan.tool_parser()
        self._min_tokens = plan.requests[index].sampling.min_tokens
        self.num_tokens = 0
        self._tokenization = context.tokenization
        self._echo = plan.echoes[index]
        self._num_characters = len(self._echo)
        self._started_at = self._last_token_at = time.monotonic()
        self._has_token = self._has_output = False
        self._queue_s = 0.0
        self._time_to_first_token_s: float | None = None

    async def deltas(self) -> AsyncGenerator[Delta, None]:
        """Yield the choice's pieces; the last one has a `finish_reason`.

        Raises:
            ReftError: the engine gave the request up, or it ran too long.
        """
        iterator = aiter(self._stream)
        finish_reason: str | None = None
        error = RequestTimeoutError(f"The request ran longer than {self._timeout_s:g} seconds")
        timer = asyncio.get_running_loop().call_at(self._deadline, self._stream.fail, error)
        try:
            while finish_reason is None:
                delta = self._without_calls(self._delta(await _next(iterator)))
                finish_reason = delta.finish_reason
                if finish_reason is not None:
                    self._metrics.count_success(finish_reason)
                    self._metrics.end_to_end_latency.observe(time.monotonic() - self._started_at)
                    self._trace()
                yield delta
        finally:
            timer.cancel()
            self._stream.cancel()

    def _delta(self, outputs: list[TokenOutput]) -> Delta:
        self._observe_start(outputs[0].queue_time_s)
        text, self._echo = self._echo, ""
        tokens = list(outputs[0].prompt_tokens)
        offsets = self._tokenization.text_offsets([one.token_id or 0 for one in tokens], text) if tokens else []
        num_cached = 0
        ids: list[int] = []
        finish_reason: str | None = None
        for output in outputs:
            num_cached += output.num_cached_tokens
            self._queue_s += output.queue_time_s
            if output.token_id is not None:
                self._observe_token()
                self.num_tokens += 1
                ids.append(output.token_id)
                if not output.is_stop_token:
                    tokens.append(output)
                    offsets.append(self._num_characters)
                    text += self._pass_on(self._detokenizer.push(output.token_id))
            finish_reason = output.finish_reason
            if finish_reason is not None:
                text += self._pass_on(self._detokenizer.flush()) + self._stops.flush()
            if self._stops.is_stopped:
                finish_reason = "stop"
                break
        return Delta(
            self._index,
            text,
            tuple(tokens),
            tuple(offsets),
            tuple(ids),
            finish_reason,
            num_cached_tokens=num_cached,
            timing=None if finish_reason is None else self._timing(),
        )

    def _trace(self) -> None:
        request = current_request()
        if request is not None and request.trace is not None:
            timing = self._timing()
            request.trace.add_choice(
                self._index,
                queue_s=timing.queue_s,
                time_to_first_token_s=timing.time_to_first_token_s,
                total_s=timing.total_s,
                num_tokens=self.num_tokens,
            )

    def _timing(self) -> Timing:
        total_s = time.monotonic() - self._started_at
        first_s = self._time_to_first_token_s
        return Timing(
            queue_s=self._queue_s, time_to_first_token_s=total_s if first_s is None else first_s, total_s=total_s
        )

    def _without_calls(self, delta: Delta) -> Delta:
        """The same piece, tool calls taken out of its text."""
        parser = self._tool_parser
        if parser is None:
            return delta
        text, calls = parser.add(delta.text, is_last=delta.finish_reason is not None)
        reason = delta.finish_reason
        if reason == "stop" and parser.has_calls and parser.ends_with_calls:
            reason = "tool_calls"
        return replace(delta, text=text, calls=calls, finish_reason=reason)

    def _pass_on(self, settled: str) -> str:
        self._num_characters += len(settled)
        # text of the tokens that have to come ends nothing
        return settled if self.num_tokens <= self._min_tokens else self._stops.push(settled)

    def _observe_start(self, queue_time_s: float) -> None:
        if not self._has_output:
            self._has_output = True
            self._metrics.queue_time.observe(queue_time_s)

    def _observe_token(self) -> None:
        now = time.monotonic()
        histogram = self._metrics.inter_token_latency if self._has_token else self._metrics.time_to_first_token
        histogram.observe(now - self._last_token_at)
        if not self._has_token:
            self._time_to_first_token_s = now - self._started_at
        self._last_token_at = now
        self._has_token = True


async def _next(iterator: AsyncIterator[list[TokenOutput]]) -> list[TokenOutput]:
    outputs = await anext(iterator, None)
    if not outputs or outputs[-1].finish_reason in ("cancelled", "error"):
        raise (outputs[-1].error if outputs else None) or EngineDeadError("The engine gave the request up")
    return outputs


async def generate(context: ApiContext, plan: GenerationPlan) -> AsyncGenerator[Delta, None]:
    """Submit the plan's requests and yield the pieces of all choices as they come.

    Nothing is submitted before the first piece is asked for, and however the generator ends, every request that
    was submitted is cancelled or finished.

    Raises:
        RateLimitError: the tenant has had its tokens of this minute.
        ReftError: a request was refused or failed; the other choices are then cancelled.
    """
    deadline = asyncio.get_running_loop().time() + context.settings.request_timeout_s
    choices: list[Choice] = []
    streams: list[TokenStream] = []
    note(response_id=plan.response_id, num_choices=len(plan.requests), prompt_tokens=plan.num_prompt_tokens)
    meter = context.meters.of(plan.caller.tenant.name)
    meter.take_prompt(plan.num_prompt_tokens + sum(applied.source_tokens or 0 for applied in plan.applied))
    if plan.route is not None:
        note(route_revision=plan.route.revision)
        context.metrics.count_route(route_label(plan.route))
    if plan.applied:
        note(interventions=",".join(applied.content_hash[:_LOGGED_HASH_LENGTH] for applied in plan.applied))
    try:
        for index, request in enumerate(plan.requests):
            streams.append(context.engine.submit(request))
            choices.append(Choice(context, plan, index, streams[-1], deadline))
            _count_interventions(context, plan, request)
        merged = choices[0].deltas() if len(choices) == 1 else _merge(choices)
        async with contextlib.aclosing(merged):
            async for delta in merged:
                yield delta
    finally:
        for stream in streams:
            stream.cancel()
        num_tokens = sum(choice.num_tokens for choice in choices)
        meter.charge_tokens(num_tokens)
        note(completion_tokens=num_tokens)


def _count_interventions(context: ApiContext, plan: GenerationPlan, request: GenerationRequest) -> None:
    if not request.interventions:
        context.metrics.count_intervention(None)
    for applied in plan.applied:
        context.metrics.count_intervention(label_of(applied.tenant or SHARED, applied.name.rpartition("/")[2]))


async def _merge(choices: list[Choice]) -> AsyncGenerator[Delta, None]:
    queue: asyncio.Queue[Delta | BaseException] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(choice, queue)) for choice in choices]
    num_open = len(choices)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            num_open -= item.finish_reason is not None
            yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(choice: Choice, queue: asyncio.Queue[Delta | BaseException]) -> None:
    try:
        async with contextlib.aclosing(choice.deltas()) as deltas:
            async for delta in deltas:
                queue.put_nowait(delta)
    except Exception as error:  # noqa: BLE001 not lost: the reader of the queue raises it
        queue.put_nowait(error)
