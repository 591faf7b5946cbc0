"""The recorder of graphs itself: each mistake that it is there for, planted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reft_server.engine.cuda import launch
from tests.recorded_graphs import CaptureError, RecordedGraphs


def test_a_replay_reads_what_its_buffers_hold_now() -> None:
    buffer, total = torch.ones(2, 8), torch.zeros(2, 4)

    def function() -> Tensor:
        gated = launch.silu_mul(buffer)
        total.add_(gated)
        halves = [half + 1 for half in gated.chunk(2, dim=1)]
        return torch.cat(halves).flip(0)

    replay, out = RecordedGraphs()(function)
    for value in (3.0, -2.0):
        buffer.fill_(value)
        total.zero_()
        replay()
        gated = torch.nn.functional.silu(torch.tensor(value)) * value
        assert torch.allclose(out, gated + 1)
        assert torch.allclose(total, gated)


def test_python_values_stay_as_they_were_recorded() -> None:
    state, buffer = {"scale": 2.0}, torch.ones(3)
    replay, out = RecordedGraphs()(lambda: buffer * state["scale"])
    state["scale"] = 5.0
    replay()
    assert out.tolist() == [2.0, 2.0, 2.0]


def test_a_buffer_that_is_replaced_is_not_seen() -> None:
    state, kept = {"ids": torch.tensor([1, 2])}, []
    replay, out = RecordedGraphs()(lambda: state["ids"] + 1)
    kept.append(state["ids"])
    state["ids"] = torch.tensor([7, 8])
    replay()
    assert out.tolist() == [2, 3]


def test_memory_that_was_given_back_is_not_read() -> None:
    state = {"ids": torch.tensor([1, 2])}
    replay, _ = RecordedGraphs()(lambda: state["ids"] + 1)
    state["ids"] = torch.tensor([7, 8])
    with pytest.raises(CaptureError, match="given back"):
        replay()


def test_a_replay_spoils_the_results_of_others_and_recording_leaves_none() -> None:
    graphs, buffer = RecordedGraphs(), torch.ones(2)
    replay_one, one = graphs(lambda: buffer + 1)
    assert bool(one.isnan().all())
    replay_other, other = graphs(lambda: buffer + 2)
    replay_one()
    assert one.tolist() == [2.0, 2.0]
    replay_other()
    assert other.tolist() == [3.0, 3.0]
    assert bool(one.isnan().all())


def test_memory_is_not_zero_because_it_was_once() -> None:
    first = torch.tensor([True, False])

    def function() -> Tensor:
        out = torch.empty(2)
        out.masked_fill_(first, 1.0)
        return out

    replay, out = RecordedGraphs()(function)
    replay()
    assert out[0] == 1.0
    assert bool(out[1].isnan())


@pytest.mark.parametrize(
    "function",
    [
        lambda rows: rows * rows.sum().item(),
        lambda rows: rows if rows.any() else -rows,
        lambda rows: rows + len(rows.tolist()),
        lambda rows: rows + torch.tensor([1.0, 2.0]),
        lambda rows: rows + torch.from_numpy(rows.numpy()),
        lambda rows: rows[rows > 0],
        lambda rows: rows.nonzero(),
        lambda rows: torch.repeat_interleave(rows, rows.long()),
    ],
)
def test_what_makes_the_host_wait_is_refused(function: Callable[[Tensor], Tensor]) -> None:
    rows = torch.ones(2)
    with pytest.raises(CaptureError):
        RecordedGraphs()(lambda: function(rows))
