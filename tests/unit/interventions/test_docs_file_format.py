"""docs/file-format.md: its program writes a file that we read, and its tables are ours."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from reft_interventions import (
    FORMULAS,
    BaseModelRef,
    FileLimits,
    InterventionPositions,
    InterventionSpec,
    Manifest,
    loads,
)
from reft_interventions.activations import ACTIVATIONS
from reft_interventions.components import COMPONENTS, ROW_KINDS, is_head, whole_component
from reft_interventions.file_header import _ITEM_BYTES

PAGE = (Path(__file__).parents[3] / "docs" / "file-format.md").read_text(encoding="utf-8")
NO_DEFAULT = "\N{EN DASH}"
LENGTHS = (1, 2, 3, 4, 5, 8)
SIZES = {"hidden": "d", "intermediate": "intermediate size", "query": "query heads", "key_value": "key heads"}


def section(title: str) -> str:
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, headings and rules left out."""
    body = re.sub(r"^\|.*\n\|---.*\n", "", text, flags=re.MULTILINE)
    lines = [line for line in body.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def words(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_program_writes_the_file_and_the_hash_that_we_read(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"```python\n(.*?)```\s+```text\n(.*?)```", section("A whole file"), re.DOTALL)
    assert found
    program, printed = found.groups()
    scope: dict[str, object] = {}
    exec(compile(program, "docs/file-format.md", "exec"), scope)  # noqa: S102 the page is ours
    assert capsys.readouterr().out == printed
    one = loads(scope["data"])
    assert one.content_hash == scope["content_hash"]
    assert one.manifest.canonical_json() == scope["canonical"]
    assert one.parameters[0]["vector"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    ("model", "heading"),
    [(Manifest, "| `format_version`"), (BaseModelRef, "| `id`"), (InterventionSpec, "| `layer`")],
)
def test_every_manifest_field_is_described_with_its_default(model: type, heading: str) -> None:
    text = section("The manifest")
    table = text[text.index(heading) :].split("\n\n")[0]
    described = {words(row[0])[0]: row[2] for row in rows(table)}
    assert described.keys() == model.model_fields.keys()
    for name, field in model.model_fields.items():
        if field.is_required():
            expected = NO_DEFAULT
        elif name in ("head", "width", "subspaces"):
            expected = "absent"
        else:
            default = field.get_default(call_default_factory=True)
            shown = {"": '`""`', None: "null"} if not isinstance(default, dict) else {}
            expected = shown.get(default, str(default)) if shown else f"`{default}`"
            expected = f"`{expected}`" if isinstance(default, str) and default else expected
        assert described[name] == expected, name


def test_every_formula_is_described_with_its_tensors() -> None:
    described = {words(row[0])[0]: row for row in rows(section("Formulas")) if len(row) == 5}
    assert described.keys() == FORMULAS.keys()
    for name, formula in FORMULAS.items():
        _, _, tensors, act, rank = described[name]
        shapes = formula.parameter_shapes(1000, 10 if formula.has_low_rank else 0)
        text = {shape: "[" + ", ".join({1000: "n", 10: "r"}[size] for size in shape) + "]" for shape in shapes.values()}
        found = dict(re.findall(r"`(\w+)` \S+ (\[[^]]+\])", tensors))
        assert found == {tensor: text[shape] for tensor, shape in shapes.items()}
        optional = set(re.findall(r"optional `(\w+)`", tensors))
        assert optional == formula.optional_parameters
        assert (act == "yes", rank == "yes") == (formula.has_act, formula.has_subspaces)


def test_folding_table_has_every_low_rank_formula() -> None:
    folded = {words(row[0])[0] for row in rows(section("Formulas")) if len(row) == 4}
    assert folded == {name for name, formula in FORMULAS.items() if formula.has_subspaces}


def test_every_component_is_described_with_its_size() -> None:
    described = {name: row[2] for row in rows(section("Components")) for name in words(row[0])}
    assert described.keys() == set(COMPONENTS)
    for name, size in described.items():
        expected = "head size" if is_head(name) else SIZES[ROW_KINDS[whole_component(name)]]
        assert size.startswith(expected), name


def test_every_activation_and_dtype_is_named() -> None:
    act_row = next(row for row in rows(section("The manifest")) if row[0] == "`act`")
    assert words(act_row[1]) == list(ACTIVATIONS)
    assert all(f"`{dtype}`" in section("Bytes") for dtype in _ITEM_BYTES)


def test_limits_are_the_readers() -> None:
    limits = FileLimits()
    text = section("Bytes")
    assert f"| file | {limits.max_file_bytes >> 20} MiB" in text
    assert f"| header | {limits.max_header_bytes >> 20} MiB" in text
    assert f"| tensors | {limits.max_tensors} |" in text


def test_positions_table_is_what_the_rules_give() -> None:
    table = rows(section("Positions"))
    assert len(table) >= 10
    for spec, part, offset, rule, *cells in table:
        text = words(spec)[0]
        positions = tuple(json.loads(text)) if text.startswith("[") else text
        parsed = InterventionPositions(positions, words(part)[0], int(offset), words(rule)[0])
        for length, cell in zip(LENGTHS, cells, strict=True):
            intervals = parsed.intervals(length)
            shown = " ".join(f"[{start}, {'…' if end is None else end})" for start, end in intervals)
            assert cell == (shown or "none"), (text, part, rule, length)
