"""The bundled examples: small, complete, and measured from the very file that is in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reft_interventions import load
from reft_interventions.validation import check_values

EXAMPLES = Path(__file__).parents[4] / "examples"
NAMES = ("greater-than", "shout", "spam", "word-category")


def test_every_bundled_set_is_listed_here():
    assert sorted(path.stem for path in EXAMPLES.glob("*/*.safetensors")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_example_is_small_valid_prompt_only_and_described(name):
    path = EXAMPLES / name / f"{name}.safetensors"
    assert path.stat().st_size < 2_000_000
    loaded = load(path)
    check_values(loaded)
    manifest = loaded.manifest
    assert manifest.name == name
    assert manifest.description
    assert manifest.license
    assert manifest.base_model.id == "smollm2-135m-instruct"
    assert loaded.fold().is_prompt_only


@pytest.mark.parametrize("name", NAMES)
def test_example_results_are_those_of_the_file(name):
    results = json.loads((EXAMPLES / name / "results.json").read_text(encoding="utf-8"))
    assert results["content_hash"] == load(EXAMPLES / name / f"{name}.safetensors").content_hash


def test_examples_share_one_base_model():
    fingerprints = {load(EXAMPLES / name / f"{name}.safetensors").manifest.base_model.fingerprint for name in NAMES}
    assert len(fingerprints) == 1
    assert "" not in fingerprints


@pytest.mark.parametrize("name", ["spam", "word-category"])
def test_example_pages_quote_the_measured_accuracies(name):
    results = json.loads((EXAMPLES / name / "results.json").read_text(encoding="utf-8"))
    page = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    accuracies = [results["majority"]["accuracy"]]
    accuracies += [results[who][how]["accuracy"] for who in ("base", "ours") for how in results[who]]
    assert all(f"| {accuracy:.1%} |" in page for accuracy in accuracies)


def test_interchange_example_beats_a_random_subspace_and_its_page_says_by_how_much():
    results = json.loads((EXAMPLES / "greater-than" / "results.json").read_text(encoding="utf-8"))
    page = (EXAMPLES / "greater-than" / "README.md").read_text(encoding="utf-8")
    assert results["learned"] > results["random"]["max"] + 0.5
    assert results["num_held_out"] == 200
    figures = [results["learned"], results["random"]["mean"], results["whole_row"], results["no_interchange"]]
    assert all(f"| {figure:.1%} |" in page for figure in figures)


@pytest.mark.parametrize("name", NAMES)
def test_readme_quotes_the_measured_gains(name):
    results = json.loads((EXAMPLES / name / "results.json").read_text(encoding="utf-8"))
    if name == "greater-than":
        figures = [results["no_interchange"], results["learned"]]
    elif name == "shout":
        figures = [results["base"]["capital_letters"], results["ours"]["capital_letters"]]
    else:
        best_base = max(reading["accuracy"] for reading in results["base"].values())
        figures = [results["majority"]["accuracy"], best_base, results["ours"]["by_generation"]["accuracy"]]
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith(f"| [{name}]"))
    assert all(f"{figure:.1%}" in row for figure in figures)
    assert f"{results['num_held_out']} held-out" in row
