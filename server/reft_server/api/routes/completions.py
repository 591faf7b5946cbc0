"""`POST /v1/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body
from starlette.requests import Request
from starlette.responses import Response

from reft_client.types import CompletionRequest, CompletionResponse

from ..authentication import Infer
from ..context import Context
from ..disconnect import run_until_disconnect
from ..openapi import COMPLETION_EXAMPLES, GENERATION_RESPONSES
from ..output import CompletionOutput
from ..respond import respond
from ..routed import ByHeaders
from ..translation import plan_completion

router = APIRouter(tags=["generation"])


@router.post(
    "/v1/completions",
    response_model=CompletionResponse,
    responses=GENERATION_RESPONSES,
    summary="Continue one or several prompts",
)
async def create_completion(
    request: Request,
    caller: Infer,
    context: Context,
    by_headers: ByHeaders,
    body: Annotated[CompletionRequest, Body(openapi_examples=COMPLETION_EXAMPLES)],
) -> Response:
    """OpenAI's completions, with `intervention` to say what edits the base model's hidden states.

    With `stream`, the answer is server-sent events: one `data: {json}` per piece, then `data: [DONE]`.
    """
    body = by_headers.apply(body)
    plan = await run_until_disconnect(plan_completion(context, caller, body), request.receive)
    output = CompletionOutput(plan, body, context.tokenization)
    return await respond(context, request, plan, output, stream=body.stream, includes_usage=body.includes_usage)
