"""The methods, and the learning rates that each may choose from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

_ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Method:
    """One way to adapt the base model.

    Args:
        title: in the report's table.
        reft: fields of `TrainingOptions` that say what to train; None = not ReFT.
        peft: the name of a config class of PEFT and its arguments; None = not PEFT. Neither = the base model.
        rates: learning rates to choose from, on held-out rows; equally many for each method.
        rates_of: the method whose choice is taken over, for variants of it.
        starts_from_rows: virtual tokens begin as the first tokens of the training rows, not as random numbers.
    """

    title: str
    reft: Mapping[str, Any] | None = None
    peft: tuple[str, Mapping[str, Any]] | None = None
    rates: tuple[float, ...] = ()
    rates_of: str = ""
    starts_from_rows: bool = False


def _reft(formula: str, layers: str, low_rank_dimension: int, positions: str) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "formula": formula,
            "layers": layers,
            "low_rank_dimension": low_rank_dimension,
            "positions": positions,
            "is_tied": True,
            "start": "base",
        }
    )


_REFT_RATES = (1e-3, 3e-3, 1e-2)
_LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": list(_ALL_LINEAR)}
_VIRTUAL = {"num_virtual_tokens": 10}

COMPARED: Mapping[str, Method] = MappingProxyType(
    {
        "base": Method("base model"),
        "loreft-l1": Method("LoReFT l1", reft=_reft("loreft", "all", 4, "l1"), rates=_REFT_RATES),
        "loreft-f3l3": Method("LoReFT f3+l3", reft=_reft("loreft", "all", 4, "f3+l3"), rates=_REFT_RATES),
        "direft-f3l3": Method("DiReFT f3+l3", reft=_reft("nodireft", "all", 4, "f3+l3"), rates=_REFT_RATES),
        "lora-r8": Method("LoRA r8", peft=("LoraConfig", _LORA), rates=(3e-4, 1e-3, 3e-3)),
        "prefix-10-rows": Method(
            "prefix tuning, 10 tokens",
            peft=("PrefixTuningConfig", _VIRTUAL),
            rates=(3e-3, 1e-2, 3e-2),
            starts_from_rows=True,
        ),
        "prompt-10-rows": Method(
            "prompt tuning, 10 tokens",
            peft=("PromptTuningConfig", _VIRTUAL),
            rates=(3e-3, 1e-2, 3e-2),
            starts_from_rows=True,
        ),
        "prefix-10": Method(
            "prefix tuning, random start", peft=("PrefixTuningConfig", _VIRTUAL), rates=(1e-2, 3e-2, 1e-1)
        ),
        "prompt-10": Method(
            "prompt tuning, random start", peft=("PromptTuningConfig", _VIRTUAL), rates=(1e-2, 3e-2, 1e-1)
        ),
    }
)
"""The rows of the comparison. DiReFT is the paper's: formula `nodireft`, pyreft's NodireftIntervention.

PEFT starts virtual tokens at random unless told otherwise; both starts are here.
"""

LAYERS = ("15", "6;10;14;18;22", "all")
RANKS = (1, 4, 16)
POSITIONS = ("l1", "f3+l3", "prompt")
_DEFAULT = ("6;10;14;18;22", 4, "f3+l3")


def _grid() -> Iterator[tuple[str, int, str]]:
    """Every choice of layers and positions at one rank, and every rank with the middle choice of the others."""
    yield from ((layers, 4, positions) for layers in LAYERS for positions in POSITIONS)
    yield from ((_DEFAULT[0], rank, _DEFAULT[2]) for rank in RANKS if rank != _DEFAULT[1])


def grid_name(layers: str, low_rank_dimension: int, positions: str) -> str:
    """The name of a LoReFT variant in `METHODS`."""
    return f"loreft layers={layers} rank={low_rank_dimension} positions={positions}"


GRID: Mapping[str, Method] = MappingProxyType(
    {
        grid_name(*cell): Method(grid_name(*cell), reft=_reft("loreft", *cell), rates_of="loreft-f3l3")
        for cell in _grid()
    }
)
"""LoReFT with other layers, ranks and positions."""

METHODS: Mapping[str, Method] = MappingProxyType({**COMPARED, **GRID})
