"""Grammars for answers: JSON Schemas, regular expressions, choices and context-free grammars, through llguidance.

Compiling runs in a thread of its own, with the library's fuel as its bound; the engine only asks for the next mask.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import llguidance
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from reft_client.types import OutputGrammar

from .errors import GrammarTooComplexError, InvalidGrammarError, UnsupportedParameterError

MAX_MESSAGE_CHARACTERS = 500

_WHITESPACE = r"[ \t\r\n]{0,32}"
"""Between the tokens of JSON; without a bound small models repeat blanks until `max_tokens`."""

_COMPLEXITY_MARKS = ("too many", "too large", "too complex", "limit exceeded", "max is", "fuel")


def _limits() -> LLParserLimits:
    """Bounds of one grammar: half a second to compile, 20 ms for a mask, some 20 MB of states (docs/log.md)."""
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        max_grammar_size=100_000,
        max_lexer_states=10_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        verbose_errors=False,
    )


class GuidanceMatcher:
    """`engine.types.TokenMatcher` of one answer. Used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    @property
    def error(self) -> GrammarTooComplexError | None:
        if not self._matcher.is_error():
            return None
        return GrammarTooComplexError(f"The grammar can't be followed any further: {_message(self._matcher)}")

    def allowed(self) -> NDArray[np.bool_]:
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        return np.unpackbits(packed, bitorder="little", count=self._vocab_size).view(np.bool_)

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)


class GuidanceGrammar:
    """`engine.types.Grammar`: a compiled grammar at its start."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._start = matcher
        self._vocab_size = vocab_size

    def matcher(self) -> GuidanceMatcher:
        return GuidanceMatcher(self._start.deep_copy(), self._vocab_size)


class GrammarCompiler:
    """Compiles grammars for one tokenizer.

    Nothing compiled is kept for the next request: copies of a matcher share the states that any of them has reached,
    and with them the bound on states, so one request's answer could end another's.

    Args:
        vocab_size: of the model: how long a mask is.
        eos_token_ids: what may follow a complete answer.
        max_bytes: longest grammar taken.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: Iterable[int], max_bytes: int
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self.max_bytes = max_bytes
        self._llguidance_tokenizer: LLTokenizer | None = None  # made when the first grammar comes: it takes a second
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reft-grammar")

    async def compile(self, source: OutputGrammar) -> GuidanceGrammar:
        """The grammar, compiled for one request.

        Raises:
            InvalidGrammarError: it is no grammar, or says something that the library doesn't know.
            GrammarTooComplexError: it is too long, or takes too much to compile.
            UnsupportedParameterError: the base model's tokenizer can't be followed.
        """
        size = len(source.text.encode())
        if size > self.max_bytes:
            raise GrammarTooComplexError(
                f"The grammar has {size} bytes, at most {self.max_bytes} are taken", param=source.param
            )
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._compile, source)

    def close(self) -> None:
        """End the thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _compile(self, source: OutputGrammar) -> GuidanceGrammar:
        matcher = LLMatcher(self._guidance_tokenizer(source), _text(source), log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first one fills caches, and finds what is too complex
        if matcher.is_error():
            raise _refusal(source, _message(matcher))
        return GuidanceGrammar(matcher, self._vocab_size)

    def _guidance_tokenizer(self, source: OutputGrammar) -> LLTokenizer:
        if self._llguidance_tokenizer is None:
            if not isinstance(self._tokenizer, PreTrainedTokenizerFast):
                message = f"{source.param} is not served for this base model: it has no fast tokenizer"
                raise UnsupportedParameterError(message, param=source.param)
            self._llguidance_tokenizer = from_tokenizer(
                self._tokenizer,
                n_vocab=max(len(self._tokenizer), self._vocab_size),
                eos_token=self._eos_token_ids or None,
            )
        return self._llguidance_tokenizer


def _text(source: OutputGrammar) -> str:
    """The library's own form of a grammar."""
    try:
        if source.kind == "json_schema":
            return LLMatcher.grammar_from_json_schema(source.text, overrides={"whitespace_pattern": _WHITESPACE})
        return llguidance.grammar_from(source.kind, source.text)
    except (ValueError, RecursionError) as error:
        raise _refusal(source, str(error)[:MAX_MESSAGE_CHARACTERS]) from error


def _refusal(source: OutputGrammar, message: str) -> InvalidGrammarError | GrammarTooComplexError:
    is_complex = any(mark in message for mark in _COMPLEXITY_MARKS)
    error = GrammarTooComplexError if is_complex else InvalidGrammarError
    return error(f"{source.param} can't be compiled: {message}", param=source.param)


def _message(matcher: LLMatcher) -> str:
    return matcher.get_error().removesuffix("<non-verbose/>").strip()[:MAX_MESSAGE_CHARACTERS]
