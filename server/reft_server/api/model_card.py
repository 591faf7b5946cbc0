"""The model card of a set whose owner has written none: what the server knows, as markdown."""

from __future__ import annotations

import re

from reft_client.types import InterventionInfo

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~-])")


def default_card(info: InterventionInfo) -> str:
    """The facts about the newest version; the owner's words are text here, never markup."""
    rows = [
        ("Version", str(info.version)),
        ("Base model", info.base_model),
        ("Formula", ", ".join(info.formulas)),
        ("Components", ", ".join(info.components)),
        ("Layers", ", ".join(map(str, info.layers))),
        ("Positions", ", ".join(info.positions)),
        ("Rank", "" if info.low_rank_dimension is None else str(info.low_rank_dimension)),
        ("Parameters", "" if info.num_parameters is None else f"{info.num_parameters:,}"),
        ("License", info.license),
        ("Labels", ", ".join(f"{key}={value}" for key, value in info.labels.items())),
        ("Content hash", info.content_hash),
    ]
    table = "\n".join(f"| {name} | {_text(value)} |" for name, value in rows if value)
    description = f"{_text(info.description)}\n\n" if info.description else ""
    return f"# {_text(info.name)}\n\n{description}| | |\n|---|---|\n{table}\n"


def _text(value: str) -> str:
    return _SPECIAL.sub(r"\\\1", " ".join(value.split()))
