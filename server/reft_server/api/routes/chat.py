"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from reft_client.types import ChatCompletionRequest, ChatCompletionResponse

from ..authentication import Infer
from ..context import Context
from ..disconnect import run_until_disconnect
from ..openapi import CHAT_EXAMPLES, GENERATION_RESPONSES
from ..output import ChatOutput
from ..respond import respond
from ..routed import ByHeaders
from ..translation import plan_chat

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletionResponse,
    responses=GENERATION_RESPONSES,
    summary="Answer a conversation",
)
async def create_chat_completion(
    request: Request,
    caller: Infer,
    context: Context,
    by_headers: ByHeaders,
    body: Annotated[ChatCompletionRequest, Body(openapi_examples=CHAT_EXAMPLES)],
) -> Response:
    """OpenAI's chat completions, rendered with the base model's own chat template.

    With `stream`, the answer is server-sent events: one `data: {json}` per piece, then `data: [DONE]`.
    """
    body = by_headers.apply(body)
    plan = await run_until_disconnect(plan_chat(context, caller, body), request.receive)
    output = ChatOutput(plan, body, context.tokenization)
    return await respond(context, request, plan, output, stream=body.stream, includes_usage=body.includes_usage)
