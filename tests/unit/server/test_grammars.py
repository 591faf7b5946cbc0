"""Compiled grammars: what they let through against Python's own check of each text, and what is refused."""

from __future__ import annotations

import asyncio
import json
import random
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from reft_client.types import OutputGrammar
from reft_server.errors import GrammarTooComplexError, InvalidGrammarError
from reft_server.grammars import GrammarCompiler, GuidanceGrammar
from tests.fakes.engine import EOS
from tests.fakes.tokenizers import byte_level_tokenizer

TOKENIZER = byte_level_tokenizer()
VOCAB_SIZE = len(TOKENIZER) + 7  # padded, as real models' often is
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    made = GrammarCompiler(TOKENIZER, VOCAB_SIZE, {EOS}, 64_000)
    yield made
    made.close()


def compile_text(compiler: GrammarCompiler, kind: Any, text: object) -> GuidanceGrammar:
    source = OutputGrammar(kind, text if isinstance(text, str) else json.dumps(text), "field")
    return asyncio.run(compiler.compile(source))


def follow(grammar: GuidanceGrammar, text: str) -> tuple[bool, bool]:
    """Whether the grammar lets a text through, character by character, and whether it may end there."""
    matcher = grammar.matcher()
    for token_id in (TOKENIZER(character)["input_ids"][0] for character in text):
        if not matcher.allowed()[token_id]:
            return False, False
        matcher.accept(token_id)
        assert matcher.error is None
    return True, bool(matcher.allowed()[EOS])


@pytest.mark.parametrize(
    ("text", "is_begun", "is_whole"),
    [
        ('{"name": "Ada", "age": 36}', True, True),
        ('{"name":"Ada","age":-1}', True, True),
        ('{ "name" : "Ada",\n  "age" : 36 }', True, True),
        ('{"name": "Ada", "age": 3', True, False),
        ('{"name": "Ada"}', False, False),
        ('{"name": "Adaline"', False, False),
        ('{"name": "Ada", "age": "36"', False, False),
        ('{"name": "Ada", "age": 36, "x"', False, False),
        ('Sure! {"name"', False, False),
        ('{"name":' + " " * 40, False, False),
    ],
)
def test_json_schema_lets_its_instances_through(
    compiler: GrammarCompiler, text: str, is_begun: bool, is_whole: bool
) -> None:
    assert follow(compile_text(compiler, "json_schema", PERSON), text) == (is_begun, is_whole)


@pytest.mark.parametrize("pattern", ["[a-c]{2,3}x?", "(yes|no|yesterday)", "-?[0-9]+(\\.[0-9]+)?"])
@pytest.mark.parametrize("text", ["", "ab", "abcx", "abcd", "yes", "yest", "no", "yesterday", "-1", "1.5", "1.", "x"])
def test_pattern_lets_through_what_python_matches(compiler: GrammarCompiler, pattern: str, text: str) -> None:
    begun, whole = follow(compile_text(compiler, "regex", pattern), text)
    assert whole == bool(re.fullmatch(pattern, text))
    assert begun or not whole


@pytest.mark.parametrize("syntax", ['start: "a" start "b" | "x"', 'root ::= "a" root "b" | "x"'], ids=["Lark", "GBNF"])
def test_context_free_grammar_counts_brackets(compiler: GrammarCompiler, syntax: str) -> None:
    grammar = compile_text(compiler, "grammar", syntax)
    assert follow(grammar, "aaxbb") == (True, True)
    assert follow(grammar, "aaxb") == (True, False)
    assert follow(grammar, "axbb") == (False, False)


def test_choice_is_one_of_its_texts(compiler: GrammarCompiler) -> None:
    grammar = compile_text(compiler, "choice", ['say "hi"', "a\\b", "é.*"])
    for text in ('say "hi"', "a\\b"):
        assert follow(grammar, text) == (True, True)
    assert follow(grammar, "a.b") == (False, False)


def test_answer_is_complete_where_nothing_can_follow(compiler: GrammarCompiler) -> None:
    matcher = compile_text(compiler, "regex", "ab").matcher()
    for character in "ab":
        assert not matcher.is_complete
        matcher.accept(TOKENIZER(character)["input_ids"][0])
    assert matcher.is_complete
    assert matcher.allowed().nonzero()[0].tolist() == [EOS]


def test_matchers_of_one_grammar_do_not_share_their_place(compiler: GrammarCompiler) -> None:
    grammar = compile_text(compiler, "regex", "ab")
    first, second = grammar.matcher(), grammar.matcher()
    first.accept(TOKENIZER("a")["input_ids"][0])
    assert second.allowed()[TOKENIZER("a")["input_ids"][0]]
    assert not first.allowed()[TOKENIZER("a")["input_ids"][0]]


def test_ids_of_the_padded_vocabulary_are_never_allowed(compiler: GrammarCompiler) -> None:
    allowed = compile_text(compiler, "regex", "(?s:.*)").matcher().allowed()
    assert len(allowed) == VOCAB_SIZE
    assert not allowed[len(TOKENIZER) :].any()


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("json_schema", {"type": "wibble"}, "wibble"),
        ("json_schema", {"if": {}}, "if"),
        ("json_schema", {"$ref": "http://example.com/schema"}, "example.com"),
        ("json_schema", "[1", ""),
        ("json_schema", '"text"', ""),
        ("regex", "(a", "unclosed"),
        ("regex", "(?=a)b", "look"),
        ("grammar", "start: nothing", "nothing"),
        ("grammar", "", ""),
        ("grammar", 'start: "', ""),
    ],
)
def test_what_is_no_grammar_is_refused_with_its_reason(
    compiler: GrammarCompiler, kind: str, text: object, said: str
) -> None:
    with pytest.raises(InvalidGrammarError) as caught:
        compile_text(compiler, kind, text)
    assert said in caught.value.message
    assert caught.value.param == "field"


@pytest.mark.parametrize(
    ("kind", "text"),
    [("regex", "a" * 64_001), ("json_schema", '{"type":"array","items":' * 500 + "{}" + "}" * 500)],
    ids=["long", "deep"],
)
def test_what_takes_too_much_is_refused(compiler: GrammarCompiler, kind: str, text: str) -> None:
    with pytest.raises(GrammarTooComplexError) as caught:
        compile_text(compiler, kind, text)
    assert caught.value.param == "field"


def run_at_random(grammar: GuidanceGrammar) -> GrammarTooComplexError | None:
    """What ends an answer of at most a thousand random tokens."""
    matcher = grammar.matcher()
    chosen = random.Random(0)
    for _ in range(1000):
        allowed = matcher.allowed().nonzero()[0].tolist()
        if matcher.error is None:
            matcher.accept(chosen.choice(allowed))
        if matcher.error is not None:
            return matcher.error
    return None


def test_states_that_explode_end_their_own_request_only(compiler: GrammarCompiler) -> None:
    """Which of the last 60 characters were `a` takes 2**60 states; memory and time stay bounded."""
    pattern = "(.*a).{60}z"
    assert isinstance(run_at_random(compile_text(compiler, "regex", pattern)), GrammarTooComplexError)
    assert follow(compile_text(compiler, "regex", pattern), "a" * 61 + "z") == (True, True)


def test_compiling_leaves_the_event_loop_free(compiler: GrammarCompiler) -> None:
    held = threading.Event()

    async def run() -> None:
        compiler._executor.submit(held.wait)
        waiting = asyncio.create_task(compiler.compile(OutputGrammar("regex", "a", "field")))
        await asyncio.sleep(0)
        assert not waiting.done()
        held.set()
        await waiting

    asyncio.run(run())
