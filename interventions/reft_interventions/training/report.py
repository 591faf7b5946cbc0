"""What a run leaves to look at: `report.json`, and the same as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from .charts import Series, line_chart
from .data import Dataset
from .search import SearchResult
from .trainer import TrainingResult

_TRAIN, _HELD_OUT, _OTHER = "#1f6feb", "#d1570c", "#bbb"
_STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; margin: 1rem 0 } caption { text-align: left; font-weight: bold; padding: .3rem 0 }
th, td { border-bottom: 1px solid #ddd; padding: .25rem .8rem .25rem 0; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums } tr.best { background: #eef6ee }
svg { width: 100%; height: auto } code { word-break: break-all }
"""


def build_report(
    result: TrainingResult, data: Dataset, content_hash: str, seconds: float, search: SearchResult | None = None
) -> dict[str, Any]:
    """The run as plain JSON values; the loss of each step, and of the held-out rows where they were scored."""
    manifest, progress = result.intervention_set.manifest, result.progress
    training: dict[str, Any] = dict(manifest.training)
    options = training.pop("options")
    steps_per_epoch = progress.step / max(progress.epoch, 1)
    held_out = [
        {"step": round((index + 1) * options["eval_every"] * steps_per_epoch), "loss": loss}
        for index, loss in enumerate(progress.eval_losses)
    ]
    if result.before is not None:
        held_out.insert(0, {"step": 0, "loss": result.before.loss})
    report = {
        "name": manifest.name,
        "description": manifest.description,
        "content_hash": content_hash,
        "base_model": manifest.base_model.model_dump(),
        "num_parameters": result.intervention_set.num_parameters,
        "num_interventions": len(manifest.interventions),
        "num_prompt_tokens": sum(len(example.prompt_ids) for example in data.examples),
        "num_answer_tokens": sum(len(example.answer_ids) for example in data.examples),
        "seconds": round(seconds, 1),
        "orthonormality_error": result.orthonormality_error,
        **training,
        "losses": progress.losses,
        "held_out_losses": held_out,
        "options": options,
    }
    if search is not None:
        report["search"] = search.as_dict()
    return report


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write both files into `folder`, which is made where it is missing.

    Raises:
        TrainingError: it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(render_html(report), encoding="utf-8")
    except OSError as error:
        raise TrainingError(f"the report {folder} can't be written: {error.strerror}", param="report") from error


def render_html(report: dict[str, Any]) -> str:
    """The page; every text of the run is escaped."""
    title = escape(report["name"] or "Training run")
    listed = {"losses", "held_out_losses", "options", "search", "before", "after", "base_model", "name", "description"}
    facts: list[tuple[str, Any]] = [("base model", f"{report['base_model']['id']}")]
    facts += [(key.replace("_", " "), value) for key, value in report.items() if key not in listed]
    parts = [
        f"<h1>{title}</h1>",
        f"<p>{escape(report['description'])}</p>" if report["description"] else "",
        _results(report),
        line_chart("Loss per answer token", "optimizer step", "loss", _loss_curves(report)),
        _search(report["search"]) if "search" in report else "",
        _table("Run", ("", ""), facts),
        _table("Options", ("option", "value"), report["options"].items()),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _results(report: dict[str, Any]) -> str:
    if "before" not in report:
        return "<p>No rows were held out.</p>"
    rows = [
        (label, report[key]["loss"], f"{report[key]['exact_match']:.1%}", report[key]["num_examples"])
        for label, key in (("before", "before"), ("after", "after"))
    ]
    return _table("Held-out rows", ("", "loss", "exact match", "rows"), rows)


def _loss_curves(report: dict[str, Any]) -> list[Series]:
    train = [(float(step), loss) for step, loss in enumerate(report["losses"], start=1)]
    held_out = [(float(point["step"]), point["loss"]) for point in report["held_out_losses"]]
    return [Series("training", _TRAIN, train, 1.5), Series("held out", _HELD_OUT, held_out)]


def _search(search: dict[str, Any]) -> str:
    trials, best = search["trials"], search["best"]
    curves = [
        Series(
            "best" if trial["number"] == best else "",
            _HELD_OUT if trial["number"] == best else _OTHER,
            [(float(epoch), loss) for epoch, loss in enumerate(trial["eval_losses"], start=1)],
        )
        for trial in sorted(trials, key=lambda trial: trial["number"] == best)
    ]
    columns = ("trial", "layers", "rank", "positions", "epochs", "loss", "exact match", "parameters", "seconds")
    rows = []
    for trial in sorted(trials, key=lambda trial: (trial["is_pruned"], trial["eval_losses"][-1:] or [0.0])):
        exact = "stopped early" if trial["is_pruned"] else f"{trial['exact_match']:.1%}"
        rows.append(
            (
                trial["number"], trial["layers"], trial["low_rank_dimension"], trial["positions"],
                len(trial["eval_losses"]), trial["eval_losses"][-1] if trial["eval_losses"] else "", exact,
                trial["num_parameters"], trial["seconds"],
            )
        )  # fmt: skip
    chart = line_chart("Search: held-out loss of each trial", "epoch", "loss", curves)
    highlighted = [trial[0] == best for trial in rows]
    return chart + "\n" + _table("Search", columns, rows, highlighted)


def _table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], highlighted: Sequence[bool] = ()
) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = [f"<table><caption>{escape(caption)}</caption>", f"<thead><tr>{head}</tr></thead><tbody>"]
    for index, row in enumerate(rows):
        style = ' class="best"' if index < len(highlighted) and highlighted[index] else ""
        lines.append(f"<tr{style}>" + "".join(_cell(value) for value in row) + "</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return f"<td>{escape(str(value))}</td>"
    if isinstance(value, int):
        return f'<td class="number">{value:,}</td>'
    if isinstance(value, float):
        return f'<td class="number">{value:.4g}</td>'
    return f"<td><code>{escape(json.dumps(value))}</code></td>"
