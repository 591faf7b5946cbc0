"""One way from a plan to a response, shared by completions and chat."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from reft_server.tenants.model import wire_name

from .context import ApiContext
from .disconnect import run_until_disconnect
from .generation import Answer, Delta, generate
from .output import Output
from .shadow import ShadowRun
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
    deltas, headers, background = generate(context, plan), answer_headers(plan), None
    if plan.shadow is not None:
        shadow = ShadowRun(context, plan, plan.shadow)
        deltas, background = shadow.listen(deltas), BackgroundTask(shadow.start)
    if stream:
        return EventStreamResponse(_events(deltas, output, includes_usage=includes_usage), headers, background)
    body = await run_until_disconnect(collect(deltas, plan, output), request.receive)
    return Response(body, media_type="application/json", headers=headers, background=background)


def answer_headers(plan: GenerationPlan) -> dict[str, str]:
    """What answers, for proxies and logs that read no bodies; none where it is the base model, and no route chose it.

    `x-reft-intervention` is `name@version` and `x-reft-content-hash` the file's hash, for each set in order;
    `x-reft-route` is `task@revision`, with `shared/` before it where the route is the operator's.
    """
    headers: dict[str, str] = {}
    if plan.applied:
        headers["x-reft-intervention"] = ", ".join(f"{one.name}@{one.version}" for one in plan.applied)
        headers["x-reft-content-hash"] = ", ".join(one.content_hash for one in plan.applied)
    if plan.route is not None:
        is_own = plan.route.tenant == wire_name(plan.caller.tenant.name)
        owner = "" if is_own else f"{plan.route.tenant}/"
        headers["x-reft-route"] = f"{owner}{plan.route.task}@{plan.route.revision}"
    return headers


async def _events(
    deltas: AsyncGenerator[Delta, None], output: Output, *, includes_usage: bool
) -> AsyncGenerator[str, None]:
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            event = output.chunk(delta)
            if event is not None:
                yield event
    if includes_usage:
        yield output.usage_chunk()


async def collect(deltas: AsyncGenerator[Delta, None], plan: GenerationPlan, output: Output) -> str:
    """Read all of the plan's pieces; the whole response, JSON.

    Raises:
        ReftError: a request was refused or failed.
    """
    answers = [Answer() for _ in plan.requests]
    async with contextlib.aclosing(deltas):
        async for delta in deltas:
            answers[delta.index].add(delta)
    return output.response(answers)
