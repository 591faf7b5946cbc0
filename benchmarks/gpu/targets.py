"""What was to be reached, beside what was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import Table

_DECODE_SHARES = {1: 0.80, 32: 0.75, 256: 0.70}
_OVER_BASE = {"f7+l7": 0.98, "all": 0.85}


@dataclass(frozen=True)
class Verdict:
    """A figure and its target; `is_met` is None where the figure has none."""

    figure: str
    measured: str
    target: str
    is_met: bool | None


def verdicts(result: Mapping[str, Any]) -> list[Verdict]:
    """One for each figure that was taken; what failed or was cut has those that came before."""
    figures = (_decode, _prefill, _throughput, _activation, _shared_prefix, _edits, _attention, _products, _generate)
    return [verdict for figure in figures for verdict in figure(result)]


def table(result: Mapping[str, Any]) -> Table:
    """The verdicts, for people."""
    words = {True: "met", False: "MISSED", None: ""}
    rows = [(one.figure, one.measured, one.target, words[one.is_met]) for one in verdicts(result)]
    return Table("On a GPU", ("figure", "measured", "target", ""), rows)


def _at_least(figure: str, measured: float, target: float | None, note: str = "") -> Verdict:
    if target is None:
        return Verdict(figure, f"{measured:.3g}{note}", "", None)
    return Verdict(figure, f"{measured:.3g}{note}", f">= {target:g}", measured >= target)


def _at_most(figure: str, measured: float, target: float, unit: str = "") -> Verdict:
    return Verdict(figure, f"{measured:.3g}{unit}", f"<= {target:g}{unit}", measured <= target)


def _decode(result: Mapping[str, Any]) -> Iterator[Verdict]:
    for section, how in (("decode", ""), ("decode_cublas", " by cuBLAS alone")):
        for cell in result.get(section, {}).get("cells", ()):
            for name in ("base", "all"):
                if f"{name}_share" in cell:
                    where = f"batch {cell['batch']}, context {cell['context']}"
                    target = _DECODE_SHARES.get(cell["batch"]) if (section, name) == ("decode", "base") else None
                    figure = f"decode step{how}, {name}, {where}: share of bandwidth"
                    yield _at_least(figure, cell[f"{name}_share"], target, f" ({cell[f'{name}_ms']:g} ms)")


def _prefill(result: Mapping[str, Any]) -> Iterator[Verdict]:
    found = result.get("prefill", {})
    for name, target in (("base", 0.70), ("f7+l7", None), ("all", None)):
        if f"{name}_share" in found:
            figure = f"prefill of {found['num_tokens']} tokens, {name}: share of products"
            yield _at_least(figure, found[f"{name}_share"], target, f" ({found[f'{name}_tokens_per_s']:.0f} tokens/s)")


def _throughput(result: Mapping[str, Any]) -> Iterator[Verdict]:
    for mix in result.get("throughput", {}).get("mixes", ()):
        figure = f"{mix['num_distinct']} distinct {mix['positions']} sets: output over the base's"
        note = f" (base {mix['base_tokens_per_s']:.0f} tokens/s)"
        yield _at_least(figure, mix["over_base"], _OVER_BASE.get(mix["positions"]), note)


def _activation(result: Mapping[str, Any]) -> Iterator[Verdict]:
    found = result.get("activation", {})
    for name, target in (("from_host_ms", 1.0), ("from_disk_ms", 20.0)):
        if name in found:
            yield _at_most(f"a set {name.removesuffix('_ms').replace('_', ' ')}", found[name], target, " ms")


def _shared_prefix(result: Mapping[str, Any]) -> Iterator[Verdict]:
    found = result.get("shared_prefix", {})
    if "over_base" in found:
        yield _at_most("first token behind a cached prefix, over a base hit", found["over_base"], 1.2)


def _edits(result: Mapping[str, Any]) -> Iterator[Verdict]:
    ceiling = result.get("ceilings", {}).get("copy_gb_per_s")
    for name, found in result.get("edit_kernels", {}).items():
        if isinstance(found, Mapping) and ceiling:
            target = None if name == "no edit" else 0.60
            figure = f"edit kernel, {name}: share of bandwidth"
            yield _at_least(figure, found["gb_per_s"] / ceiling, target, f" ({found['us']:g} us)")


def _attention(result: Mapping[str, Any]) -> Iterator[Verdict]:
    found, ceilings = result.get("attention_kernels", {}), result.get("ceilings", {})
    for name, rate in found.get("prompt", {}).items():
        share = rate["tflops"] / ceilings["bf16_tflops"]
        figure = f"attention of a prompt, {name}: share of products"
        yield _at_least(figure, share, None, f" ({rate['tflops']:.0f} TFLOP/s)")
    for name, rate in found.get("decode", {}).items():
        share = rate["gb_per_s"] / ceilings["copy_gb_per_s"]
        yield _at_least(f"attention of a decode step, batch {name}: share of bandwidth", share, None)


def _products(result: Mapping[str, Any]) -> Iterator[Verdict]:
    ceiling = result.get("ceilings", {}).get("copy_gb_per_s")
    for name, by_rows in result.get("products", {}).items():
        if isinstance(by_rows, Mapping) and ceiling:
            for num_rows, rates in by_rows.items():
                note = f" (cuBLAS {rates['cublas'] / ceiling:.3g})"
                ours = max(rate for one, rate in rates.items() if one != "cublas")
                yield _at_least(f"our product {name}, {num_rows} rows: share of bandwidth", ours / ceiling, None, note)


def _generate(result: Mapping[str, Any]) -> Iterator[Verdict]:
    for section in ("generate", "generate_compiled"):
        for name, found in result.get(section, {}).items():
            if isinstance(found, Mapping):
                rates = f" ({found['ours_tokens_per_s']:.0f} and {found['generate_tokens_per_s']:.0f} tokens/s)"
                yield _at_least(f"ours over {section}, {name}", found["ours_over_generate"], None, rates)
