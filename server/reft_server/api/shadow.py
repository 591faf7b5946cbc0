"""Shadow targets: run once the answer is given, compared with it, counted and logged; nobody sees what they say."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from array import array
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from reft_server.engine.types import GenerationRequest
from reft_server.errors import EngineDeadError, ReftError
from reft_server.metrics import ShadowOutcome

from .applied import apply_interventions
from .context import ApiContext
from .detokenizer import StopStringFilter
from .generation import Delta
from .routed import Shadow, route_label
from .translation import GenerationPlan

logger = logging.getLogger(__name__)

_PRIORITY = 1000  # after everything else of its tenant
_NUM_HASH_DIGITS = 12


class ShadowRun:
    """The shadow of one request: it hears the answer, and is started when that has been sent."""

    def __init__(self, context: ApiContext, plan: GenerationPlan, shadow: Shadow) -> None:
        self._context = context
        self._plan = plan
        self._shadow = shadow
        self._answer: list[int] = []
        self._is_complete = False

    async def listen(self, deltas: AsyncGenerator[Delta, None]) -> AsyncGenerator[Delta, None]:
        """The same pieces; those of the first choice are kept."""
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                if delta.index == 0:
                    self._answer += delta.token_ids
                yield delta
        self._is_complete = True

    async def start(self) -> None:
        """Run beside what comes next, unless the answer failed, others wait or there is no place; returns at once."""
        if not self._is_complete:
            return
        context, tenant = self._context, self._plan.caller.tenant.name
        if context.shadows.is_free(tenant) and not context.engine.stats().num_requests_waiting:
            context.shadows.start(tenant, _run(context, self._plan, self._shadow, self._answer))
        else:
            _count(context, self._plan, "dropped")


async def _run(context: ApiContext, plan: GenerationPlan, shadow: Shadow, answer: Sequence[int]) -> None:
    """Answer the first prompt once more with the shadow's interventions, and say whether the tokens are the same."""
    started_at_s = time.monotonic()
    fields: dict[str, str | int | float] = {"response_id": plan.response_id}
    outcome: ShadowOutcome = "failed"
    try:
        async with asyncio.timeout(context.settings.request_timeout_s):
            tokens = await _answer(context, plan, shadow)
    except TimeoutError:
        fields["error"] = "request_timeout"
    except ReftError as error:
        fields["error"] = error.code
    except Exception:
        logger.exception("shadow_failed")
    else:
        outcome = "same" if list(answer) == tokens else "different"
        pairs = zip(answer, tokens, strict=False)
        num_same = next((index for index, (ours, theirs) in enumerate(pairs) if ours != theirs), None)
        fields |= {
            "answer_hash": _hash(context, answer),
            "shadow_hash": _hash(context, tokens),
            "answer_tokens": len(answer),
            "shadow_tokens": len(tokens),
            "same_tokens": min(len(answer), len(tokens)) if num_same is None else num_same,
        }
    _count(context, plan, outcome)
    fields |= {"outcome": outcome, "duration_ms": round((time.monotonic() - started_at_s) * 1000, 1)}
    logger.info("shadow_ended", extra={"fields": fields})


async def _answer(context: ApiContext, plan: GenerationPlan, shadow: Shadow) -> list[int]:
    prompt = plan.requests[0].prompt_token_ids
    _, folded = await apply_interventions(context, plan.caller, shadow.body, [prompt], shadow.refs)
    request = replace(
        plan.requests[0], request_id=f"shadow-{plan.response_id}", interventions=folded, priority=_PRIORITY
    )
    return await _token_ids(context, plan, request)


async def _token_ids(context: ApiContext, plan: GenerationPlan, request: GenerationRequest) -> list[int]:
    """Every generated token, up to where an answer to a client would end."""
    detokenizer, stops = context.tokenization.detokenizer(), StopStringFilter(plan.stop_strings)
    stream = context.engine.submit(request)
    token_ids: list[int] = []
    try:
        async for outputs in stream:
            for output in outputs:
                if output.token_id is not None:
                    token_ids.append(output.token_id)
                    text = "" if output.is_stop_token else detokenizer.push(output.token_id)
                    if len(token_ids) > request.sampling.min_tokens:
                        stops.push(text)
                if stops.is_stopped or output.finish_reason in ("stop", "length"):
                    return token_ids
                if output.finish_reason is not None:
                    raise output.error or EngineDeadError("The engine gave the request up")
        raise EngineDeadError("The engine gave the request up")
    finally:
        stream.cancel()


def _hash(context: ApiContext, token_ids: Sequence[int]) -> str:
    digest = hmac.new(context.shadows.key, array("q", token_ids).tobytes(), hashlib.sha256)
    return digest.hexdigest()[:_NUM_HASH_DIGITS]


def _count(context: ApiContext, plan: GenerationPlan, outcome: ShadowOutcome) -> None:
    if plan.route is not None:
        context.metrics.count_shadow(route_label(plan.route), outcome)
