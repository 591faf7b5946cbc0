"""The places inside a decoder layer that an intervention can edit, in pyvene's words, and how long their rows are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from .errors import UnsupportedComponentError

RowKind = Literal["hidden", "intermediate", "query", "key_value"]

ROW_KINDS: Mapping[str, RowKind] = MappingProxyType(
    {
        "block_input": "hidden",
        "block_output": "hidden",
        "mlp_input": "hidden",
        "mlp_output": "hidden",
        "mlp_activation": "intermediate",
        "attention_input": "hidden",
        "attention_output": "hidden",
        "attention_value_output": "query",
        "query_output": "query",
        "key_output": "key_value",
        "value_output": "key_value",
    }
)
"""What a row of each whole component is as long as."""

_HEAD = "head_"
_SPLIT_INTO_HEADS = tuple(component for component, kind in ROW_KINDS.items() if kind in ("query", "key_value"))
COMPONENTS: tuple[str, ...] = (*ROW_KINDS, *(_HEAD + component for component in _SPLIT_INTO_HEADS))


@dataclass(frozen=True)
class RowSizes:
    """A base model's sizes besides `hidden_size`; 0 where its configuration does not tell."""

    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int

    def width(self, component: str, hidden_size: int) -> int:
        """How many numbers one row of `component` has; of a `head_*` one, of one head.

        Raises:
            UnsupportedComponentError: the model's configuration does not tell.
        """
        width = self.head_dim
        if not is_head(component):
            width = {
                "hidden": hidden_size,
                "intermediate": self.intermediate_size,
                "query": self.num_attention_heads * self.head_dim,
                "key_value": self.num_key_value_heads * self.head_dim,
            }[ROW_KINDS[component]]
        if not width:
            raise UnsupportedComponentError(f"the base model has no {component} that we know", param="component")
        return width

    def num_heads(self, component: str) -> int:
        """Into how many heads a row of a `head_*` component's whole splits: keys and values have their own count."""
        is_query = ROW_KINDS[whole_component(component)] == "query"
        return self.num_attention_heads if is_query else self.num_key_value_heads


NO_ROW_SIZES = RowSizes(0, 0, 0, 0)


def check_component(component: str) -> None:
    """Refuse a component that can't be edited.

    Raises:
        UnsupportedComponentError: it is none of `COMPONENTS`.
    """
    if component not in COMPONENTS:
        raise UnsupportedComponentError(
            f"component {component[:80]!r} is not served; use one of {', '.join(COMPONENTS)}", param="component"
        )


def is_head(component: str) -> bool:
    """Whether an intervention there edits one head."""
    return component.startswith(_HEAD)


def whole_component(component: str) -> str:
    """The component whose columns a `head_*` one is; any other is its own."""
    return component.removeprefix(_HEAD)
