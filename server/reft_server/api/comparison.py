"""One prompt, answered by the base model and by a set: side by side."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import ValidationError

from reft_client.types import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    CompletionRequest,
    CompletionResponse,
    InterventionComparison,
    InterventionComparisonRequest,
    InterventionRef,
)
from reft_interventions.store import StoredVersion
from reft_server.errors import InvalidRequestError, UnsupportedParameterError
from reft_server.tenants import Caller

from .context import ApiContext
from .generation import generate
from .output import ChatOutput, CompletionOutput
from .respond import collect
from .translation import plan_chat, plan_completion

Body = CompletionRequest | ChatCompletionRequest
Answer = CompletionResponse | ChatCompletionResponse
_REFUSED = ("model", "intervention", "task", "routing_key", "stream", "stream_options")


async def compare(
    context: ApiContext, caller: Caller, stored: StoredVersion, request: InterventionComparisonRequest
) -> InterventionComparison:
    """Run both sides at once, with the same seed.

    Raises:
        InvalidRequestError: neither a completion nor a chat, or a field that chooses what answers.
        ReftError: one of the sides was refused or failed.
    """
    name = context.registry.name_of(stored, caller.tenant.name)
    fields = _fields(request)
    ref = InterventionRef(name=name, version=stored.version, scale=request.scale)
    bodies = _body(fields, request.against), _body(fields, ref)
    base, edited = await asyncio.gather(*(_answer(context, caller, body) for body in bodies))
    return InterventionComparison(
        name=name,
        version=stored.version,
        content_hash=stored.content_hash,
        is_same=_texts(base) == _texts(edited),
        base=base,
        edited=edited,
    )


def _fields(request: InterventionComparisonRequest) -> dict[str, Any]:
    extra = request.model_extra or {}
    for field in _REFUSED:
        if field in extra:
            raise UnsupportedParameterError(f"{field}: a comparison does not take it", param=field)
    if (request.prompt is None) == (request.messages is None):
        raise InvalidRequestError("Send either prompt or messages", param="prompt")
    own = {"prompt": request.prompt} if request.messages is None else {"messages": request.messages}
    return {**extra, **own, "seed": request.seed}


def _body(fields: dict[str, Any], intervention: str | InterventionRef | None) -> Body:
    model = CompletionRequest if "prompt" in fields else ChatCompletionRequest
    try:
        return model.model_validate({**fields, "intervention": intervention})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InvalidRequestError(f"{where}: {message}" if where else message, param=where or None) from error


async def _answer(context: ApiContext, caller: Caller, body: Body) -> Answer:
    if isinstance(body, CompletionRequest):
        plan = await plan_completion(context, caller, body)
        text = await collect(generate(context, plan), plan, CompletionOutput(plan, body, context.tokenization))
        return CompletionResponse.model_validate_json(text)
    plan = await plan_chat(context, caller, body)
    text = await collect(generate(context, plan), plan, ChatOutput(plan, body, context.tokenization))
    return ChatCompletionResponse.model_validate_json(text)


def _texts(answer: Answer) -> list[str | None]:
    if isinstance(answer, CompletionResponse):
        return [choice.text for choice in answer.choices]
    return [choice.message.content for choice in answer.choices]
