"""Labels for the values that are seen most."""

from __future__ import annotations

from reft_server.top_labels import OTHER_LABEL, TopLabels


def test_first_values_are_named_and_the_others_share_a_label() -> None:
    labels = TopLabels(2)
    assert [labels.observe(value) for value in "abcab"] == ["a", "b", OTHER_LABEL, "a", "b"]


def test_busy_values_take_the_places_of_those_that_went_quiet() -> None:
    labels = TopLabels(2, rerank_every=10)
    seen = [labels.observe(value) for value in "ab" + "c" * 5 + "d" * 4]
    assert seen[:2] == ["a", "b"]
    assert labels.named == {"c", "d"}
    assert labels.observe("a") == OTHER_LABEL


def test_places_do_not_change_hands_among_equals() -> None:
    labels = TopLabels(2, rerank_every=8)
    for value in "zyab" * 20:
        labels.observe(value)
    assert labels.named == {"z", "y"}


def test_memory_is_bounded_however_many_values_come() -> None:
    labels = TopLabels(4, rerank_every=100)
    for index in range(10_000):
        labels.observe(f"value-{index}")
    assert len(labels._counts) <= 200
    assert len(labels.named) <= 4


def test_no_places_at_all() -> None:
    assert TopLabels(0).observe("a") == OTHER_LABEL
