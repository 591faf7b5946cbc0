"""The engine against the slow reference: one request alone, hooks on a plain transformers model, greedy, float32.

The comparison's rule: tokens are equal, except from a step on where the reference's own two best logits are closer
than the tolerance, relative to the row's spread. Such ties are counted, and more than 1% of requests fail a test.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import torch
from transformers import PreTrainedModel

from reft_interventions import Applied, FoldedSet, InterventionSet, attach, capture_source
from reft_server.engine import GenerationRequest, LocalEngine, SamplingParams
from reft_server.sources import SourceCache

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Expected:
    """The reference's greedy tokens, and how far apart its two best logits were at each."""

    token_ids: list[int]
    margins: list[float]


@dataclass(frozen=True)
class Use:
    """A set as a request names it: its scale, the rank dimensions that act, the tokens of its source prompt."""

    set: InterventionSet
    scale: float = 1.0
    subspaces: tuple[int, ...] | None = None
    source: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Case:
    """A prompt, the sets applied to it in order, alone or with their scales, and how many tokens to generate."""

    prompt: tuple[int, ...]
    sets: tuple[tuple[InterventionSet, float] | Use, ...] = ()
    max_tokens: int = 8

    @property
    def uses(self) -> list[Use]:
        return [entry if isinstance(entry, Use) else Use(*entry) for entry in self.sets]


@dataclass
class Comparison:
    """Compares engine outputs with references and counts ties."""

    num_compared: int = 0
    num_ties: int = 0
    differences: list[str] = field(default_factory=list)

    def check(self, case: Case, got: list[int], expected: Expected) -> None:
        self.num_compared += 1
        assert len(got) == len(expected.token_ids) == case.max_tokens
        for step, (ours, theirs, margin) in enumerate(zip(got, expected.token_ids, expected.margins, strict=True)):
            if ours != theirs:
                if margin >= TOLERANCE:
                    self.differences.append(
                        f"prompt of {len(case.prompt)}, sets {[use.set.manifest.interventions for use in case.uses]}: "
                        f"token {step} is {ours}, not {theirs} (margin {margin:.1e})"
                    )
                self.num_ties += margin < TOLERANCE
                return

    def verdict(self) -> None:
        assert not self.differences, "\n".join(self.differences)
        assert self.num_compared > 0
        assert self.num_ties <= 0.01 * self.num_compared, f"{self.num_ties} ties in {self.num_compared}"


@cache
def folded(one: InterventionSet, scale: float, subspaces: tuple[int, ...] | None = None) -> FoldedSet:
    """One object per variant of a set, as the server's pool gives: rows of different requests then share a group."""
    return one.fold().restricted(subspaces).scaled(scale)


def relative_margin(logits: torch.Tensor) -> float:
    """How far apart the two best of `[vocab_size]` logits are, relative to their spread."""
    best = logits.topk(2).values
    return float((best[0] - best[1]) / (logits.max() - logits.min()))


def reference(model: PreTrainedModel, case: Case) -> Expected:
    """One request alone on the plain model, with hooks."""
    token_ids, logits = reference_logits(model, case)
    return Expected(token_ids, [relative_margin(row) for row in logits])


def reference_logits(model: PreTrainedModel, case: Case) -> tuple[list[int], list[torch.Tensor]]:
    """The greedy tokens of one request alone on the plain model, with hooks, and the `[vocab_size]` logits of each."""
    with torch.inference_mode(), attach(model, [applied(model, use) for use in case.uses]):
        output = model.generate(
            torch.tensor([case.prompt]),
            attention_mask=torch.ones(1, len(case.prompt), dtype=torch.int64),
            max_new_tokens=case.max_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return output.sequences[0, len(case.prompt) :].tolist(), [logits[0] for logits in output.logits]


def applied(model: PreTrainedModel, use: Use) -> Applied:
    """A use for the slow reference: first the source prompt through the plain model, with hooks that only look."""
    rows = () if use.source is None else capture_source(model, use.set, use.source)
    return Applied(use.set, use.scale, use.subspaces, rows)


async def to_run(engine: LocalEngine, use: Use, sources: SourceCache | None = None) -> FoldedSet:
    """A use for the engine, as the server prepares it."""
    variant = folded(use.set, use.scale, use.subspaces)
    if use.source is None:
        return variant
    request = GenerationRequest("source", use.source, SamplingParams(max_tokens=1))
    rows = await (sources or SourceCache(engine, 1 << 24)).get(variant, request)
    return variant.with_source(rows, repr(use.source))


async def generate(engine: LocalEngine, case: Case, after: asyncio.Event | None = None) -> list[int]:
    """Run a case through the engine, once `after` is set."""
    if after is not None:
        await after.wait()
    request = GenerationRequest(
        request_id="test",
        prompt_token_ids=case.prompt,
        sampling=SamplingParams(max_tokens=case.max_tokens, temperature=0.0, ignore_eos=True),
        interventions=tuple([await to_run(engine, use) for use in case.uses]),
    )
    token_ids: list[int] = []
    async for outputs in engine.submit(request):
        token_ids += [output.token_id for output in outputs if output.token_id is not None]
    return token_ids


def run_together(engine: LocalEngine, cases: Sequence[Case]) -> list[list[int]]:
    """All cases at once."""

    async def together() -> list[list[int]]:
        return await asyncio.gather(*(generate(engine, case) for case in cases))

    return asyncio.run(together())
