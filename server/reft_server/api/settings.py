"""The API's settings, built once by the command line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ApiSettings:
    """Bounds of the HTTP side.

    Args:
        served_model_name: what `/v1/models` calls the base model; None = the engine's model id.
        max_body_bytes: largest JSON body, bytes.
        max_upload_bytes: largest intervention file, bytes.
        body_timeout_s: longest pause in a request's body; and its whole time, beside a second for each KiB.
        request_timeout_s: a generation that runs longer ends with an error, seconds.
        max_concurrent_requests: generations that run or wait at once; one more is refused with 429.
        max_choices_per_request: prompts times `n` of one request.
        max_chat_tokens: new tokens of a chat answer whose request sets no limit; None = what is left of the window.
        max_grammar_bytes: longest JSON Schema, pattern or grammar of one request.
        source_cache_bytes: of hidden rows of source prompts.
        max_intervention_labels: distinct interventions, and tenants, that metrics name; the rest counts as `other`.
        max_shadow_requests: shadow targets of routes that run at once; 0 = none.
        shares_prefixes: tenants may reuse what was computed for each other's prompts.
    """

    served_model_name: str | None = None
    max_body_bytes: int = 4 << 20
    max_upload_bytes: int = 64 << 20
    body_timeout_s: float = 30.0
    request_timeout_s: float = 600.0
    max_concurrent_requests: int = 1024
    max_choices_per_request: int = 128
    max_chat_tokens: int | None = None
    max_grammar_bytes: int = 64 << 10
    source_cache_bytes: int = 64 << 20
    max_intervention_labels: int = 64
    max_shadow_requests: int = 4
    shares_prefixes: bool = False
