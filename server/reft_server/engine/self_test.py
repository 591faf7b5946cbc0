"""A trial forward of an intervention set: does it change the rows it names, and only those?"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reft_interventions.errors import InterventionSelfTestError
from reft_interventions.folded import FoldedSet, SiteKey
from reft_interventions.positions import InterventionPositions

from .capture import capture_sources
from .edit_plan import EditPlan
from .single import Model, run_alone
from .types import SelfTestReport, SelfTestSite

_NUM_PROMPT_TOKENS = 6
_NUM_GENERATED_TOKENS = 2
_MAX_PROMPT_TOKENS = 1024


@dataclass
class _Seen:
    num_edited_rows: int = 0
    delta_norm: float = 0.0
    residual_norm: float = 0.0
    problems: list[str] = field(default_factory=list)


class _ObservedEdits(EditPlan):
    """Edits that compare every site before and after."""

    def __init__(self, plan: EditPlan) -> None:
        super().__init__(plan.groups)
        self.seen: dict[SiteKey, _Seen] = {}

    def apply(self, hidden: Tensor, layer: int, component: str) -> None:
        groups = self.groups.get((layer, component))
        if groups is None:
            return
        before = hidden.clone()
        super().apply(hidden, layer, component)
        is_edited = torch.zeros(hidden.shape[0], dtype=torch.bool, device=hidden.device)
        for group in groups:
            is_edited[group.rows] = True
        changed = (hidden != before).any(dim=-1)
        seen = self.seen.setdefault((layer, component), _Seen())
        seen.num_edited_rows = int(is_edited.sum())
        seen.delta_norm = float((hidden - before)[is_edited].float().norm(dim=-1).mean())
        seen.residual_norm = float(before[is_edited].float().norm(dim=-1).mean())
        if not torch.isfinite(hidden).all():
            seen.problems.append("gives NaN or infinity")
        elif not math.isfinite(seen.delta_norm):
            seen.problems.append("is so large that its norm overflows")
        if bool((changed & ~is_edited).any()):
            seen.problems.append("changes rows that it must not touch")
        if not bool(changed[is_edited].any()):
            seen.problems.append("changes nothing: it would be silently without effect")


def run_self_test(model: Model, folded: FoldedSet, vocab_size: int, max_model_len: int) -> SelfTestReport:
    """Run a short made-up prompt, and a few tokens after it, through `model` with the set applied.

    Raises:
        InterventionSelfTestError: naming each site that fails, and how.
    """
    started = time.perf_counter()
    num_prompt = min(_num_prompt_tokens(folded), max_model_len - _NUM_GENERATED_TOKENS)
    token_ids = [(7919 * i + 1) % vocab_size for i in range(num_prompt + _NUM_GENERATED_TOKENS)]
    observed: list[_ObservedEdits] = []

    def observe(plan: EditPlan) -> EditPlan:
        observed.append(_ObservedEdits(plan))
        return observed[-1]

    placed = _with_trial_source(model, folded.to(model.kv_layout.device), num_prompt, vocab_size)
    logits = run_alone(model, token_ids, prompt_length=num_prompt, interventions=(placed,), wrap_edits=observe)
    seen = observed[0].seen
    problems = [
        f"layer {layer} {component} {problem}" for (layer, component), site in seen.items() for problem in site.problems
    ]
    if not torch.isfinite(logits).all():
        problems.append("the logits are not finite")
    if not seen:
        problems.append("no token of the trial prompt is edited")
    if problems:
        raise InterventionSelfTestError("the self-test failed: " + "; ".join(problems))
    sites = tuple(
        SelfTestSite(layer, component, site.num_edited_rows, site.delta_norm, site.residual_norm)
        for (layer, component), site in seen.items()
    )
    return SelfTestReport(sites, time.perf_counter() - started)


def _with_trial_source(model: Model, folded: FoldedSet, num_prompt: int, vocab_size: int) -> FoldedSet:
    """Another made-up prompt of the same length is the source, for a set that needs one."""
    if not folded.open_interventions:
        return folded
    token_ids = [(104729 * i + 7) % vocab_size for i in range(num_prompt)]
    captures = capture_sources(folded, num_prompt)
    run_alone(model, token_ids, captures=captures)
    return folded.with_source([one.rows for one in captures], "trial")


def _num_prompt_tokens(folded: FoldedSet) -> int:
    """Enough tokens that explicit positions and offsets fall inside the prompt."""
    needed = [_NUM_PROMPT_TOKENS, *(_reach(i.positions) for i in folded.interventions)]
    return min(max(needed), _MAX_PROMPT_TOKENS)


def _reach(positions: InterventionPositions) -> int:
    if isinstance(positions.spec, tuple):
        return max(abs(index) for index in positions.spec) + 1
    return _NUM_PROMPT_TOKENS + positions.suffix_offset
