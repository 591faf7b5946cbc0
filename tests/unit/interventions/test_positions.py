"""Position rules against tables written by hand, and the rule that no token is edited twice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reft_interventions.errors import InterventionManifestError
from reft_interventions.positions import InterventionPositions, intersect


def expand(positions: InterventionPositions, prompt_length: int, num_tokens: int | None = None) -> list[int]:
    return intersect(positions.intervals(prompt_length), 0, prompt_length if num_tokens is None else num_tokens)


@pytest.mark.parametrize(
    ("spec", "length", "paper", "floor"),
    [
        ("f3+l3", 0, [], []),
        ("f3+l3", 1, [0], []),
        ("f3+l3", 2, [0, 1], [0, 1]),
        ("f3+l3", 3, [0, 1, 2], [0, 2]),
        ("f3+l3", 4, [0, 1, 2, 3], [0, 1, 2, 3]),
        ("f3+l3", 5, [0, 1, 2, 3, 4], [0, 1, 3, 4]),
        ("f3+l3", 7, [0, 1, 2, 4, 5, 6], [0, 1, 2, 4, 5, 6]),
        ("f1+l1", 1, [0], []),
        ("f1+l1", 2, [0, 1], [0, 1]),
        ("f1+l1", 3, [0, 2], [0, 2]),
        ("f3", 0, [], []),
        ("f3", 1, [], []),
        ("f3", 2, [0], [0]),
        ("f3", 3, [0], [0]),
        ("f3", 8, [0, 1, 2], [0, 1, 2]),
        ("l3", 0, [], []),
        ("l3", 1, [0], []),
        ("l3", 2, [1], [1]),
        ("l3", 3, [1, 2], [2]),
        ("l3", 8, [5, 6, 7], [5, 6, 7]),
        ("l1", 1, [0], []),
        ("f0+l2", 4, [2, 3], [2, 3]),
        ("f2+l0", 4, [0, 1], [0, 1]),
    ],
)
def test_first_and_last_follow_both_short_prompt_rules(spec, length, paper, floor):
    assert expand(InterventionPositions(spec), length) == paper
    assert expand(InterventionPositions(spec, short_prompt="floor"), length) == floor


@pytest.mark.parametrize(
    ("spec", "offset", "length", "expected"),
    [
        ("l2", 1, 6, [3, 4]),
        ("l2", 5, 6, [0]),
        ("l2", 6, 6, []),
        ("l2", 9, 6, []),
        ("f2+l2", 1, 6, [0, 1, 3, 4]),
        ("f2+l2", 3, 6, [0, 1, 2]),
        ("f2+l2", 1, 1, []),
        ("f2+l2", 1, 2, [0]),
        ("f2+l2", 1, 3, [0, 1]),
    ],
)
def test_suffix_offset_moves_the_suffix_away_from_the_end(spec, offset, length, expected):
    assert expand(InterventionPositions(spec, suffix_offset=offset), length) == expected


@pytest.mark.parametrize(
    ("spec", "length", "expected"),
    [
        ((0, 2, -1), 5, [0, 2, 4]),
        ((-1,), 1, [0]),
        ((-2,), 1, []),
        ((5, -6), 5, []),
        ((1, -4), 5, [1]),
        ((3, 0), 4, [0, 3]),
        ((0, 0), 4, [0]),
        ((0,), 0, []),
    ],
)
def test_explicit_indices_count_from_either_end_and_skip_what_is_outside(spec, length, expected):
    assert expand(InterventionPositions(spec), length) == expected


@pytest.mark.parametrize(
    ("spec", "length", "expected"),
    [
        ("prompt", 0, []),
        ("prompt", 3, [0, 1, 2]),
        ("all", 3, [0, 1, 2, 3, 4]),
        ("generated", 3, [3, 4]),
        ("f3+l3", 3, [0, 1, 2]),
        ("l2", 3, [1, 2]),
        ((-1, 4), 3, [2]),
    ],
)
def test_only_all_and_generated_reach_generated_tokens(spec, length, expected):
    positions = InterventionPositions(spec)
    assert expand(positions, length, 5 if length else 0) == expected
    assert positions.is_prompt_only == (spec not in ("all", "generated"))


@pytest.mark.parametrize(
    "spec",
    ["", "f", "l", "f0", "l0", "f0+l0", "+l3", "f3+", "f3l3", "l3+f3", "f3 + l3", "F3", "f-1", "f3+l3+l4", "last",
     "f1234567", "f٣", "f3\n", "Prompt", ()],
)  # fmt: skip
def test_unreadable_positions_are_refused(spec):
    with pytest.raises(InterventionManifestError) as caught:
        InterventionPositions(spec)
    assert caught.value.param == "positions"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"spec": "f3", "part": "prefix"}, "part"),
        ({"spec": "l3", "part": "suffix"}, "part"),
        ({"spec": "all", "part": "prefix"}, "part"),
        ({"spec": (1,), "part": "suffix"}, "part"),
        ({"spec": "l3", "suffix_offset": -1}, "suffix_offset"),
        ({"spec": "f3", "suffix_offset": 1}, "suffix_offset"),
        ({"spec": "prompt", "suffix_offset": 1}, "suffix_offset"),
        ({"spec": (1,), "suffix_offset": 1}, "suffix_offset"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, param):
    with pytest.raises(InterventionManifestError) as caught:
        InterventionPositions(**options)
    assert caught.value.param == param


counts = st.integers(1, 12)
rules = st.sampled_from(["paper", "floor"])


@given(first=counts, last=counts, offset=st.integers(0, 5), rule=rules, length=st.integers(0, 40))
def test_untied_parts_never_overlap_and_make_up_the_whole(first, last, offset, rule, length):
    options = {"spec": f"f{first}+l{last}", "suffix_offset": offset, "short_prompt": rule}
    prefix = expand(InterventionPositions(part="prefix", **options), length)
    suffix = expand(InterventionPositions(part="suffix", **options), length)
    assert not set(prefix) & set(suffix)
    assert prefix + suffix == expand(InterventionPositions(**options), length)
    assert len(prefix) == min(first, length // 2)
    assert len(suffix) <= min(last, length // 2 if rule == "floor" else (length + 1) // 2)
    assert all(position < length - offset for position in suffix)


def _specs() -> st.SearchStrategy[InterventionPositions]:
    ends = st.builds(
        InterventionPositions,
        st.builds("f{}+l{}".format, counts, counts),
        st.sampled_from(["both", "prefix", "suffix"]),
        st.integers(0, 3),
        rules,
    )
    one_end = st.builds(
        InterventionPositions, st.builds("{}{}".format, st.sampled_from("fl"), counts), short_prompt=rules
    )
    offset = st.builds(InterventionPositions, st.builds("l{}".format, counts), suffix_offset=st.integers(0, 3))
    whole = st.builds(InterventionPositions, st.sampled_from(["prompt", "all", "generated"]))
    explicit = st.builds(InterventionPositions, st.lists(st.integers(-9, 9), min_size=1, max_size=4).map(tuple))
    return st.one_of(ends, one_end, offset, whole, explicit)


@given(one=_specs(), other=_specs())
def test_rules_that_may_not_overlap_never_do(one, other):
    assert one.may_overlap(other) == other.may_overlap(one)
    if not one.may_overlap(other):
        for length in range(30):
            assert not set(expand(one, length, length + 3)) & set(expand(other, length, length + 3))


@given(rule=_specs(), length=st.integers(0, 30))
def test_intervals_are_sorted_disjoint_and_not_empty(rule, length):
    end_before = 0
    for start, end in rule.intervals(length):
        assert start >= end_before
        assert end is None or end > start
        end_before = length + 99 if end is None else end


@given(rule=_specs(), length=st.integers(0, 20), cuts=st.lists(st.integers(0, 25), max_size=4))
def test_intersection_over_chunks_equals_the_whole(rule, length, cuts):
    bounds = [0, *sorted(cuts), 25]
    chunks = [
        position
        for start, end in itertools.pairwise(bounds)
        for position in intersect(rule.intervals(length), start, end)
    ]
    assert chunks == intersect(rule.intervals(length), 0, 25)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (InterventionPositions("f3+l3", "prefix"), InterventionPositions("f3+l3", "suffix"), False),
        (InterventionPositions("f3+l3", "prefix"), InterventionPositions("f3+l4", "suffix"), True),
        (InterventionPositions("f3"), InterventionPositions("l3"), False),
        (InterventionPositions("prompt"), InterventionPositions("generated"), False),
        (InterventionPositions("all"), InterventionPositions("generated"), True),
        (InterventionPositions("f3"), InterventionPositions("f3"), True),
    ],
)
def test_overlap_of_usual_pairs(one, other, expected):
    assert one.may_overlap(other) is expected
