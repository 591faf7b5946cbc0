"""Everything that a run depends on, in one value: it stands in the result and goes to the other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .distributions import Distribution
from .slo import Slo

__all__ = ["BenchOptions"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class BenchOptions(BaseModel):
    """One run; the same options and seed send the same requests.

    Exactly one of `concurrency` (closed loop), `rate` (open loop; start and end of its ramp), `sweep` (open loops; the
    first and the highest rate) and `trace`.

    Args:
        num_requests: sessions after the warm-up; with `duration_s` too, whichever ends first.
        warmup_requests: the first so many sessions are not counted.
        warmup_s: sessions due so early are not counted.
        shared_prefix: tokens that prompts begin with in common, and the number of different such beginnings.
        good_share: a step of the sweep met the objectives if this share of its requests did.
        distinct_prompts: draw prompts from a pool of so many.
        token_ids: bounds of the ids to send instead of a text: exact without a tokenizer.
        via: the field that names the intervention.
        asks_usage: `stream_options.include_usage` and `return_timing`; some servers refuse what they don't know.
        extra_body: further fields of every request.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    endpoint: Literal["completions", "chat"] = "completions"
    model: str | None = None
    timeout_s: Positive = 600.0
    concurrency: Count | None = None
    rate: tuple[NotNegative, Positive] | None = None
    sweep: tuple[Positive, Positive] | None = None
    arrivals: str = "poisson"
    trace: Path | None = None
    trace_speed: Positive = 1.0
    num_requests: Count | None = None
    duration_s: Positive | None = None
    warmup_requests: Annotated[int, Field(ge=0)] = 0
    warmup_s: NotNegative = 0.0
    think_time: Distribution = Distribution("fixed", (0.0,))
    turns: Distribution = Distribution("fixed", (1.0,))
    prompt_tokens: Distribution = Distribution("fixed", (128.0,))
    max_tokens: Distribution = Distribution("fixed", (64.0,))
    shared_prefix: tuple[Count, Count] | None = None
    prompts: Path | None = None
    distinct_prompts: Count | None = None
    token_ids: tuple[int, int] | None = None
    ignore_eos: bool = False
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    interventions: tuple[str, ...] = ()
    mix: str = "none"
    via: Literal["intervention", "model"] = "intervention"
    tenants: Annotated[int, Field(ge=0)] = 0
    tenant_mix: str = "uniform"
    slo: Slo = Slo()
    good_share: Annotated[float, Field(gt=0, le=1)] = 0.99
    verify: bool = False
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    seed: int = 0
    asks_usage: bool = True
    extra_body: dict[str, Any] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> BenchOptions:
        loads = [self.concurrency, self.rate, self.sweep, self.trace]
        if sum(load is not None for load in loads) != 1:
            raise ValueError("give one of --concurrency, --rate, --sweep and --trace")
        if self.trace is None and self.num_requests is None and self.duration_s is None:
            raise ValueError("say how much to send: --requests, --duration, or both")
        if self.rate is not None and self.rate[0] != self.rate[1] and self.duration_s is None:
            raise ValueError("a ramp goes over the --duration; give one")
        if self.sweep is not None and (self.slo.is_empty or self.verify or self.sweep[0] > self.sweep[1]):
            raise ValueError("a --sweep goes upwards, until a --slo is missed; --verify has a run of its own")
        if self.trace is not None and self.prompts is not None:
            raise ValueError("a --trace brings its own prompts; leave --prompts out")
        if self.token_ids is not None:
            if not 0 <= self.token_ids[0] < self.token_ids[1]:
                raise ValueError("--token-ids wants two ids, the lower one first")
            if self.endpoint == "chat" or self.prompts is not None or self.turns != Distribution("fixed", (1.0,)):
                raise ValueError("--token-ids go with single synthetic prompts and the completions endpoint")
        if self.concurrency is not None and self.concurrency < self.processes:
            raise ValueError("--processes shares out the --concurrency: it can't be larger")
        if self.verify and (self.temperature > 0 or (self.num_requests is None and self.trace is None)):
            raise ValueError("--verify needs --temperature 0 and a number of --requests")
        return self

    @property
    def num_sessions(self) -> int | None:
        """Sessions to send, those of the warm-up included; None = as many as fit."""
        return None if self.num_requests is None else self.num_requests + self.warmup_requests

    @property
    def is_open_loop(self) -> bool:
        """Requests are sent when they are due, whether or not earlier ones were answered."""
        return self.concurrency is None
