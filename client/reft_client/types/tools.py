"""Functions that a model may call, and its calls, in OpenAI's shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from .base import Int, RequestModel, ResponseModel, Text
from .structured import OutputGrammar

__all__ = [
    "FunctionCall",
    "FunctionCallDelta",
    "FunctionDefinition",
    "NamedFunction",
    "NamedToolChoice",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
]

MAX_TOOLS = 128
MAX_CALLS = 64

FunctionName = Annotated[Text, Field(pattern=r"^[A-Za-z0-9_.\-]{1,128}$")]


class FunctionDefinition(RequestModel):
    """A function; `parameters` is a JSON Schema of an object, any object where it is missing."""

    name: FunctionName
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None

    @property
    def schema_of_arguments(self) -> dict[str, Any]:
        """`parameters`, never missing."""
        return self.parameters or {"type": "object"}


class Tool(RequestModel):
    """A function that may be called."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(RequestModel):
    """The function that must be called."""

    name: FunctionName


class NamedToolChoice(RequestModel):
    """A choice of `tool_choice`: this function and no other."""

    type: Literal["function"] = "function"
    function: NamedFunction


class FunctionCall(ResponseModel):
    """A call; `arguments` is JSON as the model wrote it, a beginning of it where `max_tokens` cut the answer."""

    name: Annotated[Text, Field(min_length=1, max_length=128)]
    arguments: Text = ""


class ToolCall(ResponseModel):
    """A call of an answer, and of a conversation that goes on after it."""

    id: Text
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(ResponseModel):
    """A piece of a call; the first one holds the name."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(ResponseModel):
    """A piece of the answer's call number `index`; the first one holds the id."""

    index: Int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta


def calls_grammar(tools: Sequence[Tool], *, is_parallel: bool) -> OutputGrammar:
    """At least one call of any of the functions: a list of `{"name", "parameters"}`, as vLLM has it.

    Raises:
        ValueError: two functions define different schemas under one name.
    """
    definitions: dict[str, Any] = {}
    calls = []
    for tool in tools:
        schema = dict(tool.function.schema_of_arguments)
        # a reference like "#/$defs/Place" counts from the root, which is ours now
        for name, definition in schema.pop("$defs", {}).items():
            if definitions.setdefault(name, definition) != definition:
                raise ValueError(f"two tools define different schemas as $defs/{name}")
        properties = {"name": {"const": tool.function.name}, "parameters": schema}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "parameters"],
                "additionalProperties": False,
            }
        )
    schema = {"type": "array", "minItems": 1, "maxItems": MAX_CALLS if is_parallel else 1, "items": {"anyOf": calls}}
    if definitions:
        schema["$defs"] = definitions
    return OutputGrammar("json_schema", json.dumps(schema), "tools")


def arguments_grammar(tools: Sequence[Tool], name: str) -> OutputGrammar:
    """The arguments of the function `name`.

    Raises:
        ValueError: no tool has this name.
    """
    for tool in tools:
        if tool.function.name == name:
            return OutputGrammar("json_schema", json.dumps(tool.function.schema_of_arguments), "tools")
    raise ValueError(f"tool_choice names {name}, which is not in tools")
