"""Wire types of the HTTP API, shared by the server and the client."""

from __future__ import annotations

from .chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatDelta,
    ChatLogprobs,
    TokenLogprob,
    TopLogprob,
)
from .completions import CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest, CompletionResponse
from .errors import ErrorObject, ErrorResponse
from .interventions import (
    AppliedIntervention,
    DeleteResponse,
    InterventionInfo,
    InterventionList,
    InterventionRef,
    InterventionUpload,
    SelfTestReport,
    SelfTestSite,
    VersionList,
)
from .messages import ChatMessage
from .models import (
    DetokenizeRequest,
    DetokenizeResponse,
    HealthStatus,
    ModelCard,
    ModelList,
    TokenizeRequest,
    TokenizeResponse,
    VersionInfo,
)
from .sampling import PromptTokensDetails, SamplingFields, StreamOptions, Usage

__all__ = [
    "AppliedIntervention",
    "AssistantMessage",
    "ChatChoice",
    "ChatChunk",
    "ChatChunkChoice",
    "ChatCompletionRequest",
    "ChatCompletionResponse",
    "ChatDelta",
    "ChatLogprobs",
    "ChatMessage",
    "CompletionChoice",
    "CompletionChunk",
    "CompletionLogprobs",
    "CompletionRequest",
    "CompletionResponse",
    "DeleteResponse",
    "DetokenizeRequest",
    "DetokenizeResponse",
    "ErrorObject",
    "ErrorResponse",
    "HealthStatus",
    "InterventionInfo",
    "InterventionList",
    "InterventionRef",
    "InterventionUpload",
    "ModelCard",
    "ModelList",
    "PromptTokensDetails",
    "SamplingFields",
    "SelfTestReport",
    "SelfTestSite",
    "StreamOptions",
    "TokenLogprob",
    "TokenizeRequest",
    "TokenizeResponse",
    "TopLogprob",
    "Usage",
    "VersionInfo",
    "VersionList",
]
