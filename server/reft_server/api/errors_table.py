"""The one table from error types to HTTP statuses, and OpenAI's error object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from types import MappingProxyType

from starlette.responses import Response

from reft_client.types import ErrorObject, ErrorResponse
from reft_interventions import errors as interventions
from reft_server import errors as server

STATUS_BY_ERROR: Mapping[type[server.ReftError], int] = MappingProxyType(
    {
        server.ReftError: 500,
        server.ConfigurationError: 500,
        server.SettingsReloadError: 409,
        server.ModelUnavailableError: 503,
        server.UnsupportedModelError: 500,
        server.InvalidRequestError: 400,
        server.UnsupportedParameterError: 400,
        server.PromptTooLongError: 400,
        server.InvalidGrammarError: 400,
        server.GrammarTooComplexError: 400,
        server.ContentDigestError: 400,
        server.IdempotencyKeyReusedError: 422,
        server.IdempotencyKeyInUseError: 409,
        server.PayloadTooLargeError: 413,
        server.RequestBodyTimeoutError: 408,
        server.AuthenticationError: 401,
        server.PermissionDeniedError: 403,
        server.TenantNotFoundError: 404,
        server.TenantExistsError: 409,
        server.ApiKeyNotFoundError: 404,
        server.ModelNotFoundError: 404,
        server.TaskNotFoundError: 404,
        server.EngineOverloadedError: 429,
        server.RateLimitError: 429,
        server.EngineDeadError: 503,
        server.ServerDrainingError: 503,
        server.EngineStepError: 500,
        server.RequestTimeoutError: 504,
        server.RouteNotFoundError: 404,
        server.MethodNotAllowedError: 405,
        server.InvalidTrainingFileError: 400,
        server.UnknownFileError: 404,
        server.FileInUseError: 409,
        server.FileQuotaError: 413,
        server.FineTuningJobNotFoundError: 404,
        server.FineTuningJobFinishedError: 400,
        server.FineTuningQueueFullError: 429,
        server.FineTuningDisabledError: 501,
        server.FineTuningUnavailableError: 503,
        server.TrainingProcessError: 500,
        server.TrainingMemoryError: 500,
        server.TrainingTimeError: 500,
        server.InternalServerError: 500,
        interventions.InterventionError: 422,
        interventions.InterventionFileError: 422,
        interventions.InterventionFileTooLargeError: 413,
        interventions.InterventionManifestError: 422,
        interventions.InterventionShapeError: 422,
        interventions.InterventionValueError: 422,
        interventions.InterventionBaseMismatchError: 422,
        interventions.InterventionSelfTestError: 422,
        interventions.InterventionSubspaceError: 400,
        interventions.InterventionSourceError: 400,
        interventions.UnsupportedComponentError: 422,
        interventions.InterventionImportError: 422,
        interventions.InterventionExportError: 422,
        interventions.InvalidInterventionNameError: 400,
        interventions.InterventionNotFoundError: 404,
        interventions.InterventionConflictError: 409,
        interventions.InterventionPreconditionError: 412,
        interventions.InterventionQuotaError: 413,
        interventions.StoreError: 500,
        interventions.AdapterError: 500,
        interventions.TrainingError: 500,
    }
)
"""Every type of the error tree; a test proves that none is missing."""

_TYPE_BY_STATUS: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        409: "conflict_error",
        429: "rate_limit_error",
    }
)
RETRY_AFTER_DEAD_S = 5


def status_of(error: server.ReftError) -> int:
    """The HTTP status of an error: its type's, or that of the nearest base type in the table."""
    return next(STATUS_BY_ERROR[cls] for cls in type(error).__mro__ if cls in STATUS_BY_ERROR)


def error_object(error: server.ReftError) -> ErrorObject:
    """What the caller sees of an error, in OpenAI's shape."""
    status = status_of(error)
    kind = _TYPE_BY_STATUS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return ErrorObject(message=error.message, type=kind, param=error.param, code=error.code)


def error_json(error: server.ReftError) -> str:
    """The body of a failed request: ASCII, because a message may quote text that UTF-8 can't encode."""
    return json.dumps(ErrorResponse(error=error_object(error)).model_dump())


def error_response(error: server.ReftError) -> Response:
    """A failed request's whole response, with `Retry-After` where trying again may help."""
    headers: dict[str, str] = {}
    if isinstance(error, server.EngineOverloadedError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    elif status_of(error) == 503:
        headers["retry-after"] = str(RETRY_AFTER_DEAD_S)
    elif status_of(error) == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(error_json(error), status_of(error), headers, media_type="application/json")
