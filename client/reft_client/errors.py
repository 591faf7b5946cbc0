"""Every error that the client raises, one tree, and how a failed exchange becomes one of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType

import httpx
from pydantic import ValidationError

from .types import ErrorObject, ErrorResponse

__all__ = [
    "APIConnectionError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AuthenticationError",
    "BadRequestError",
    "ConflictError",
    "InternalServerError",
    "InvalidArgumentError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PreconditionFailedError",
    "RateLimitError",
    "ReftClientError",
    "ServerUnreachableError",
    "ServiceUnavailableError",
    "StreamTruncatedError",
    "UnprocessableEntityError",
    "error_from_event",
    "error_from_response",
    "error_from_transport",
]


class ReftClientError(Exception):
    """Anything the client raises on purpose; `message` is one sentence."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidArgumentError(ReftClientError, ValueError):
    """An argument was refused before anything was sent."""


class APIConnectionError(ReftClientError):
    """The server can't be reached, or the connection broke."""


class ServerUnreachableError(APIConnectionError):
    """No connection could be made: nothing was sent."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""


class StreamTruncatedError(APIConnectionError):
    """The stream ended without `[DONE]`: what was received is not the whole answer."""


class APIResponseValidationError(ReftClientError):
    """The server answered something that this client can't read."""


class APIStatusError(ReftClientError):
    """The server refused the request, or a stream failed midway.

    Args:
        status_code: HTTP status; for a failed stream, the one that its error has outside a stream.
        code: the server's stable error code, such as `intervention_not_found`.
        param: the field at fault.
        request_id: to find the request in the server's log.
        retry_after_s: how long the server asked to wait.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BadRequestError(APIStatusError):
    """400: a field is malformed, out of range, not served, or contradicts another."""


class AuthenticationError(APIStatusError):
    """401: no API key, or a wrong one."""


class PermissionDeniedError(APIStatusError):
    """403: the key may not do this."""


class NotFoundError(APIStatusError):
    """404: no such model, intervention or version."""


class ConflictError(APIStatusError):
    """409: the store holds something else under that name."""


class PreconditionFailedError(APIStatusError):
    """412: the name does not hold what the upload was meant to replace."""


class PayloadTooLargeError(APIStatusError):
    """413: the body exceeds the server's limit."""


class UnprocessableEntityError(APIStatusError):
    """422: the intervention file was read and refused."""


class RateLimitError(APIStatusError):
    """429: the server's queue or the caller's quota is full."""


class InternalServerError(APIStatusError):
    """5xx: the server failed."""


class ServiceUnavailableError(InternalServerError):
    """503: the server is starting, stopping or overloaded."""


_BY_STATUS: Mapping[int, type[APIStatusError]] = MappingProxyType(
    {
        400: BadRequestError,
        401: AuthenticationError,
        403: PermissionDeniedError,
        404: NotFoundError,
        409: ConflictError,
        412: PreconditionFailedError,
        413: PayloadTooLargeError,
        422: UnprocessableEntityError,
        429: RateLimitError,
        503: ServiceUnavailableError,
    }
)
# An error inside a stream comes after the status line: its code, else its type, says which status it would have had.
_STATUS_BY_CODE: Mapping[str, int] = MappingProxyType(
    {"engine_unavailable": 503, "engine_overloaded": 429, "request_timeout": 504}
)
_STATUS_BY_TYPE: Mapping[str, int] = MappingProxyType(
    {
        "invalid_request_error": 400,
        "authentication_error": 401,
        "permission_error": 403,
        "not_found_error": 404,
        "conflict_error": 409,
        "rate_limit_error": 429,
        "overloaded_error": 503,
        "service_unavailable_error": 503,
    }
)


def _status_class(status_code: int) -> type[APIStatusError]:
    return _BY_STATUS.get(status_code, InternalServerError if status_code >= 500 else APIStatusError)


def _retry_after_s(headers: httpx.Headers) -> float | None:
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:  # absent, or the HTTP date form: the client then keeps its own pace
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def error_from_response(response: httpx.Response) -> APIStatusError:
    """The typed error of a response that is not a success; its body must have been read."""
    status = response.status_code
    try:
        error = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:  # a proxy's page, or another server
        reason = response.reason_phrase or "no reason given"
        error = ErrorObject(message=f"{response.request.url} answered {status} ({reason})", type="unknown")
    return _status_class(status)(
        error.message,
        status_code=status,
        code=error.code,
        param=error.param,
        request_id=response.headers.get("x-request-id"),
        retry_after_s=_retry_after_s(response.headers),
    )


def error_from_event(error: ErrorObject, request_id: str | None) -> APIStatusError:
    """The typed error of an `{"error": ...}` event inside a stream."""
    status = _STATUS_BY_CODE.get(error.code or "") or _STATUS_BY_TYPE.get(error.type, 500)
    return _status_class(status)(
        error.message, status_code=status, code=error.code, param=error.param, request_id=request_id
    )


def error_from_transport(error: httpx.RequestError, url: str) -> APIConnectionError:
    """The typed error of an exchange that brought no response."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError):
        return ServerUnreachableError(f"can't reach {url}: {reason}")
    if isinstance(error, httpx.TimeoutException):
        return APITimeoutError(f"{url} did not answer in time ({type(error).__name__})")
    return APIConnectionError(f"the connection to {url} broke: {reason}")
