"""Token ids in, token ids out: continuous batching with a different intervention on every row."""

from .build import build_engine
from .capture import RowCapture, capture_sources
from .engine import LocalEngine
from .settings import EngineSettings
from .types import (
    Engine,
    EngineStats,
    GenerationRequest,
    ModelInfo,
    SamplingParams,
    SelfTestReport,
    TokenOutput,
    TokenStream,
)

__all__ = [
    "Engine",
    "EngineSettings",
    "EngineStats",
    "GenerationRequest",
    "LocalEngine",
    "ModelInfo",
    "RowCapture",
    "SamplingParams",
    "SelfTestReport",
    "TokenOutput",
    "TokenStream",
    "build_engine",
    "capture_sources",
]
