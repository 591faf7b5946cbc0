"""`POST /tokenize` and `POST /detokenize`, as vLLM's."""

from __future__ import annotations

from fastapi import APIRouter

from reft_client.types import DetokenizeRequest, DetokenizeResponse, TokenizeRequest, TokenizeResponse
from reft_server.errors import InvalidRequestError

from ..authentication import NEEDS_INFER
from ..context import Context
from ..openapi import ERROR

router = APIRouter(tags=["tokenizer"], responses={400: ERROR}, dependencies=[NEEDS_INFER])


@router.post("/tokenize", summary="Token ids of a prompt or of a conversation")
async def tokenize(context: Context, body: TokenizeRequest) -> TokenizeResponse:
    """What a completion of `prompt`, or a chat completion of `messages`, would start from."""
    if body.messages is not None:
        tokens = await context.tokenization.encode_chat(body.messages, body.tools or ())
    else:
        tokens = await context.tokenization.encode(
            body.prompt or "", param="prompt", add_special_tokens=body.add_special_tokens
        )
    window = context.engine.model_info.max_model_len
    return TokenizeResponse(count=len(tokens), max_model_len=window, tokens=tokens)


@router.post("/detokenize", summary="Text of token ids")
async def detokenize(context: Context, body: DetokenizeRequest) -> DetokenizeResponse:
    """The text, special tokens left out."""
    vocab_size = context.engine.model_info.vocab_size
    if any(token >= vocab_size for token in body.tokens):
        raise InvalidRequestError(f"A token id is outside the vocabulary of {vocab_size}", param="tokens")
    return DetokenizeResponse(prompt=context.tokenization.decode(body.tokens))
