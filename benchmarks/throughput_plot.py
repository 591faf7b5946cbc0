"""The plot of the peer comparisons: output tokens per second of every contender, by requests at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import svg
from benchmarks.figures import read_results
from benchmarks.machine import RESULTS
from benchmarks.tables import LABELS

PLOT = Path(__file__).parents[1] / "docs" / "throughput.svg"
RESULT_NAMES = tuple(f"peers-{peer}" for peer in ("hf", "peft", "pyreft", "llama_cpp", "vllm", "weights"))
_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 300, 16, 72, 40
_ROW, _GAP = 24, 24
_OURS, _OTHERS = "#1f6feb", "#9aa4b2"


def write_plot(folder: Path = RESULTS, path: Path = PLOT) -> None:
    """Draw what a folder has."""
    path.write_text(draw(read_results(RESULT_NAMES, folder)), encoding="utf-8")


def draw(results: Sequence[dict[str, Any]]) -> str:
    """An SVG document: a panel for each number of requests, a bar for each contender, its range as a line."""
    rates = _rates(results)
    sizes = [batch["num_requests"] for batch in results[0]["batches"]]
    height = _TOP + _ROW * len(rates) + _BOTTOM
    panel = (_WIDTH - _LEFT - _RIGHT - _GAP * (len(sizes) - 1)) / len(sizes)
    elements = [*_frame(results[0], rates, height)]
    for index, size in enumerate(sizes):
        left = _LEFT + index * (panel + _GAP)
        elements.append(svg.text(left, _TOP - 8, f"{size} at once", size=13))
        elements += _bars(rates, index, left, panel)
    return svg.document(_WIDTH, height, *elements)


def _rates(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """Tokens/s by contender and number of requests, in the order of the labels."""
    found = {}
    for name in LABELS:
        run = next((run for run in results if name in run["batches"][0]["tokens_per_s"]), None)
        if run:
            found[name] = [batch["tokens_per_s"][name] for batch in run["batches"]]
    return found


def _frame(result: dict[str, Any], rates: dict[str, Any], height: int) -> Iterator[str]:
    job, machine = result["job"], result["machine"]
    yield svg.text(16, 22, "Output tokens per second of the whole job, by requests at once", size=15)
    tokens = f"{job['num_prompt_tokens']} + {job['num_new_tokens']} tokens"
    setting = f"{job['model']} {job['dtype']}, {tokens}, {machine['num_cores']} cores; lines: range of the rounds"
    yield svg.text(16, 40, setting, fill="#666")
    for row, name in enumerate(rates):
        yield svg.text(_LEFT - 10, _TOP + _ROW * row + 16, LABELS[name], anchor="end")
    yield svg.text(_LEFT, height - 14, "tokens/s, higher is better; each panel has a scale of its own", fill="#666")


def _bars(rates: dict[str, list[dict[str, float]]], index: int, left: float, panel: float) -> Iterator[str]:
    largest = max(figures[index]["max"] for figures in rates.values())
    scale = (panel - 40) / largest
    for row, (name, figures) in enumerate(rates.items()):
        figure, y = figures[index], _TOP + _ROW * row
        width, colour = round(figure["median"] * scale, 1), _OURS if name.startswith("ours") else _OTHERS
        yield f'<rect x="{left:.1f}" y="{y + 4}" width="{width}" height="{_ROW - 8}" fill="{colour}"/>'
        middle, end = y + _ROW / 2, left + figure["max"] * scale
        yield svg.line(round(left + figure["min"] * scale, 1), middle, round(end, 1), middle, "#222")
        yield svg.text(round(end + 6, 1), y + 16, f"{figure['median']:.0f}")


if __name__ == "__main__":
    write_plot()
