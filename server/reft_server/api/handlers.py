"""Exceptions become OpenAI error objects."""

from __future__ import annotations

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from reft_server.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    PayloadTooLargeError,
    ReftError,
    RequestBodyTimeoutError,
    RouteNotFoundError,
)

from .context import count_error
from .errors_table import error_response


def install_handlers(app: FastAPI) -> None:
    """Register the handlers of every exception that a route or the framework raises on purpose."""
    app.add_exception_handler(ReftError, _handle_reft_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)
    app.add_exception_handler(HTTPException, _handle_http_exception)


async def _handle_reft_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ReftError):
        raise error
    count_error(request.scope, error)
    return error_response(error)


async def _handle_validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    return await _handle_reft_error(request, validation_error(error))


async def _handle_http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    known: dict[int, ReftError] = {
        404: RouteNotFoundError(f"No route {request.method} {request.url.path}; GET /docs shows what there is"),
        405: MethodNotAllowedError(f"{request.url.path} does not take {request.method}"),
        408: RequestBodyTimeoutError(error.detail),
        413: PayloadTooLargeError(error.detail),
    }
    response = await _handle_reft_error(request, known.get(error.status_code, _unreadable(error)))
    response.headers.update(error.headers or {})  # such as Allow of a 405
    return response


def _unreadable(error: HTTPException) -> InvalidRequestError:
    return InvalidRequestError(f"The request can't be read: {error.detail}")


def validation_error(error: RequestValidationError) -> InvalidRequestError:
    """The first thing wrong with a request, with the field's path as `param`; the input is never repeated."""
    first = error.errors()[0]
    location = [part for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return InvalidRequestError(f"The body is not valid JSON: {first['ctx']['error']} at character {location[0]}")
    param = _path(location)
    if not param and first["type"] != "value_error":
        return InvalidRequestError("Send a JSON object, with the header content-type: application/json")
    message = first["msg"].removeprefix("Value error, ")
    return InvalidRequestError(f"{param}: {message}" if param else message, param=param or None)


def _path(location: list[str | int]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path
