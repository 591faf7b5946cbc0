"""What an answer may look like: OpenAI's `response_format`, vLLM's `structured_outputs` and its older `guided_*`."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, StrictBool, model_validator

from .base import RequestModel, Text

__all__ = ["GrammarKind", "JsonSchema", "OutputGrammar", "ResponseFormat", "StructuredOutputs"]

GrammarKind = Literal["json_schema", "regex", "choice", "grammar"]
JsonSchemaArgument = dict[str, Any] | StrictBool | Text
Choices = Annotated[list[Annotated[Text, Field(min_length=1)]], Field(min_length=1, max_length=4096)]
Pattern = Annotated[Text, Field(min_length=1)]

_NOT_SERVED = ("disable_any_whitespace", "disable_additional_properties", "structural_tag", "whitespace_pattern")


class OutputGrammar(NamedTuple):
    """A grammar in one shape. `text` is a JSON Schema, a pattern, a list of choices as JSON, or a grammar in Lark's or
    GBNF's syntax; `param` is the field that it came in."""

    kind: GrammarKind
    text: str
    param: str


class JsonSchema(RequestModel):
    """A named schema; it holds whether `strict` is asked for or not."""

    name: Annotated[Text, Field(min_length=1, max_length=64)]
    description: Text | None = None
    schema_: Annotated[dict[str, Any] | StrictBool | None, Field(alias="schema")] = None
    strict: StrictBool | None = None


class ResponseFormat(RequestModel):
    """OpenAI's: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_needed(self) -> ResponseFormat:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema comes with type=json_schema, and only there")
        return self

    def grammar(self) -> OutputGrammar | None:
        """None for free text."""
        if self.json_schema is not None and self.json_schema.schema_ is not None:
            return OutputGrammar("json_schema", json.dumps(self.json_schema.schema_), "response_format")
        return None if self.type == "text" else any_object("response_format")


class StructuredOutputs(RequestModel):
    """vLLM's: one of JSON of a schema, any JSON object, a pattern, one of some texts, or a context-free grammar."""

    json_: Annotated[JsonSchemaArgument | None, Field(alias="json")] = None
    json_object: StrictBool = False
    regex: Pattern | None = None
    choice: Choices | None = None
    grammar: Pattern | None = None

    @model_validator(mode="after")
    def _one_constraint(self) -> StructuredOutputs:
        for name in _NOT_SERVED:
            if (self.model_extra or {}).get(name):
                raise ValueError(f"{name} is not served")
        values = (self.json_, self.json_object or None, self.regex, self.choice, self.grammar)
        if sum(value is not None for value in values) != 1:
            raise ValueError("give exactly one of json, json_object, regex, choice and grammar")
        return self

    def to_grammar(self) -> OutputGrammar | None:
        """The one that was given."""
        param = "structured_outputs"
        if self.json_object:
            return any_object(param)
        return named_grammar(param, self.json_, self.regex, self.choice, self.grammar)


def any_object(param: str) -> OutputGrammar:
    """Any JSON object."""
    return OutputGrammar("json_schema", '{"type": "object"}', param)


def named_grammar(
    param: str,
    schema: JsonSchemaArgument | None = None,
    regex: str | None = None,
    choice: list[str] | None = None,
    grammar: str | None = None,
) -> OutputGrammar | None:
    """The first of these that is there."""
    if schema is not None:
        return OutputGrammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema), param)
    if regex is not None:
        return OutputGrammar("regex", regex, param)
    if choice is not None:
        return OutputGrammar("choice", json.dumps(choice, ensure_ascii=False), param)
    return None if grammar is None else OutputGrammar("grammar", grammar, param)
