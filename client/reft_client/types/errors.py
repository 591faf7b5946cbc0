"""The error object of every failed request, and of a stream that fails midway."""

from __future__ import annotations

from .base import ResponseModel

__all__ = ["ErrorObject", "ErrorResponse"]


class ErrorObject(ResponseModel):
    """What went wrong. `code` is stable; `param` names the field at fault, where there is one."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(ResponseModel):
    """The body of a failed request."""

    error: ErrorObject
