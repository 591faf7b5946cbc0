"""The OpenAPI document: what the middleware and the error handlers add to every route is described here, once."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from .authentication import PUBLIC_PATHS

_VALIDATION_SCHEMAS = ("HTTPValidationError", "ValidationError")
_BEARER = "APIKey"
_WITH_KEY = {
    401: "No API key, or one that opens nothing.",
    403: "The API key lacks the scope, or a browser sends this for another site.",
    429: "The tenant's rate is used up, or the server is full; see `Retry-After`.",
    503: "The server shuts down, or its engine restarts; see `Retry-After`.",
}
_WITH_BODY = {
    400: "The request can't be read, or a field is wrong; `param` names it.",
    408: "The body came too slowly.",
    413: "The body is too large.",
}


def install_document(app: FastAPI) -> None:
    """Serve the completed document as `/openapi.json`; it is made at the first request for it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _complete(operation, is_public=path in PUBLIC_PATHS)
    components = document["components"]
    for name in _VALIDATION_SCHEMAS:
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer"}}
    return document


def _complete(operation: dict[str, Any], *, is_public: bool) -> None:
    responses = operation["responses"]
    if _is_validation_error(responses.get("422")):  # FastAPI's default, which our handler replaces
        del responses["422"]
        responses.setdefault("400", _error(_WITH_BODY[400]))
    if is_public:
        return
    operation["security"] = [{_BEARER: []}]
    for status, description in (_WITH_KEY | _WITH_BODY if "requestBody" in operation else _WITH_KEY).items():
        responses.setdefault(str(status), _error(description))


def _is_validation_error(response: dict[str, Any] | None) -> bool:
    return response is not None and _VALIDATION_SCHEMAS[0] in str(response.get("content"))


def _error(description: str) -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}
