"""While a step is launched the host must not wait for the device: every copy between them is asynchronous."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from reft_interventions.folded import FoldedSet
from reft_server.engine.batch import build_batch
from reft_server.engine.edit_plan import EditPlanner
from reft_server.engine.launched import LaunchedStep
from reft_server.engine.paged_cache import make_kv_cache
from reft_server.engine.scheduler import ScheduledChunk
from tests.pretend_device import DEVICE, pretend_device
from tests.unit.server.engine.cuda.test_device_rules import graphed, sequence

_aten = torch.ops.aten


class _Operations(TorchDispatchMode):
    """Notes operations for which the host would wait: values read, and copies that are not `non_blocking`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self:  # in inference mode, operations come before they are taken apart
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        if func is _aten._local_scalar_dense.default and args[0].device == DEVICE:
            self.found.append("a value is read")
        elif func is _aten.copy_.default:
            self._note(args[1], args[0].device, is_async=(args[2:] or (kwargs.get("non_blocking"),))[0])
        elif func is _aten._to_copy.default:
            self._note(args[0], kwargs.get("device") or args[0].device, is_async=kwargs.get("non_blocking"))
        return func(*args, **kwargs)

    def _note(self, source: Tensor, target: torch.device, *, is_async: bool | None) -> None:
        if (source.device == DEVICE) != (torch.device(target) == DEVICE) and not is_async:
            self.found.append(f"{source.dtype}{list(source.shape)} from {source.device} to {target}")


class _Constructors(TorchFunctionMode):
    """`torch.tensor(values, device=...)` copies and waits before any operation is seen."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            self._found.append(f"{func.__name__} on {DEVICE}")
        return func(*args, **kwargs)


@contextmanager
def noting_waits() -> Iterator[list[str]]:
    """What the host would have waited for."""
    with _Operations() as operations, _Constructors(operations.found):
        yield operations.found


def test_steps_ahead_of_the_device_wait_for_nothing(tiny_model: Any, make_set: Any) -> None:
    """Prompts with edited rows and without, a row that decodes beside a chunk, then graphs with edits."""
    tiny = tiny_model("qwen3", num_hidden_layers=2)
    everywhere = make_set(tiny, *({"positions": "all", "layer": layer} for layer in (0, 1))).fold().to(DEVICE)
    ends = make_set(tiny, {"positions": "f2+l1", "layer": 1, "low_rank_dimension": 2}).fold().to(DEVICE)
    with pretend_device():
        model = graphed(copy.deepcopy(tiny).bfloat16().to(DEVICE))
        cache = make_kv_cache(model.kv_layout, budget_bytes=1 << 20, max_rows=8, max_tokens=64)
        planner = EditPlanner.for_layout(model.kv_layout)
        model.prepare(cache)
        sets: list[tuple[tuple[FoldedSet, ...], dict[str, Any]]] = [
            ((everywhere,), {"temperature": 0.7, "top_p": 0.9}), ((ends,), {"temperature": 1.0}), ((), {}),
        ]  # fmt: skip
        one, other, late = (sequence(model, cache, 40, *with_sets, **params) for with_sets, params in sets)
        launched: LaunchedStep | None = None
        steps = ({one: 40, other: 33}, {one: 1, other: 7, late: 40}, {one: 1, other: 1}, {one: 1})
        for turn, sizes in enumerate(steps):
            with noting_waits() as waits:
                chunks = [ScheduledChunk(s, s.num_computed_tokens, size) for s, size in sizes.items()]
                following = model.launch(build_batch(chunks, DEVICE, planner), launched)
            assert not waits, f"step {turn}"
            for chunk, size in zip(chunks, sizes.values(), strict=True):
                chunk.sequence.num_computed_tokens += size
                if chunk.is_sampled:
                    chunk.sequence.expect_token()
            if launched is not None:
                for s, token in launched.read():
                    s.receive_token(token.token_id)
            launched = following
    assert model.num_replays == 2


@pytest.mark.parametrize(
    "mistake",
    [
        lambda rows: rows.tolist(),
        lambda rows: rows.cpu(),
        lambda rows: rows.copy_(torch.ones(2)),
        lambda rows: torch.ones(2).copy_(rows),
        lambda rows: torch.tensor([1.0, 2.0], device=rows.device),
        lambda rows: torch.ones(2).to(rows.device),
        lambda rows: int(rows[0]),
    ],
)
def test_waiting_is_noted(mistake: Any) -> None:
    with pretend_device(), noting_waits() as waits:
        rows = torch.ones(2, device=DEVICE)
        assert not waits
        mistake(rows)
    assert waits
