"""Checks of a model path: is it exact, at the start; does it still run, after a failure?"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from reft_interventions.folded import FoldedIntervention, FoldedSet
from reft_interventions.folding import LowRankEdit
from reft_interventions.model_tree import use_exact_attention
from reft_interventions.positions import InterventionPositions
from reft_server.errors import UnsupportedModelError

from .sampler import sample
from .sequence import Sequence
from .settings import EngineSettings, WeightDtype
from .single import Model, run_alone
from .stream import NullStream
from .types import GenerationRequest, ModelInfo, SamplingParams

_CHUNK_SIZES = (9, 14, 1)  # a first chunk, a later chunk, a decode step
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_TOLERANCE = 5e-2
_STORAGE_TOLERANCE: dict[WeightDtype, float] = {"bfloat16": 3e-2, "int8": 2e-1}  # SmolLM2: 0.8e-2 and 0.8e-1


def probe_token_ids(vocab_size: int) -> list[int]:
    """A fixed made-up prompt."""
    return [(6007 * i + 3) % vocab_size for i in range(sum(_CHUNK_SIZES))]


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, vocab_size: int) -> Tensor:
    """The plain model's logits over the probe prompt, `[num_tokens, vocab_size]`, before any path takes it over."""
    use_exact_attention(model)
    input_ids = torch.tensor([probe_token_ids(vocab_size)], device=model.device)
    logits: Tensor = model(input_ids=input_ids, use_cache=False).logits[0]
    return logits.float()


def check_exact(
    model: Model, reference: Tensor, vocab_size: int, name: str, weight_dtype: WeightDtype = "model"
) -> None:
    """Compare a model path, chunked and cached, with the plain model.

    Args:
        weight_dtype: how the path stores weights; smaller ones get a looser bound.

    Raises:
        UnsupportedModelError: the logits differ by more than the tolerance, relative to the spread of a row.
    """
    logits = run_alone(model, probe_token_ids(vocab_size), chunk_sizes=_CHUNK_SIZES).float()
    ends = torch.tensor(_CHUNK_SIZES).cumsum(0) - 1
    expected = reference[ends.to(reference.device)]
    spread = (expected.amax(-1) - expected.amin(-1)).clamp_min(1e-6)
    difference = ((logits - expected).abs().amax(-1) / spread).max().item()
    exact_tolerance = _TOLERANCE.get(model.kv_layout.dtype, _HALF_TOLERANCE)
    tolerance = _STORAGE_TOLERANCE.get(weight_dtype, exact_tolerance)
    if not difference <= tolerance:  # NaN fails too
        raise UnsupportedModelError(
            f"{name} can't be served exactly: its logits differ from transformers' own by {difference:.1e} of their "
            f"spread (at most {tolerance:.0e} allowed)"
        )


def check_runs(model: Model, vocab_size: int) -> None:
    """Run the probe prompt once more, apart from every request: was a failure the request's fault, or the device's?

    In one step: a decode step would record a graph over this trial's own K and V, and stop the engine for as long.

    Raises:
        RuntimeError: the logits are not finite, as they were at the start.
        Exception: whatever a forward raises that can't run.
    """
    logits = run_alone(model, probe_token_ids(vocab_size))
    if not torch.isfinite(logits).all():
        raise RuntimeError("the model's own logits are no longer finite")


def run_largest_step(model: Model, info: ModelInfo, settings: EngineSettings) -> None:
    """As many tokens as a step may have, with K and V of their own, then the choice of as many tokens.

    Once without edits, then with some of each row behind every layer, and of one that decodes: what such steps launch
    is compiled now.
    """
    num_tokens = min(settings.max_num_batched_tokens, info.max_model_len - 1)
    run_alone(model, [0] * num_tokens)
    trial = _no_change(info, model.kv_layout.device)
    run_alone(model, [0] * (num_tokens + 1), interventions=(trial,), chunk_sizes=(num_tokens, 1))
    run_alone(model, [0, 0], interventions=(trial,))
    request = GenerationRequest("largest", (0,), SamplingParams(max_tokens=1, temperature=1.0, top_p=0.9))
    sequence = Sequence(request, NullStream(), info.num_layers)
    shape = (settings.max_num_seqs, info.vocab_size)
    logits = torch.zeros(shape, dtype=model.kv_layout.dtype, device=model.kv_layout.device)
    sample(logits, (sequence,) * settings.max_num_seqs)


def _no_change(info: ModelInfo, device: torch.device) -> FoldedSet:
    """A set that edits every row, by nothing."""
    weights = torch.zeros(1, info.hidden_size, device=device)
    edit = LowRankEdit(weights, torch.zeros(1, device=device), weights)
    positions = InterventionPositions("all")
    sites = (FoldedIntervention(layer, "block_output", positions, edit) for layer in range(info.num_layers))
    return FoldedSet("no change", tuple(sites))
