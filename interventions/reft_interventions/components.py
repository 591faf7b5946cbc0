"""The places inside a decoder layer that an intervention can edit, in pyvene's words."""

from __future__ import annotations

from .errors import UnsupportedComponentError

COMPONENTS: tuple[str, ...] = (
    "block_input",
    "block_output",
    "mlp_input",
    "mlp_output",
    "attention_input",
    "attention_output",
)


def check_component(component: str) -> None:
    """Refuse a component that can't be edited.

    Raises:
        UnsupportedComponentError: it is none of `COMPONENTS`.
    """
    if component not in COMPONENTS:
        raise UnsupportedComponentError(
            f"component {component[:80]!r} is not served; use one of {', '.join(COMPONENTS)}", param="component"
        )
