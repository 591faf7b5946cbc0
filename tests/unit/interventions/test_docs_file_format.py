"""docs/file-format.md: its program writes a file that we read, and its tables are ours."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from reft_interventions import (
    FORMULAS,
    BaseModelRef,
    FileLimits,
    InterventionPositions,
    InterventionSet,
    InterventionSpec,
    Manifest,
    dumps,
    fingerprint,
    loads,
)
from reft_interventions.activations import ACTIVATIONS
from reft_interventions.components import COMPONENTS, ROW_KINDS, is_head, whole_component
from reft_interventions.file_header import _ITEM_BYTES
from reft_interventions.model_tree import _CONFIG_FIELDS

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "file-format.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*/*.safetensors"))
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


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    """The names that the page's reader defines."""
    found = re.search(r"```python\n(.*?)```", section("A whole reader"), re.DOTALL)
    assert found
    scope: dict[str, Any] = {}
    exec(compile(found[1], "docs/file-format.md", "exec"), scope)  # noqa: S102 the page is ours
    return scope


def check_read(reader: dict[str, Any], data: bytes) -> tuple[InterventionSet, dict[str, Any], dict[str, Any]]:
    """Read a file with the page's reader and with ours, and compare."""
    ours = loads(data)
    manifest, tensors, content_hash = reader["read"](data)
    assert content_hash == ours.content_hash
    assert manifest == json.loads(ours.manifest.canonical_json())
    expected = {name: tensor.to(torch.float64).tolist() for name, tensor in ours.named_tensors().items()}
    assert tensors == expected
    return ours, manifest, tensors


def group_of(tensors: dict[str, Any], index: int) -> dict[str, Any]:
    prefix = f"sites.{index}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_reader_decodes_and_hashes_every_bundled_example(reader: dict[str, Any], path: Path) -> None:
    ours, manifest, tensors = check_read(reader, path.read_bytes())
    site, spec = manifest["interventions"][0], ours.manifest.interventions[0]
    rows = torch.randn(2, manifest["base_model"]["hidden_size"], generator=torch.Generator().manual_seed(0))
    source = rows[1].double()
    group = {name: value.double() for name, value in ours.parameters[0].items()}
    if spec.formula_object.needs_source(group):
        group["source"] = source[None]
    expected = spec.formula_object.edit(rows[:1].double(), group, spec.act)[0]
    got = reader["new_row"](site, group_of(tensors, site["parameters"]), rows[0].tolist(), source.tolist())
    torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("formula", FORMULAS)
def test_reader_edits_rows_as_every_formula_does(
    reader: dict[str, Any], tiny_model: Any, make_set: Any, formula: str, dtype: torch.dtype
) -> None:
    """Whole rows and a head's, every activation, scaled, and with some rank dimensions."""
    acts = tuple(ACTIVATIONS) if FORMULAS[formula].has_act else ("linear",)
    places = ({"component": "mlp_output"}, {"component": "head_key_output", "head": 1})
    specs = [
        {"formula": formula, "act": act, "layer": index // 2} | places[index % 2]
        for index, act in enumerate((*acts, acts[0]))
    ]
    for stores_source in (True, False) if formula == "dii" else (True,):
        one = make_set(tiny_model("llama"), *specs, seed=2, dtype=dtype, stores_source=stores_source)
        ours, manifest, tensors = check_read(reader, dumps(one))
        for spec, site in zip(ours.manifest.interventions, manifest["interventions"], strict=True):
            group = {name: value.double() for name, value in ours.parameters[spec.parameters].items()}
            own = group_of(tensors, site["parameters"])
            check_rows(reader, spec, site, group, own)


def check_rows(
    reader: dict[str, Any], spec: InterventionSpec, site: dict[str, Any], group: dict[str, Tensor], own: dict[str, Any]
) -> None:
    formula = spec.formula_object
    row, source = torch.randn(2, spec.row_size(32), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for scale, subspaces in itertools.product((1.0, -0.5), (None, (1, 3)) if formula.has_subspaces else (None,)):
        chosen = group if subspaces is None else formula.restricted(group, subspaces)
        if formula.needs_source(chosen):
            chosen = {**chosen, "source": source[None]}
        expected = row + scale * formula.delta(row[None], chosen, spec.act)[0]
        got = reader["new_row"](site, own, row.tolist(), source.tolist(), scale, subspaces)
        torch.testing.assert_close(torch.tensor(got, dtype=torch.float64), expected)


@pytest.mark.parametrize("positions", ["f2", "l3", "f2+l3", "f7+l1", "prompt", "all", "generated", (0, -1, 4, -9, 4)])
def test_reader_edits_the_tokens_that_ours_does(reader: dict[str, Any], positions: str | tuple[int, ...]) -> None:
    is_text, is_two_ended = isinstance(positions, str), isinstance(positions, str) and "+" in positions
    offsets = (0, 1, 4) if is_text and "l" in positions and positions not in ("all",) else (0,)
    for part, offset, rule in itertools.product(
        ("both", "prefix", "suffix") if is_two_ended else ("both",), offsets, ("paper", "floor")
    ):
        site = {"positions": positions if is_text else list(positions), "part": part, "suffix_offset": offset,
                "short_prompt": rule}  # fmt: skip
        ours = InterventionPositions(positions, part, offset, rule)
        for length in range(1, 12):
            total = length + 3
            expected = [i for start, end in ours.intervals(length) for i in range(start, total if end is None else end)]
            assert reader["edited"](site, length, total) == expected, (site, length)


def test_reader_writes_out_defaults_and_leaves_out_what_is_absent(reader: dict[str, Any]) -> None:
    short = {
        "base_model": {"id": "m\u00e9\U0001f600\x7f", "hidden_size": 2, "num_layers": 1},
        "interventions": [{"layer": 0, "component": "block_output", "formula": "consreft", "low_rank_dimension": 2,
                           "positions": [0, -1], "parameters": 0, "head": None}],
        "subspaces": {"b": [1], "a": [0]},
        "training": {"lr": 9e-4, "eps": 1e-5, "one": 1.0, "nested": {"z": None, "a": [True]}},
    }  # fmt: skip
    assert reader["canonical"](short) == Manifest.parse(json.dumps(short)).canonical_json()
    assert reader["canonical"](short | {"subspaces": {}}) == reader["canonical"](
        {name: value for name, value in short.items() if name != "subspaces"}
    )


def test_fingerprint_is_what_the_page_says(tiny_model: Any) -> None:
    text = section("The fingerprint")
    first = text[text.index("1. ") : text.index("Then always")]
    named = [word for word in words(first) if re.fullmatch(r"[a-z_]+", word)]
    assert tuple(named) == _CONFIG_FIELDS
    model = tiny_model("llama")
    fields = {name: getattr(model.config, name, None) for name in named}
    rope = model.config.rope_parameters
    present = {name: value for name, value in fields.items() if value is not None}
    head = json.dumps(present | {"rope": rope, "rope_theta": rope.get("rope_theta")}, sort_keys=True)
    sampled = [(model.model.embed_tokens.weight, 4096)]
    for layer in model.model.layers:
        sampled += [(value, 64) for _, value in sorted(layer.named_parameters())]
    data = b""
    for tensor, count in sampled:
        flat = tensor.detach().flatten()
        count = min(count, len(flat))
        data += flat[torch.arange(count) * (len(flat) // count)].numpy().tobytes()
    assert fingerprint(model) == "sha256:" + hashlib.sha256(head.encode() + data).hexdigest()
