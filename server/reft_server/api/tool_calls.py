"""Tool calls in the text of an answer: what the base model's chat template teaches it to write, and what is forced."""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from reft_client.types import ChatCompletionRequest, NamedToolChoice
from reft_client.types.tools import MAX_CALLS

from .detokenizer import num_open

ToolSyntax = Literal["hermes", "llama"]
"""`<tool_call>{"name", "arguments"}</tool_call>` (Hermes, Qwen), or a bare `{"name", "parameters"}` (Llama 3)."""

_BEGIN, _END = "<tool_call>", "</tool_call>"
_EXTENSIONS = ("jinja2.ext.loopcontrols",)  # as transformers renders templates


@dataclass(frozen=True)
class CallPiece:
    """A piece of the answer's call number `index`: the first one has `call_id` and `name`, later ones add arguments."""

    index: int
    arguments: str
    call_id: str | None = None
    name: str | None = None


Piece = str | CallPiece
"""A piece of the answer's content, or of a call."""


def tool_syntax(chat_template: str) -> ToolSyntax | None:
    """How a model with this template writes calls; None where it knows no tools, or a syntax that isn't served."""
    try:
        names = meta.find_undeclared_variables(SandboxedEnvironment(extensions=_EXTENSIONS).parse(chat_template))
    except TemplateSyntaxError:
        return None
    if "tools" not in names:
        return None
    if _BEGIN in chat_template:
        return "hermes"
    return "llama" if "ipython" in chat_template and '"parameters"' in chat_template else None


class ToolParser(ABC):
    """Separates the calls of one answer from its content, whatever pieces the text arrives in.

    Args:
        max_calls: later ones are dropped.
    """

    ends_with_calls = True
    """Whether an answer with calls ends with `tool_calls`: not where the caller named the function, as at OpenAI."""

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        self._max_calls = max_calls
        self._num_calls = 0

    @property
    def has_calls(self) -> bool:
        """A call was found."""
        return self._num_calls > 0

    def add(self, text: str, *, is_last: bool) -> tuple[str, tuple[CallPiece, ...]]:
        """Take the next text in: the content and the pieces of calls that are settled now."""
        pieces = [*self.push(text), *(self.flush() if is_last else ())]
        content = "".join(piece for piece in pieces if isinstance(piece, str))
        calls = (piece for piece in pieces if isinstance(piece, CallPiece))
        return content, tuple(piece for piece in calls if piece.index < self._max_calls)

    @abstractmethod
    def push(self, text: str) -> Iterator[Piece]:
        """Add text; what is settled now."""

    @abstractmethod
    def flush(self) -> Iterator[Piece]:
        """The rest; call once, at the end."""

    def _call(self, name: str, arguments: str) -> CallPiece:
        self._num_calls += 1
        return CallPiece(self._num_calls - 1, arguments, f"call_{uuid.uuid4().hex[:24]}", name)


class HermesParser(ToolParser):
    """Calls between tags, anywhere in the text; blanks around them are dropped, what can't be read stays text."""

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        super().__init__(max_calls)
        self._text = ""

    def push(self, text: str) -> Iterator[Piece]:
        self._text += text
        while (begin := self._text.find(_BEGIN)) >= 0:
            end = self._text.find(_END, begin)
            if end < 0:
                break
            yield from self._content(self._text[:begin].rstrip())
            yield self._read(self._text[begin : end + len(_END)])
            self._text = self._text[end + len(_END) :]
        if begin < 0:
            # blanks and a beginning of the tag wait: both belong to a call if one follows
            settled = self._text[: len(self._text) - num_open(self._text, _BEGIN)].rstrip()
            self._text = self._text[len(settled) :]
            yield from self._content(settled)

    def flush(self) -> Iterator[Piece]:
        begin = self._text.find(_BEGIN)
        if begin < 0:
            yield from self._content(self._text)
            return
        yield from self._content(self._text[:begin].rstrip())
        yield self._read(self._text[begin:])

    def _content(self, text: str) -> Iterator[str]:
        if text and not (self.has_calls and text.isspace()):
            yield text

    def _read(self, block: str) -> Piece:
        call = _loads(block.removeprefix(_BEGIN).removesuffix(_END))
        if not _is_call(call, "arguments"):
            return block
        return self._call(call["name"], json.dumps(call["arguments"], ensure_ascii=False))


class LlamaParser(ToolParser):
    """The whole answer is one call, or several with semicolons between; anything else is text."""

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        super().__init__(max_calls)
        self._text = ""
        self._is_text = False

    def push(self, text: str) -> Iterator[Piece]:
        self._text += text
        stripped = self._text.lstrip()
        if self._is_text or (stripped and not stripped.startswith("{")):
            self._is_text = True
            settled, self._text = self._text, ""
            if settled:
                yield settled

    def flush(self) -> Iterator[Piece]:
        calls, rest = [], self._text.strip()
        while rest:
            try:
                call, end = json.JSONDecoder().raw_decode(rest)
            except (ValueError, RecursionError):
                break
            if not _is_call(call, "parameters"):
                break
            calls.append(call)
            rest = rest[end:].lstrip(" \n;")
        if rest:
            yield self._text
            return
        for call in calls:
            yield self._call(call["name"], json.dumps(call["parameters"], ensure_ascii=False))


class ForcedListParser(ToolParser):
    """A list of calls that a grammar forced: each leaves when it is whole; a beginning of one stays text."""

    def __init__(self, max_calls: int = MAX_CALLS) -> None:
        super().__init__(max_calls)
        self._text = ""

    def push(self, text: str) -> Iterator[Piece]:
        self._text += text
        while "}" in text:
            rest = self._text.lstrip(" \t\r\n[,")
            try:
                call, end = json.JSONDecoder().raw_decode(rest)
            except ValueError:
                return
            yield self._call(call["name"], json.dumps(call["parameters"], ensure_ascii=False))
            self._text = rest[end:]

    def flush(self) -> Iterator[Piece]:
        rest = self._text.strip(" \t\r\n[,]")
        if rest:
            yield rest


class ForcedCallParser(ToolParser):
    """The arguments of one function, which leave as they come."""

    ends_with_calls = False

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def push(self, text: str) -> Iterator[Piece]:
        if text:
            yield CallPiece(0, text) if self.has_calls else self._call(self._name, text)

    def flush(self) -> Iterator[Piece]:
        yield from ()


def tool_parser(body: ChatCompletionRequest, syntax: ToolSyntax | None) -> Callable[[], ToolParser] | None:
    """Makes the parser of each answer; None where no call can come."""
    choice = body.effective_tool_choice
    if choice == "none":
        return None
    if isinstance(choice, NamedToolChoice):
        name = choice.function.name
        return lambda: ForcedCallParser(name)
    max_calls = MAX_CALLS if body.parallel_tool_calls else 1
    if choice == "required":
        return lambda: ForcedListParser(max_calls)
    return lambda: LlamaParser(max_calls) if syntax == "llama" else HermesParser(max_calls)


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_call(value: Any, arguments: str) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and bool(value["name"])
        and isinstance(value.get(arguments), dict)
    )
