"""Matrix products with frozen weights: packed once for the machine where that is faster."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""`[num_tokens, in_features]` to `[num_tokens, out_features]`."""

_PACKED_ROWS = 32  # oneDNN picks the weight's layout for this many rows; the same layout serves 1 to 512 well
_FEWEST_PACKED_ROWS = 5  # q/k/v of SmolLM2: 231 µs at 1 row, 70 µs at 5 (docs/log.md)


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """A product with a frozen weight `[out_features, in_features]`; the weight may be freed afterwards.

    On a CPU in float32 the weight is repacked in oneDNN's blocked layout, as torch's own compiler does when it
    freezes a model: 1.4 to 2.9 times the speed of `linear` at 1 to 32 rows (docs/log.md). Elsewhere it is `linear`.
    """
    if not _is_packed(weight):
        kept = weight.detach().clone()
        return lambda hidden: F.linear(hidden, kept, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACKED_ROWS)
    product = torch.ops.mkldnn._linear_pointwise

    def linear(hidden: Tensor) -> Tensor:
        out: Tensor = product(hidden, packed, bias, "none", [], "")
        return out

    return linear


def fewest_rows(weight: Tensor) -> int:
    """Rows below which a product with this weight is padded: oneDNN's kernel is slower at 1 to 4 rows than at 5."""
    return _FEWEST_PACKED_ROWS if _is_packed(weight) else 1


def _is_packed(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and has_onednn()


def has_onednn() -> bool:
    """Whether this build of torch has oneDNN's packed products."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
