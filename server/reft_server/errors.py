"""Errors of the engine and the API; the root and those of interventions are in `reft_interventions.errors`."""

from __future__ import annotations

from reft_interventions.errors import ReftError

__all__ = [
    "ApiKeyNotFoundError",
    "AuthenticationError",
    "ConfigurationError",
    "ContentDigestError",
    "EngineDeadError",
    "EngineOverloadedError",
    "EngineStepError",
    "FileInUseError",
    "FileQuotaError",
    "FineTuningDisabledError",
    "FineTuningJobFinishedError",
    "FineTuningJobNotFoundError",
    "FineTuningQueueFullError",
    "FineTuningUnavailableError",
    "GrammarTooComplexError",
    "IdempotencyKeyInUseError",
    "IdempotencyKeyReusedError",
    "InternalServerError",
    "InvalidGrammarError",
    "InvalidRequestError",
    "InvalidTrainingFileError",
    "MethodNotAllowedError",
    "ModelNotFoundError",
    "ModelUnavailableError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PromptTooLongError",
    "RateLimitError",
    "ReftError",
    "RequestBodyTimeoutError",
    "RequestTimeoutError",
    "RouteNotFoundError",
    "ServerDrainingError",
    "TaskNotFoundError",
    "TenantExistsError",
    "TenantNotFoundError",
    "TrainingMemoryError",
    "TrainingProcessError",
    "TrainingTimeError",
    "UnknownFileError",
    "UnsupportedModelError",
    "UnsupportedParameterError",
]


class ConfigurationError(ReftError):
    """A setting is unknown, out of bounds or contradicts another."""

    code = "configuration_error"


class SettingsReloadError(ReftError):
    """The settings can't be read again; the server goes on with those that it has."""

    code = "settings_reload_failed"


class ModelUnavailableError(ReftError):
    """The base model can't be found or fetched."""

    code = "model_unavailable"


class UnsupportedModelError(ReftError):
    """The base model's architecture can't be served exactly."""

    code = "unsupported_model"


class InvalidRequestError(ReftError):
    """A field of the request is missing, malformed, out of range or contradicts another."""

    code = "invalid_request"


class UnsupportedParameterError(InvalidRequestError):
    """A field that exists in OpenAI's API and is not served here."""

    code = "unsupported_parameter"


class PromptTooLongError(InvalidRequestError):
    """Prompt and `max_tokens` together can never fit the context window or the KV cache."""

    code = "context_length_exceeded"


class InvalidGrammarError(InvalidRequestError):
    """A JSON Schema, pattern or grammar that can't be compiled."""

    code = "invalid_grammar"


class GrammarTooComplexError(InvalidRequestError):
    """A grammar that is too long, or takes too much to compile or to follow."""

    code = "grammar_too_complex"


class ContentDigestError(InvalidRequestError):
    """What arrived is not what the client's checksum says it sent."""

    code = "content_digest_mismatch"


class IdempotencyKeyReusedError(ReftError):
    """Another request was sent with this `Idempotency-Key`."""

    code = "idempotency_key_reused"


class IdempotencyKeyInUseError(ReftError):
    """The request with this `Idempotency-Key` is still being done."""

    code = "idempotency_key_in_use"


class PayloadTooLargeError(ReftError):
    """The request body exceeds the size limit."""

    code = "payload_too_large"


class RequestBodyTimeoutError(ReftError):
    """The client sends the request's body too slowly."""

    code = "request_body_timeout"


class AuthenticationError(ReftError):
    """No API key, or a wrong one."""

    code = "invalid_api_key"


class PermissionDeniedError(ReftError):
    """The API key lacks the scope that the route needs."""

    code = "permission_denied"


class TenantNotFoundError(ReftError):
    """No tenant has this name; only an administrator is told so."""

    code = "tenant_not_found"


class TenantExistsError(ReftError):
    """The name of a new tenant is taken."""

    code = "tenant_exists"


class ApiKeyNotFoundError(ReftError):
    """No living key has this id; only an administrator is told so."""

    code = "api_key_not_found"


class ModelNotFoundError(ReftError):
    """`model` names neither the base model nor an intervention."""

    code = "model_not_found"


class TaskNotFoundError(ReftError):
    """The tenant has no route for this task, or no such revision of it."""

    code = "task_not_found"


class EngineOverloadedError(ReftError):
    """The queue is full: try again after `retry_after_s`."""

    code = "engine_overloaded"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(EngineOverloadedError):
    """The tenant has used up a limit of its own: try again after `retry_after_s`."""

    code = "rate_limit_exceeded"


class EngineDeadError(ReftError):
    """The engine is starting, stopped or crashed."""

    code = "engine_unavailable"


class ServerDrainingError(EngineDeadError):
    """The server is shutting down: it finishes what runs and takes nothing new."""

    code = "server_draining"


class EngineStepError(ReftError):
    """This request made the forward pass fail; the others go on."""

    code = "engine_step_failed"


class RequestTimeoutError(ReftError):
    """The request waited or ran longer than the limit."""

    code = "request_timeout"


class RouteNotFoundError(ReftError):
    """No such path."""

    code = "route_not_found"


class MethodNotAllowedError(ReftError):
    """The path exists, but not with this method."""

    code = "method_not_allowed"


class InvalidTrainingFileError(InvalidRequestError):
    """A file to train on holds a line that can't be learnt from; the message names the line and quotes nothing."""

    code = "invalid_training_file"


class UnknownFileError(ReftError):
    """No uploaded file has this id."""

    code = "file_not_found"


class FileInUseError(ReftError):
    """A job that waits or runs needs the file."""

    code = "file_in_use"


class FileQuotaError(ReftError):
    """The uploaded files together are too many or too large."""

    code = "file_quota_exceeded"


class FineTuningJobNotFoundError(ReftError):
    """No fine-tuning job has this id."""

    code = "fine_tuning_job_not_found"


class FineTuningJobFinishedError(ReftError):
    """The job has ended already."""

    code = "fine_tuning_job_finished"


class FineTuningQueueFullError(EngineOverloadedError):
    """Too many fine-tuning jobs wait already."""

    code = "fine_tuning_queue_full"


class FineTuningDisabledError(ReftError):
    """This server was started without fine-tuning."""

    code = "fine_tuning_disabled"


class FineTuningUnavailableError(ReftError):
    """Fine-tuning can't be used now: its folder belongs to another server, or can't be used."""

    code = "fine_tuning_unavailable"


class TrainingProcessError(ReftError):
    """The training process of a job ended without a result."""

    code = "training_process_failed"


class TrainingMemoryError(TrainingProcessError):
    """The training process used more memory than it may."""

    code = "training_out_of_memory"


class TrainingTimeError(TrainingProcessError):
    """The training process ran longer than it may."""

    code = "training_time_limit"


class InternalServerError(ReftError):
    """Something broke that nobody foresaw; the server's log has the cause under the request id."""

    code = "internal_error"

    def __init__(self, request_id: str) -> None:
        super().__init__(f"The server failed on this request; its log tells more under request id {request_id}")
