"""Token ids in, token ids out: continuous batching with a different intervention on every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reft_interventions.lazy_exports import lazy_exports

if TYPE_CHECKING:
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
else:
    __getattr__ = lazy_exports(
        __name__,
        {
            "build": ("build_engine",),
            "capture": ("RowCapture", "capture_sources"),
            "engine": ("LocalEngine",),
            "settings": ("EngineSettings",),
            "types": (
                "Engine",
                "EngineStats",
                "GenerationRequest",
                "ModelInfo",
                "SamplingParams",
                "SelfTestReport",
                "TokenOutput",
                "TokenStream",
            ),
        },
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
