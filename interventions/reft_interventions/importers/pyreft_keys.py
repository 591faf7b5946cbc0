"""pyvene's keys: where an intervention sits, in the three spellings that checkpoints use."""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import InterventionImportError

# layer.0.repr.block_output.unit.pos.nunit.1#0, layer.8.comp..., layer_8_comp_block_output_unit_pos_nunit_1#0; a
# component given as a module path has no layer of its own in front: comp_model_layers[3]_output_unit_pos_nunit_1#0.
_KEY = re.compile(
    r"(?:layer[._](?P<layer>[0-9]+)[._])?(?:repr|comp)[._](?P<component>.+)[._]unit[._](?P<unit>.+)[._]nunit[._]"
    r"(?P<num_units>[0-9]+)#(?P<ordinal>[0-9]+)"
)
_PATH = re.compile(
    r"(?:[a-z_]+[._])*?(?:layers|h)(?:\[(?P<bracket>[0-9]+)\]|[._](?P<dot>[0-9]+))[._](?P<rest>[a-z_.0-9]+)"
)
_COMPONENT_BY_PATH = MappingProxyType(
    {
        r"input": "block_input",
        r"output": "block_output",
        r"mlp[._]input": "mlp_input",
        r"mlp[._]output": "mlp_output",
        r"mlp[._](act_fn|act)[._]output": "mlp_activation",
        r"(self_attn|attn|attention)[._]input": "attention_input",
        r"(self_attn|attn|attention)[._]output": "attention_output",
        r"(self_attn[._]o_proj|attn[._]c_proj|attention[._]dense)[._]input": "attention_value_output",
        r"self_attn[._]q_proj[._]output": "query_output",
        r"self_attn[._]k_proj[._]output": "key_output",
        r"self_attn[._]v_proj[._]output": "value_output",
    }
)


@dataclass(frozen=True)
class InterventionKey:
    """A parsed key. `ordinal` counts the interventions at one place: untied, 0 is the prefix and 1 the suffix."""

    text: str
    layer: int
    component: str
    ordinal: int


def parse_key(text: str) -> InterventionKey:
    """Read a key (a file's name without `intkey_` and `.bin`).

    Raises:
        InterventionImportError: another spelling, a unit other than one position, or a module path that is none of
            our components.
    """
    match = _KEY.fullmatch(text)
    if match is None:
        raise InterventionImportError(f"{text[:120]!r} is not a key that pyvene writes", param="source")
    is_of_head = match["component"].startswith("head_") and match["unit"] in ("h.pos", "h_pos")
    if not (match["unit"] == "pos" or is_of_head) or match["num_units"] != "1":
        raise InterventionImportError(
            f"{text[:120]!r} edits units {match['unit']!r} in groups of {match['num_units']}; only single positions "
            "(pos, 1) can be imported",
            param="source",
        )
    layer, component = match["layer"], match["component"]
    if layer is None or "." in component or "[" in component:
        path_layer, component = _component_of_path(component)
        layer = layer if layer is not None and layer == path_layer else path_layer
    return InterventionKey(text, int(layer), component, int(match["ordinal"]))


def _component_of_path(path: str) -> tuple[str, str]:
    """Layer and component that a module path such as `model.layers[3].mlp.output` means."""
    match = _PATH.fullmatch(path)
    if match:
        for pattern, component in _COMPONENT_BY_PATH.items():
            if re.fullmatch(pattern, match["rest"]):
                return match["bracket"] or match["dot"], component
    raise InterventionImportError(
        f"the module path {path[:120]!r} is none of the places that interventions can be served at; "
        "see the components in docs/file-format.md",
        param="component",
    )


def make_key(layer: int, component: str, ordinal: int) -> str:
    """The key as pyvene 0.1.8 writes it."""
    return f"layer_{layer}_comp_{component}_unit_pos_nunit_1#{ordinal}"
