"""An engine that only self-tests, for tests of the registry."""

from __future__ import annotations

from reft_interventions.folded import FoldedSet
from reft_server.engine.types import (
    EngineStats,
    GenerationRequest,
    ModelInfo,
    SelfTestReport,
    SelfTestSite,
    TokenStream,
)
from reft_server.errors import EngineDeadError, ReftError
from tests.intervention_sets import BASE


class SelfTestEngine:
    """Passes every set, or raises `failure`; remembers what it was asked to try."""

    def __init__(self, failure: ReftError | None = None) -> None:
        self.failure = failure
        self.tried: list[FoldedSet] = []

    @property
    def model_info(self) -> ModelInfo:
        return ModelInfo(
            BASE.model_id, BASE.fingerprint, BASE.hidden_size, BASE.num_layers, 128, 256, frozenset(), "float32", "cpu"
        )

    @property
    def is_broken(self) -> bool:
        return False

    @property
    def is_ready(self) -> bool:
        return True

    def submit(self, request: GenerationRequest) -> TokenStream:
        raise EngineDeadError(f"{request.request_id} refused: this engine only self-tests")

    async def self_test(self, folded: FoldedSet) -> SelfTestReport:
        self.tried.append(folded)
        if self.failure is not None:
            raise self.failure
        sites = tuple(SelfTestSite(site.layer, site.component, 1, 1.0, 10.0) for site in folded.interventions)
        return SelfTestReport(sites, 0.001)

    def stats(self) -> EngineStats:
        return EngineStats()

    def start(self) -> None: ...

    async def stop(self) -> None: ...
