"""Text and token ids: prompts in, answers out, and what single tokens look like."""

from __future__ import annotations

import asyncio
import codecs
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reft_client.types import ChatMessage, Tool, ToolCall
from reft_server.errors import InvalidRequestError, UnsupportedParameterError

from .detokenizer import IncrementalDetokenizer
from .tool_calls import ToolSyntax, tool_syntax

MAX_INLINE_CHARACTERS = 2048
"""Longer texts are tokenized in a thread: the event loop serves everybody."""


class Tokenization:
    """The base model's tokenizer and chat template, as the API uses them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        _forget_truncation(tokenizer)
        self._decode = _decoder(tokenizer)
        self._byte_values = _byte_level_alphabet() if _is_byte_level(tokenizer) else None
        self._byte_token_ids = _byte_fallback_ids(tokenizer)
        self._special_token_ids = frozenset(
            token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special
        )
        self.tool_syntax: ToolSyntax | None = _tool_syntax(tokenizer)

    async def encode(self, text: str, *, param: str, add_special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids of a text.

        Raises:
            InvalidRequestError: the text holds half a surrogate pair, which no encoding can carry.
        """
        check_encodable(text, param)
        if len(text) <= MAX_INLINE_CHARACTERS:
            return self._encode(text, add_special_tokens)
        return await asyncio.to_thread(self._encode, text, add_special_tokens)

    async def encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool] = ()) -> tuple[int, ...]:
        """Token ids of a conversation, with the beginning of the assistant's turn, by the model's chat template.

        Raises:
            InvalidRequestError: the model has no template, or the template refuses the messages.
            UnsupportedParameterError: tools, or turns about them, for a template that knows none.
        """
        if not self._tokenizer.chat_template:
            raise InvalidRequestError(
                "The base model has no chat template: send a prompt to /v1/completions instead", param="messages"
            )
        for index, message in enumerate(messages):
            check_encodable(message.text, f"messages[{index}].content")
        if self.tool_syntax is None and (tools or any(message.is_about_tools for message in messages)):
            param = "tools" if tools else "messages"
            refusal = "The base model's chat template knows no tools, or a syntax of calls that is not served"
            raise UnsupportedParameterError(refusal, param=param)
        if not tools and sum(len(message.text) for message in messages) <= MAX_INLINE_CHARACTERS:
            return self._encode_chat(messages, tools)
        return await asyncio.to_thread(self._encode_chat, messages, tools)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self._decode(list(token_ids))

    def text_offsets(self, token_ids: Sequence[int], text: str) -> list[int]:
        """Where each of a text's tokens begins, in characters; special tokens that it leaves out take no room."""
        offsets: list[int] = []
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        position = 0
        for token_id in token_ids:
            offsets.append(position)
            piece = decoder.decode(self.token_bytes(token_id))
            if token_id not in self._special_token_ids or text.startswith(piece, position):
                position += len(piece)
        return offsets

    def detokenizer(self) -> IncrementalDetokenizer:
        """A fresh one, for one answer."""
        looks_back = self._byte_values is None
        return IncrementalDetokenizer(
            self._decode, self._byte_token_ids, self._special_token_ids, looks_back=looks_back
        )

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token, which may be a part of a character."""
        token = self._tokenizer.convert_ids_to_tokens(token_id)
        if token is None:  # an id of the padded vocabulary that names no token
            return b""
        if token_id in self._byte_token_ids:
            return bytes([int(str(token)[3:5], 16)])
        if self._byte_values is not None and all(character in self._byte_values for character in str(token)):
            return bytes(self._byte_values[character] for character in str(token))
        return str(self._tokenizer.decode([token_id], clean_up_tokenization_spaces=False)).encode()

    def token_text(self, token_id: int) -> str:
        """One token as text; a part of a character as OpenAI writes it, `bytes:\\xe2\\x82`."""
        data = self.token_bytes(token_id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def _encode(self, text: str, add_special_tokens: bool) -> tuple[int, ...]:
        encoded = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return tuple(encoded["input_ids"])

    def _encode_chat(self, messages: Sequence[ChatMessage], tools: Sequence[Tool]) -> tuple[int, ...]:
        turns = [_turn(message, index) for index, message in enumerate(messages)]
        described: list[Any] = [tool.model_dump(exclude_unset=True) for tool in tools]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tools=described or None, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InvalidRequestError(
                f"The model's chat template refuses these messages: {error}", param="messages"
            ) from error
        return self._encode(str(text), add_special_tokens=False)


def _turn(message: ChatMessage, index: int) -> dict[str, Any]:
    """A message as templates know it: arguments of calls are objects, and "developer" is OpenAI's newer "system"."""
    turn: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": message.text,
    }
    if message.tool_calls:
        turn["tool_calls"] = [_called(call, index) for call in message.tool_calls]
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def _called(call: ToolCall, index: int) -> dict[str, Any]:
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError) as error:
        message = f"The arguments of the call {call.function.name} are no JSON: {error}"
        raise InvalidRequestError(message, param=f"messages[{index}].tool_calls") from error
    return {"id": call.id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _tool_syntax(tokenizer: PreTrainedTokenizerBase) -> ToolSyntax | None:
    if not tokenizer.chat_template:
        return None
    return tool_syntax(tokenizer.get_chat_template(tools=[]))  # a model may have a template of its own for tools


def check_encodable(text: str, param: str) -> None:
    """Refuse half a surrogate pair (JSON's `"\\ud800"`).

    Raises:
        InvalidRequestError: the text can't be encoded as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"Character {error.start} is half a surrogate pair, which is no text", param=param
        ) from error


def _forget_truncation(tokenizer: PreTrainedTokenizerBase) -> None:
    """Drop truncation and padding that the model's files ask for: they would cut prompts without a word.

    transformers would also switch them off in every call, and the switch fails while another thread tokenizes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """Token ids to text, special tokens left out: two short lists for every token of every answer.

    transformers' `decode` spends five times as long on looking at its arguments as on decoding, so that is left out
    where the tokenizer does nothing else.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and type(tokenizer)._decode is PreTrainedTokenizerFast._decode:
        return partial(backend.decode, skip_special_tokens=True)
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"


def _byte_level_alphabet() -> dict[str, int]:
    """Byte-level BPE's printable stand-in of each byte. Source: Radford et al. 2019 (GPT-2), section 2.2."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _byte_fallback_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    vocabulary = tokenizer.get_vocab()
    names = (f"<0x{byte:02X}>" for byte in range(256))
    return frozenset(vocabulary[name] for name in names if name in vocabulary)
