"""Objectives: how they are written, and which records meet them."""

from __future__ import annotations

from array import array

import pytest

from reft_client import InvalidArgumentError
from reft_client.bench.records import RequestRecord
from reft_client.bench.slo import Slo, parse_seconds

RECORD = RequestRecord(
    0, intended_s=1.0, sent_s=1.25, first_s=1.5, end_s=2.5, gaps_s=array("d", [0.25, 0.75]), completion_tokens=5
)


def test_record_counts_latency_from_the_intended_time() -> None:
    assert (RECORD.ttft_s, RECORD.e2e_s, RECORD.tpot_s) == (0.5, 1.5, 0.25)


@pytest.mark.parametrize(
    ("text", "is_met"),
    [
        ("ttft:500ms", True),
        ("ttft:499ms", False),
        ("itl:750ms", True),
        ("itl:700ms", False),
        ("tpot:0.25", True),
        ("tpot:240ms", False),
        ("e2e:1.5s,ttft:1", True),
        ("e2e:1.4s,ttft:1", False),
    ],
)
def test_slo_is_met_up_to_its_bound(text: str, is_met: bool) -> None:
    assert Slo.parse(text).is_met_by(RECORD) is is_met


def test_slo_is_never_met_by_a_failure() -> None:
    assert not Slo().is_met_by(RequestRecord(0, first_s=0.1, error="http_500"))


@pytest.mark.parametrize("text", ["", "ttft", "ttft:0", "ttft:x", "ttft:1,ttft:2", "speed:1", "ttft:-1s", "e2e:infs"])
def test_slo_refuses_what_it_is_not(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Slo.parse(text)


def test_seconds_have_units() -> None:
    assert [parse_seconds(text) for text in ("2", "2s", "500ms", "50us")] == pytest.approx([2, 2, 0.5, 5e-5])
