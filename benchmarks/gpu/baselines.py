"""Others on the same GPU in the same run: `generate` of transformers with a static cache, plain and with hooks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.gpu.inputs import PROMPT_ONLY, digits, random_model, synchronize
from benchmarks.gpu.plan import Plan
from benchmarks.gpu.serving import Serving
from reft_interventions.folded import FoldedSet
from reft_interventions.folding import LowRankEdit
from reft_interventions.positions import InterventionPositions, intersect

_ROUNDS = 2


class Baselines:
    """A second model with the same weights, beside the served one."""

    def __init__(self, plan: Plan, serving: Serving) -> None:
        self._plan = plan
        self._serving = serving
        self._model: PreTrainedModel | None = None

    def eager(self, found: dict[str, Any]) -> None:
        """Output tokens/s of a batch, ours over it in turns; and with hooks, one set for the whole batch."""
        model = self._load()
        for size in self._plan.generate_sizes:
            self._pair(found, f"batch {size}", model, size)
        size = self._plan.generate_sizes[-1]
        sets = [self._serving.make_set(PROMPT_ONLY, seed) for seed in range(size)]
        with pyreft_style_hooks(model, sets[0]):
            self._pair(found, f"batch {size}, hooks", model, size, sets)

    def compiled(self, found: dict[str, Any]) -> None:
        """The same, its forward compiled by torch as `generate` does it for a static cache."""
        model = self._load()
        for size in self._plan.generate_sizes:
            self._pair(found, f"batch {size}", model, size, is_compiled=True)

    def _load(self) -> PreTrainedModel:
        if self._model is None:
            self._model = random_model(self._plan.config, self._plan.dtype, self._plan.device)
        return self._model

    def _pair(
        self,
        found: dict[str, Any],
        name: str,
        model: PreTrainedModel,
        size: int,
        sets: list[FoldedSet] | None = None,
        *,
        is_compiled: bool = False,
    ) -> None:
        """A B A B after a round that warms up; the best of each."""
        plan = self._plan
        ours, theirs = [], []
        for turn in range(-1 if plan.num_warm_ups else 0, _ROUNDS if plan.num_warm_ups else 1):
            job = (plan.num_prompt_tokens, plan.num_generate_tokens)
            applied = [() if sets is None else (sets[i],) for i in range(size)]
            seconds = self._serving.run_job(applied, job, seed=1000 + turn), self._generate_s(model, size, is_compiled)
            if turn >= 0:
                ours.append(seconds[0])
                theirs.append(seconds[1])
        num_tokens = size * plan.num_generate_tokens
        found[name] = {
            "generate_tokens_per_s": digits(num_tokens / min(theirs)),
            "ours_tokens_per_s": digits(num_tokens / min(ours)),
            "ours_over_generate": digits(min(theirs) / min(ours)),
        }

    def _generate_s(self, model: PreTrainedModel, size: int, is_compiled: bool) -> float:
        plan = self._plan
        shape = (size, plan.num_prompt_tokens)
        token_ids = torch.randint(1, plan.config["vocab_size"], shape, device=plan.device)
        synchronize(plan)
        started = time.perf_counter()
        model.generate(
            token_ids,
            attention_mask=torch.ones_like(token_ids),
            max_new_tokens=plan.num_generate_tokens,
            min_new_tokens=plan.num_generate_tokens,
            do_sample=False,
            pad_token_id=0,
            cache_implementation="static",
            disable_compile=not is_compiled,
        )
        synchronize(plan)
        return time.perf_counter() - started


@contextmanager
def pyreft_style_hooks(model: PreTrainedModel, one: FoldedSet) -> Iterator[None]:
    """Edit a prompt's rows as pyreft's hooks do: gather at each layer, edit, scatter. One set for the whole batch."""
    layers: Any = model.model.layers
    handles = []
    for intervention in one.interventions:
        assert isinstance(intervention.edit, LowRankEdit)  # what `random_set` makes
        hook = _hook(intervention.edit, intervention.positions)
        handles.append(layers[intervention.layer].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(edit: LowRankEdit, positions: InterventionPositions) -> Callable[[nn.Module, Any, Any], None]:
    def apply(module: nn.Module, arguments: Any, output: Any) -> None:  # noqa: ARG001 - torch's signature
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        length = hidden.shape[1]
        if length == 1:  # a generated token
            return
        places = torch.tensor(intersect(positions.intervals(length), 0, length), device=hidden.device)
        rows = hidden[:, places]  # [batch, num_positions, width]
        hidden[:, places] = rows + edit.delta(rows.float().flatten(0, 1)).view(rows.shape).to(rows.dtype)

    return apply
