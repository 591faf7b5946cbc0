"""The formulas, one per module, by the id that a manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .addition import Addition
from .base import Formula, Parameters
from .consreft import Consreft
from .dii import Dii, interchange
from .direft import Direft
from .lobireft import Lobireft
from .loreft import Loreft
from .mlp import Mlp, MlpResidual
from .nodireft import Nodireft
from .noreft import Noreft
from .scale_shift import ScaleShift

__all__ = ["FORMULAS", "Formula", "Parameters", "interchange"]

_ALL: tuple[Formula, ...] = (
    Loreft(), Noreft(), Consreft(), Lobireft(), Direft(), Nodireft(), Dii(), Addition(), ScaleShift(),
    Mlp(), MlpResidual(),
)  # fmt: skip
FORMULAS: Mapping[str, Formula] = MappingProxyType({formula.id: formula for formula in _ALL})
