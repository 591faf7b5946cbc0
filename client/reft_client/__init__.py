"""Typed clients of a reft-serve server, and the wire types that both ends share. Never imports torch."""

from __future__ import annotations

from .async_client import AsyncReftClient
from .errors import (
    APIConnectionError,
    APIResponseValidationError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    InvalidArgumentError,
    NotFoundError,
    PayloadTooLargeError,
    PermissionDeniedError,
    PreconditionFailedError,
    RateLimitError,
    ReftClientError,
    ServerUnreachableError,
    ServiceUnavailableError,
    StreamTruncatedError,
    UnprocessableEntityError,
)
from .retry import RetryPolicy
from .sync_client import ReftClient
from .transports import AsyncStream, Stream
from .types import InterventionRef

__all__ = [
    "APIConnectionError",
    "APIResponseValidationError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncReftClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "ConflictError",
    "InternalServerError",
    "InterventionRef",
    "InvalidArgumentError",
    "NotFoundError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PreconditionFailedError",
    "RateLimitError",
    "ReftClient",
    "ReftClientError",
    "RetryPolicy",
    "ServerUnreachableError",
    "ServiceUnavailableError",
    "Stream",
    "StreamTruncatedError",
    "UnprocessableEntityError",
]
