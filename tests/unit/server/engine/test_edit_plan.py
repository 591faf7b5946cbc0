"""The plan of a step's edits against each sequence's own edits, row by row, while sequences come and go."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from reft_interventions.folded import FoldedSet
from reft_server.engine import GenerationRequest, SamplingParams
from reft_server.engine.edit_plan import NO_EDITS, EditPlan, EditPlanner
from reft_server.engine.scheduler import ScheduledChunk
from reft_server.engine.sequence import Sequence
from reft_server.engine.stream import NullStream
from tests.intervention_sets import BASE, make_set

CPU = torch.device("cpu")
SITE = (1, "block_output")
PROMPT_LENGTH = 5


def folded(seed: int, **spec: Any) -> FoldedSet:
    return make_set(seed, **{"positions": "all", **spec}).fold()


SETS = [
    folded(0),
    folded(1),
    folded(2, low_rank_dimension=4),
    folded(3, positions="generated"),
    folded(4, positions="l2"),
    folded(5, formula="direft", low_rank_dimension=2),
    folded(6, formula="scale_shift", low_rank_dimension=0),
    folded(7, formula="loreft", act="tanh"),
    folded(8, formula="loreft", act="tanh"),
    folded(9, positions="f1+l1", layer=2),
]


def make_sequence(*sets: FoldedSet) -> Sequence:
    request = GenerationRequest(
        "test", tuple(range(1, PROMPT_LENGTH + 1)), SamplingParams(max_tokens=50, temperature=0.0), sets
    )
    return Sequence(request, NullStream(), BASE.num_layers)


def decoding(sequence: Sequence, num_generated: int = 0) -> ScheduledChunk:
    return ScheduledChunk(sequence, PROMPT_LENGTH + num_generated, 1)


def expected(hidden: torch.Tensor, chunks: list[ScheduledChunk], site: tuple[int, str]) -> torch.Tensor:
    """Each row alone, its sequence's sets in order."""
    hidden, offset = hidden.clone(), 0
    for chunk in chunks:
        for position in range(chunk.start, chunk.start + chunk.num_tokens):
            row = hidden[offset : offset + 1]
            for one in chunk.sequence.request.interventions:
                for intervention in one.interventions:
                    intervals = intervention.positions.intervals(PROMPT_LENGTH)
                    is_edited = any(a <= position and (b is None or position < b) for a, b in intervals)
                    if intervention.site == site and is_edited:
                        row += intervention.edit.delta(row)
            offset += 1
    return hidden


def check(plan: EditPlan, chunks: list[ScheduledChunk]) -> None:
    num_tokens = sum(chunk.num_tokens for chunk in chunks)
    hidden = torch.randn(num_tokens, BASE.hidden_size, generator=torch.Generator().manual_seed(num_tokens))
    for site in (SITE, (2, "block_output"), (0, "block_output")):
        got, want = hidden.clone(), expected(hidden, chunks, site)
        plan.apply(got, *site)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        is_unedited = (want == hidden).all(dim=-1)
        assert torch.equal(got[is_unedited], hidden[is_unedited])


def test_plan_of_sequences_that_come_and_go_edits_every_row_by_its_own_sets() -> None:
    chooser = random.Random(0)
    planner = EditPlanner(CPU)
    running: list[tuple[Sequence, int]] = []
    for _ in range(200):
        chunks = [decoding(sequence, step) for sequence, step in running]
        arrivals = [
            make_sequence(*chooser.choices(SETS, k=chooser.randint(0, 3))) for _ in range(chooser.randint(0, 2))
        ]
        for sequence in arrivals:
            chunks.append(ScheduledChunk(sequence, 0, chooser.choice((1, 3, PROMPT_LENGTH))))
        if chunks:
            check(planner.plan(chunks), chunks)
        running = [(sequence, step + 1) for sequence, step in running if chooser.random() > 0.05]
        running += [(sequence, 0) for sequence in arrivals]
        if chooser.random() < 0.05:
            running.clear()


def test_plan_of_a_recomputed_sequence_edits_its_generated_tokens_too() -> None:
    chunks = [ScheduledChunk(make_sequence(SETS[0], SETS[4]), 2, 6), ScheduledChunk(make_sequence(SETS[3]), 0, 9)]
    check(EditPlanner(CPU).plan(chunks), chunks)


def test_plan_of_decoding_prompt_only_sets_is_no_plan() -> None:
    chunks = [decoding(make_sequence(SETS[4])), decoding(make_sequence()), decoding(make_sequence(SETS[9]))]
    assert EditPlanner(CPU).plan(chunks) is NO_EDITS


def test_plan_is_kept_while_the_same_sets_decode_in_the_same_rows() -> None:
    planner = EditPlanner(CPU)
    sequences = [make_sequence(SETS[0]), make_sequence(), make_sequence(SETS[1])]
    plans = [planner.plan([decoding(sequence, step) for sequence in sequences]) for step in range(3)]
    assert plans[0] is plans[1] is plans[2]
    # Another request with the same set takes a row over: nothing changes.
    sequences[0] = make_sequence(SETS[0])
    assert planner.plan([decoding(sequence) for sequence in sequences]) is plans[0]
    moved = [decoding(sequence) for sequence in sequences[::-1]]
    check(planner.plan(moved), moved)
    scaled = [decoding(make_sequence(SETS[0].scaled(2.0))), *(decoding(sequence) for sequence in sequences[1:])]
    check(planner.plan(scaled), scaled)


def test_plan_of_different_sets_of_one_rank_is_one_group_per_site() -> None:
    chunks = [decoding(make_sequence(SETS[i % 2])) for i in range(4)]
    assert len(EditPlanner(CPU).plan(chunks).groups[SITE]) == 1


@pytest.mark.parametrize("order", [(0, 6), (6, 0), (0, 0), (6, 2, 0)])
def test_plan_applies_a_sequence_sets_in_its_own_order(order: tuple[int, ...]) -> None:
    chunks = [decoding(make_sequence(*(SETS[i] for i in order))), decoding(make_sequence(SETS[1], SETS[5]))]
    chunks.append(ScheduledChunk(make_sequence(*(SETS[i] for i in order)), 0, PROMPT_LENGTH))
    check(EditPlanner(CPU).plan(chunks), chunks)


def test_layers_that_edit_the_same_rows_share_them() -> None:
    """What a step lays out for its edits then depends on its rows, and not on rows times layers."""
    one, other = (
        FoldedSet(str(seed), tuple(folded(seed, positions="f1+l1", layer=layer).interventions[0] for layer in (0, 1)))
        for seed in (20, 21)
    )
    chunks = [ScheduledChunk(make_sequence(each), 0, PROMPT_LENGTH) for each in (one, other, one)]
    plan = EditPlanner(CPU, stacks_edits=False).plan(chunks)
    first, second = (plan.groups[layer, "block_output"] for layer in (0, 1))
    rows = [group.rows for group in first]
    assert [each.tolist() for each in rows if isinstance(each, torch.Tensor)] == [[0, 4, 10, 14], [5, 9]]
    assert all(group.rows is each for group, each in zip(second, rows, strict=True))
