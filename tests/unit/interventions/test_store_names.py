"""Names can't escape the store's folder, and references mean one thing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reft_interventions import save
from reft_interventions.errors import InvalidInterventionNameError
from reft_interventions.store import InterventionStore, Reference, check_name, parse_reference
from tests.intervention_sets import make_set

NASTY_NAMES = [
    "", " ", ".", "..", "../x", "a/../b", "/etc/passwd", "a/b", "a\\b", "..\\x", "C:\\x", "c:", "a:b", "~", "~root",
    "a\x00b", "a\nb", "a\r", "a\t", "\x1b[2J", "-rf", ".hidden", "a..b", "a.", "a ", " a", "a@1", "@", "%2e%2e",
    "$HOME", "`id`", "a;b", "a|b", "a*", "a?", "con", "nul", "aux.txt", "com1", "lpt9.safetensors", "Pirate",
    "\u00c9", "\u00e9", "\uff41", "p\u0131r", "\u2177", "\uff11", "a\u202eb", "a\u200bb", "\U0001f600",
    "a" * 65, "a" * 100_000, "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", NASTY_NAMES, ids=lambda name: ascii(name)[:30])
def test_check_name_refuses_what_could_leave_the_folder_or_be_mistaken(name: str) -> None:
    with pytest.raises(InvalidInterventionNameError) as caught:
        check_name(name)
    assert caught.value.param == "name"
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["a", "0", "haiku", "llama-3.1_pirate", "x" * 64, "a.b-c_d", "console", "com10"])
def test_check_name_accepts_plain_names(name: str) -> None:
    assert check_name(name) == name


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_accepted_name_is_one_folder_inside_the_store(name: str) -> None:
    try:
        check_name(name)
    except InvalidInterventionNameError:
        return
    folder = Path("/store/refs")
    assert (folder / name).resolve().parent == folder
    assert name == name.lower()
    assert name.isascii()


@settings(deadline=None)
@given(st.from_regex(r"[a-z0-9._-]{1,66}", fullmatch=True))
def test_names_near_the_rule_are_safe_too(name: str) -> None:
    try:
        check_name(name)
    except InvalidInterventionNameError:
        return
    assert ".." not in name
    assert name[0].isalnum()
    assert name[-1].isalnum()
    assert len(name) <= 64


@pytest.mark.parametrize("name", NASTY_NAMES, ids=lambda name: ascii(name)[:30])
@pytest.mark.parametrize("method", ["put", "resolve", "versions", "delete"])
def test_store_methods_refuse_nasty_names_and_write_nothing(tmp_path: Path, method: str, name: str) -> None:
    with InterventionStore(tmp_path / "outer" / "store") as store:
        before = sorted(tmp_path.rglob("*"))
        call = getattr(store, method)
        arguments = (tmp_path / "no-such-file", name) if method == "put" else (name,)
        with pytest.raises(InvalidInterventionNameError):
            call(*arguments)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("haiku", Reference("haiku")),
        ("haiku@3", Reference("haiku", 3)),
        ("haiku@sha256:0123456789ab", Reference("haiku", "sha256:0123456789ab")),
        (f"haiku@sha256:{'0' * 64}", Reference("haiku", f"sha256:{'0' * 64}")),
    ],
)
def test_parse_reference_reads_names_numbers_and_hashes(text: str, expected: Reference) -> None:
    assert parse_reference(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "@3", "haiku@", "haiku@0", "haiku@-1", "haiku@03", "haiku@1.0", "haiku@1e3", "haiku@\u0663", "haiku@9999999999",
        "haiku@stable", "haiku@3@4", "haiku@ 3", "haiku@sha256:", "haiku@sha256:0123456789a",
        "haiku@sha256:0123456789AB",
        "haiku@0123456789ab", f"haiku@sha256:{'0' * 65}", "haiku@sha256:%%%%%%%%%%%%", "haiku@md5:0123456789ab",
    ],
)  # fmt: skip
def test_parse_reference_refuses_anything_else(text: str) -> None:
    with pytest.raises(InvalidInterventionNameError):
        parse_reference(text)


@pytest.mark.parametrize("version", [True, 1.0, b"1", [1], 10**30, -1, 0])
def test_resolve_refuses_versions_of_other_types_and_sizes(tmp_path: Path, version: object) -> None:
    with InterventionStore(tmp_path) as store, pytest.raises(InvalidInterventionNameError):
        store.resolve("haiku", version)  # type: ignore[arg-type]


def test_two_names_that_differ_in_case_can_not_both_exist(tmp_path: Path) -> None:
    with InterventionStore(tmp_path) as store:
        path = store.new_temp_path()
        save(make_set(), path)
        with pytest.raises(InvalidInterventionNameError, match="letter"):
            store.put(path, "Haiku")
        assert path.exists()
        assert store.put(path, "haiku").version == 1
