"""Damaged, spliced and invented files: the parser reads a file, or names what is wrong; it never does anything else.

More, at random, by hand: REFT_TEST_FUZZ_EXAMPLES=100000. What that finds belongs into tests/hostile_files.py.
"""

from __future__ import annotations

import copy
import json
import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reft_interventions import FORMULAS, InterventionSet, dumps
from reft_interventions.errors import InterventionError
from reft_interventions.file_format import loads
from reft_interventions.validation import validate_for_base
from tests.hostile_files import GOOD, HOSTILE, LIMITS, with_header
from tests.intervention_sets import BASE, make_set

NUM_EXAMPLES = int(os.environ.get("REFT_TEST_FUZZ_EXAMPLES", "500"))
fuzzed = settings(
    max_examples=NUM_EXAMPLES,
    derandomize=NUM_EXAMPLES <= 500,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)

SEEDS = [
    *(make() for make, _ in HOSTILE.values()),
    *(dumps(make_set(1, formula=name, low_rank_dimension=2 * each.has_low_rank)) for name, each in FORMULAS.items()),
]
HEADER = json.loads(GOOD[8 : 8 + int.from_bytes(GOOD[:8], "little")])
HEADER["__metadata__"]["reft"] = json.loads(HEADER["__metadata__"]["reft"])

HOSTILE_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 40),
    st.sampled_from([2**31, 2**32 - 1, 2**48, 2**53, 2**63, 2**64, -(2**63), 10**400]),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["../../etc/passwd", "a\x00b", "a\r\nb: c", "\x1b[31m", "\u202egnp", "F64", "l1", "all", "f3+l3"]),
    st.sampled_from([*FORMULAS, "block_output", "head_query_output", "mlp_activation", "attention_value_output"]),
    st.lists(st.integers(-3, 300), max_size=4),
    st.dictionaries(st.text(max_size=8), st.integers(), max_size=3),
    st.integers(1, 200).map(lambda depth: json.loads("[" * depth + "]" * depth)),
)
HOSTILE_NAMES = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["", "../../etc/passwd", "a\x00b", "a\r\nb: c", "\x1b[31m", "\u202egnp", "a" * 5000, "__class__"]),
)


def is_whole(header: Any) -> bool:
    """There is still a manifest in it to go on with."""
    metadata = header.get("__metadata__")
    return isinstance(metadata, dict) and isinstance(metadata.get("reft"), dict) and bool(metadata["reft"])


def read(data: bytes) -> None:
    """Parse and validate as an upload does; a set that is read can be written and read again."""
    try:
        found = loads(data, LIMITS)
        assert isinstance(found, InterventionSet)
        again = loads(dumps(found))
        assert (again.content_hash, again.manifest) == (found.content_hash, found.manifest)
        validate_for_base(found, BASE)
    except InterventionError as error:
        for text in (error.message, error.param or "-"):
            assert text.isprintable(), "a log line or a terminal would take it for more than text"
            assert 0 < len(text) < 2002


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A file of the corpus, with a few bytes changed, cut out, doubled or taken from another one."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from([0, 1, 2, 8, 64, 1024])))
        other = draw(st.sampled_from(SEEDS))
        kind = draw(st.sampled_from(["flip", "cut", "double", "insert", "splice", "length"]))
        if kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "length":
            data[:8] = draw(st.integers(0, 1 << 20)).to_bytes(8, "little")
        else:
            piece = {"cut": b"", "double": data[start:end] * 2, "insert": draw(st.binary(max_size=16))}
            data[start:end] = piece.get(kind, other[start : start + 512])
    return bytes(data[: LIMITS.max_file_bytes + 1])


@st.composite
def rewritten(draw: st.DrawFn) -> bytes:
    """The good file with a few values of its header or its manifest replaced, removed or put elsewhere."""
    header: Any = copy.deepcopy(HEADER)
    for _ in range(draw(st.integers(1, 3))):
        parent = header["__metadata__"]["reft"] if draw(st.booleans()) and is_whole(header) else header
        while True:
            key = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
            if not parent[key] or not isinstance(parent[key], dict | list) or draw(st.integers(0, 3)) == 0:
                break
            parent = parent[key]
        kind = draw(st.sampled_from(["replace", "remove", "rename", "double"]))
        value = parent[key]
        if kind == "replace" or isinstance(parent, list):
            parent[key] = value = draw(HOSTILE_VALUES)
        elif kind in ("remove", "rename"):
            del parent[key]
        if kind in ("rename", "double") and isinstance(parent, dict):
            parent[draw(HOSTILE_NAMES)] = copy.deepcopy(value)
        if not is_whole(header):
            break
    if is_whole(header):
        header["__metadata__"]["reft"] = json.dumps(header["__metadata__"]["reft"])
    return with_header(json.dumps(header).encode())


@fuzzed
@given(data=damaged())
def test_damaged_file_is_read_or_refused_by_name(data: bytes) -> None:
    read(data)


@fuzzed
@given(data=rewritten())
def test_rewritten_header_is_read_or_refused_by_name(data: bytes) -> None:
    read(data)


@fuzzed
@given(text=st.binary(max_size=200), starts_well=st.booleans())
def test_any_header_is_read_or_refused_by_name(text: bytes, starts_well: bool) -> None:
    read(with_header(b'{"' + text if starts_well else text))
