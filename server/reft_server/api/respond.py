"""One way from a plan to a response, shared by completions and chat."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.requests import Request
from starlette.responses import Response

from .context import ApiContext
from .disconnect import run_until_disconnect
from .generation import Answer, generate
from .output import Output
from .sse import EventStreamResponse
from .translation import GenerationPlan


async def respond(
    context: ApiContext, request: Request, plan: GenerationPlan, output: Output, *, stream: bool, includes_usage: bool
) -> Response:
    """Run the plan; the whole answer at once, or a stream of events.

    Raises:
        ReftError: a request was refused or failed.
        ClientDisconnect: the client went away; everything was cancelled.
    """
    if stream:
        return EventStreamResponse(_events(context, plan, output, includes_usage=includes_usage))
    body = await run_until_disconnect(_collect(context, plan, output), request.receive)
    return Response(body, media_type="application/json")


async def _events(
    context: ApiContext, plan: GenerationPlan, output: Output, *, includes_usage: bool
) -> AsyncGenerator[str, None]:
    async with contextlib.aclosing(generate(context, plan)) as deltas:
        async for delta in deltas:
            event = output.chunk(delta)
            if event is not None:
                yield event
    if includes_usage:
        yield output.usage_chunk()


async def _collect(context: ApiContext, plan: GenerationPlan, output: Output) -> str:
    answers = [Answer() for _ in plan.requests]
    async with contextlib.aclosing(generate(context, plan)) as deltas:
        async for delta in deltas:
            answers[delta.index].add(delta)
    return output.response(answers)
