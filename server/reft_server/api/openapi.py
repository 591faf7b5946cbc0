"""Examples and shared response descriptions of the OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi.openapi.models import Example

from reft_client.types import ErrorResponse

ERROR: dict[str, Any] = {"model": ErrorResponse}

_ANSWER_HEADERS: dict[str, Any] = {
    name: {"schema": {"type": "string"}, "required": False, "description": description}
    for name, description in (
        ("x-reft-intervention", "`name@version` of each set that answered, in order; none = the base model."),
        ("x-reft-content-hash", "The hash of each set's file."),
        ("x-reft-route", "`task@revision` of the route that chose them."),
    )
}
GENERATION_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}, "headers": _ANSWER_HEADERS},
    400: {**ERROR, "description": "A field is wrong or not served; `param` names it."},
    404: {**ERROR, "description": "No such model, intervention or task."},
    413: {**ERROR, "description": "The body is too large."},
    429: {**ERROR, "description": "Too many requests wait already; see `Retry-After`."},
    503: {**ERROR, "description": "The engine is starting or restarting; see `Retry-After`."},
}
LOOKUP_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {**ERROR, "description": "The name or the version breaks the naming rules."},
    404: {**ERROR, "description": "No such intervention or version."},
}
CONFLICT_RESPONSES: dict[int | str, dict[str, Any]] = {
    **LOOKUP_RESPONSES,
    409: {**ERROR, "description": "An alias names that version; or named no other before."},
}
GENERATION_RESPONSES_WHOLE = {status: shown for status, shown in GENERATION_RESPONSES.items() if status != 200}
TEST_RESPONSES: dict[int | str, dict[str, Any]] = {
    422: {**ERROR, "description": "The test failed, or the set does not fit the base model; `code` says which."},
    503: {**ERROR, "description": "The engine is starting or restarting; see `Retry-After`."},
}
ONCE_RESPONSES: dict[int | str, dict[str, Any]] = {
    422: {**ERROR, "description": "Another request had this `Idempotency-Key`."},
}
DOWNLOAD_RESPONSES: dict[int | str, dict[str, Any]] = {
    **LOOKUP_RESPONSES,
    304: {"description": "`If-None-Match` names this content."},
}
UPLOAD_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {**ERROR, "description": "No name, a bad name, or a malformed form."},
    409: {**ERROR, "description": "Another writer was first, or another request has this `Idempotency-Key`."},
    412: {**ERROR, "description": "The name does not hold what `If-Match` or `If-None-Match` says."},
    413: {**ERROR, "description": "The file, or its header, is too large."},
    422: {**ERROR, "description": "The file is refused; `code` says why. Nothing is stored."},
}

FILE_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {**ERROR, "description": "A malformed form, another purpose, or a line that can't be learnt from."},
    413: {**ERROR, "description": "The file is too large, or there is no room for it."},
}
JOB_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {**ERROR, "description": "A field is wrong or not served; `param` names it."},
    404: {**ERROR, "description": "No such base model or file."},
    429: {**ERROR, "description": "Too many jobs wait already; see `Retry-After`."},
    501: {**ERROR, "description": "This server was started without fine-tuning."},
}
JOB_LOOKUP_RESPONSES: dict[int | str, dict[str, Any]] = {404: {**ERROR, "description": "No such job."}}

COMPLETION_EXAMPLES: dict[str, Example] = {
    "base": {"summary": "The base model", "value": {"prompt": "The capital of France is", "max_tokens": 8}},
    "intervention": {
        "summary": "One intervention, its newest version",
        "value": {"prompt": "The capital of France is", "max_tokens": 8, "intervention": "my-style"},
    },
    "several": {
        "summary": "Several, in order, each with a version and a scale",
        "value": {
            "prompt": "The capital of France is",
            "max_tokens": 8,
            "intervention": ["my-style@2", {"name": "my-tone", "scale": 0.5}],
        },
    },
}
CHAT_EXAMPLES: dict[str, Example] = {
    "base": {
        "summary": "The base model",
        "value": {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 32},
    },
    "intervention": {
        "summary": "An intervention, chosen by `model`, streamed",
        "value": {
            "model": "my-style",
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    },
}
JOB_EXAMPLES: dict[str, Example] = {
    "reft": {
        "summary": "ReFT, with everything that reft-train can set",
        "value": {
            "model": "base",
            "training_file": "file-0123456789abcdef01234567",
            "method": {
                "type": "reft",
                "reft": {
                    "name": "pirate",
                    "hyperparameters": {"layers": "6;10;14;18;22", "positions": "l5", "lr": 1e-2, "epochs": 15},
                },
            },
            "seed": 7,
        },
    },
    "supervised": {
        "summary": "As OpenAI's SDK types it: ReFT with its defaults",
        "value": {
            "model": "base",
            "training_file": "file-0123456789abcdef01234567",
            "suffix": "pirate",
            "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        },
    },
}
FILE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines."},
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                    },
                }
            },
        },
    }
}
UPLOAD_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "The .safetensors file."},
                        "name": {"type": "string", "description": "Instead of the query's `name`."},
                    },
                }
            },
        },
    }
}
ROUTE_EXAMPLES: dict[str, Example] = {
    "one": {"summary": "One set, its newest version", "value": {"targets": [{"intervention": "my-style"}]}},
    "split": {
        "summary": "A tenth of the keys to a new version, which the others try in the shadow",
        "value": {
            "targets": [{"intervention": "my-style@1", "weight": 9}, {"intervention": "my-style@2", "weight": 1}],
            "shadow": {"intervention": "my-style@2", "fraction": 0.1},
        },
    },
}
