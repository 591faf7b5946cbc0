"""The manifest of an intervention file: everything that running it needs, besides its tensors."""

from __future__ import annotations

import itertools
import json
import math
from typing import Annotated, Any, NoReturn, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    StrictInt,
    StrictStr,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from .activations import Activation
from .components import ROW_KINDS, check_component, is_head, whole_component
from .errors import InterventionManifestError
from .formulas import FORMULAS, Formula
from .positions import InterventionPositions, Part, ShortPromptRule
from .subspaces import check_subspaces

FORMAT_VERSION = 1
_MAX_INTERVENTIONS = 4096
_MAX_DEPTH = 32
_MAX_SUBSPACES = 256
_PositionIndex = Annotated[StrictInt, Field(ge=-(10**7), le=10**7)]
_Word = Annotated[StrictStr, Field(max_length=64)]
_Dimensions = Annotated[tuple[StrictInt, ...], Field(min_length=1, max_length=4096)]
_Text = Annotated[StrictStr, Field(max_length=4096)]


def _positions_kind(value: Any) -> str:
    return "string" if isinstance(value, str) else "indices"


# Told apart by hand, so that an error is about the form that was meant.
_Positions = Annotated[
    Annotated[_Word, Tag("string")] | Annotated[tuple[_PositionIndex, ...], Field(max_length=4096), Tag("indices")],
    Discriminator(_positions_kind),
]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BaseModelRef(_Strict):
    """The base model that a set was trained for.

    `fingerprint` is `model_tree.fingerprint`'s; empty when the trainer or importer did not know it.
    """

    id: _Text
    fingerprint: Annotated[StrictStr, Field(max_length=128)] = ""
    hidden_size: Annotated[StrictInt, Field(ge=1, le=1 << 20)]
    num_layers: Annotated[StrictInt, Field(ge=1, le=1 << 14)]


class InterventionSpec(_Strict):
    """One intervention: a formula at a site, the tokens it edits, and the group of tensors it uses.

    `parameters` = i names the tensors `sites.<i>.*`; two specs with the same i are tied. `low_rank_dimension` is 0 for
    the formulas without one (`addition`, `scale_shift`). `head` belongs to the `head_*` components. `width` is the size
    of an edited row where that isn't the base model's hidden_size: of an MLP's inner row, of all query or key heads, or
    of one head.
    """

    layer: Annotated[StrictInt, Field(ge=0)]
    component: StrictStr
    formula: _Word
    low_rank_dimension: Annotated[StrictInt, Field(ge=0)]
    act: Activation = "linear"
    positions: _Positions
    part: Part = "both"
    suffix_offset: Annotated[StrictInt, Field(ge=0, le=10**6)] = 0
    short_prompt: ShortPromptRule = "paper"
    parameters: Annotated[StrictInt, Field(ge=0)]
    head: Annotated[StrictInt, Field(ge=0, le=1 << 14)] | None = None
    width: Annotated[StrictInt, Field(ge=1, le=1 << 20)] | None = None

    def row_size(self, hidden_size: int) -> int:
        """How many numbers an edited row has."""
        return self.width or hidden_size

    @property
    def whole_component(self) -> str:
        """The component that `columns` are of."""
        return whole_component(self.component)

    @property
    def columns(self) -> slice | None:
        """The columns of the whole component that are edited; None = all."""
        if self.head is None or self.width is None:
            return None
        return slice(self.head * self.width, (self.head + 1) * self.width)

    @model_serializer(mode="wrap")
    def _leave_out_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `head` and `width` where there are none: files from before they existed keep their hash."""
        fields: dict[str, Any] = serialize(self)
        return {name: value for name, value in fields.items() if value is not None}

    @property
    def intervention_positions(self) -> InterventionPositions:
        """The rule that turns a prompt length into positions."""
        return InterventionPositions(self.positions, self.part, self.suffix_offset, self.short_prompt)

    @property
    def formula_object(self) -> Formula:
        """The formula that the id names."""
        return FORMULAS[self.formula]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_component(self.component)
        formula = FORMULAS.get(self.formula)
        if formula is None:
            _refuse(f"formula {self.formula!r} is unknown; use one of {', '.join(FORMULAS)}", "formula")
        if formula.has_low_rank and self.low_rank_dimension == 0:
            _refuse(f"formula {self.formula!r} needs a low_rank_dimension of 1 or more", "low_rank_dimension")
        if not formula.has_low_rank and self.low_rank_dimension != 0:
            _refuse(f"formula {self.formula!r} has no low rank: low_rank_dimension must be 0", "low_rank_dimension")
        if not formula.has_act and self.act != "linear":
            _refuse(f"formula {self.formula!r} has no activation: act must be 'linear'", "act")
        self._check_row()
        _ = self.intervention_positions  # raises when the positions can't be read
        return self

    def _check_row(self) -> None:
        if is_head(self.component):
            if self.head is None or self.width is None:
                missing = "head" if self.head is None else "width"
                _refuse(f"component {self.component!r} needs `head` and `width`, the size of one head", missing)
        elif self.head is not None:
            _refuse(f"component {self.component!r} has no heads; use head_{self.component} or leave head out", "head")
        elif self.width is not None and ROW_KINDS[self.component] == "hidden":
            _refuse(f"a row of {self.component!r} has hidden_size numbers; leave width out", "width")


_Heads = dict[int | None, list[InterventionSpec]]
"""The interventions at one site by head; None: the whole row."""


class Manifest(_Strict):
    """The manifest: the base model, the interventions in their order, and where the set comes from.

    `subspaces` names groups of rank dimensions, which a request may choose by name.
    """

    format_version: StrictInt = FORMAT_VERSION
    name: Annotated[StrictStr, Field(max_length=256)] = ""
    description: _Text = ""
    license: Annotated[StrictStr, Field(max_length=256)] = ""
    base_model: BaseModelRef
    interventions: Annotated[tuple[InterventionSpec, ...], Field(min_length=1, max_length=_MAX_INTERVENTIONS)]
    subspaces: Annotated[dict[_Word, _Dimensions], Field(max_length=_MAX_SUBSPACES)] = Field(default_factory=dict)
    prompt_template: Annotated[StrictStr, Field(max_length=1 << 16)] | None = None
    training: dict[str, JsonValue] = Field(default_factory=dict)

    @property
    def num_parameter_groups(self) -> int:
        """How many groups of tensors `sites.<i>.*` the interventions use."""
        return len({spec.parameters for spec in self.interventions})

    @property
    def parameter_groups(self) -> tuple[InterventionSpec, ...]:
        """For each group of tensors the first intervention that uses it, which fixes its formula and shapes."""
        first: dict[int, InterventionSpec] = {}
        for spec in self.interventions:
            first.setdefault(spec.parameters, spec)
        return tuple(first[index] for index in sorted(first))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.format_version != FORMAT_VERSION:
            _refuse(
                f"format_version {self.format_version} is unknown, this release reads {FORMAT_VERSION}; "
                "upgrade reft-serve or export the file again",
                "format_version",
            )
        at_site: dict[tuple[int, str], _Heads] = {}
        for spec in self.interventions:
            if spec.layer >= self.base_model.num_layers:
                _refuse(f"layer {spec.layer} is outside the base model's {self.base_model.num_layers} layers", "layer")
            if spec.low_rank_dimension > spec.row_size(self.base_model.hidden_size):
                size = "hidden_size" if spec.width is None else "width"
                _refuse(f"low_rank_dimension {spec.low_rank_dimension} exceeds {size}", "low_rank_dimension")
            heads = at_site.setdefault((spec.layer, spec.whole_component), {})
            _check_overlap(spec, heads)
            heads.setdefault(spec.head, []).append(spec)
        if {spec.parameters for spec in self.interventions} != set(range(self.num_parameter_groups)):
            _refuse("the indices in `parameters` must be 0, 1, 2 … without a gap", "parameters")
        _check_json(self.training)
        check_subspaces(self.subspaces, self.interventions)
        groups = self.parameter_groups
        for spec in self.interventions:
            first = groups[spec.parameters]
            if _shape_of(spec) != _shape_of(first):
                _refuse(
                    "interventions with tied parameters must share formula, low_rank_dimension and width", "parameters"
                )
        return self

    @classmethod
    def parse(cls, text: str | bytes) -> Manifest:
        """Read a manifest from its JSON.

        Raises:
            InterventionManifestError: not JSON, NaN or a duplicate key inside, or against the format.
            UnsupportedComponentError: an intervention at a component that is not served.
        """
        try:
            return cls.model_validate(parse_json(text))
        except ValidationError as error:
            where = _location(error)
            problem = error.errors(include_url=False, include_context=False, include_input=False)[0]["msg"]
            raise InterventionManifestError(f"the manifest's {where}: {problem}", param=where) from error

    def canonical_json(self) -> str:
        """The manifest as JSON with sorted keys and no whitespace, ASCII only: the same text for equal manifests."""
        fields = self.model_dump(mode="json")
        if not self.subspaces:  # so that files from before there were any keep their hash
            del fields["subspaces"]
        return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _location(error: ValidationError) -> str:
    """Where the first error is, in the file's own words: pydantic mixes the branches of a union into its path."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    known = {*Manifest.model_fields, *InterventionSpec.model_fields, *BaseModelRef.model_fields}
    is_extra = first["type"] == "extra_forbidden"
    parts = [str(part) for part in first["loc"] if is_extra or isinstance(part, int) or part in known]
    return ".".join(parts)[:200] or "manifest"


def _shape_of(spec: InterventionSpec) -> tuple[str, int, int | None]:
    return spec.formula, spec.low_rank_dimension, spec.width


def _check_overlap(spec: InterventionSpec, heads: _Heads) -> None:
    """Two heads have no number in common: only the same head's are compared, and the whole row's with all."""
    whole = [] if spec.head is None else heads.get(None, [])
    for other in itertools.chain(whole, *(heads.values() if spec.head is None else [heads.get(spec.head, [])])):
        if spec.intervention_positions.may_overlap(other.intervention_positions):
            _refuse(
                f"two interventions edit the same tokens at layer {spec.layer} {spec.component}; inside one set "
                "give them different parts, or split them into two sets",
                "interventions",
            )


def parse_json(text: str | bytes) -> Any:
    """Strict JSON: no duplicate keys, no NaN, infinity or lone surrogates, bounded nesting.

    Raises:
        InterventionManifestError: the text breaks a rule.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise InterventionManifestError("this is not valid JSON, or it is nested too deeply") from error
    _check_json(value)
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        _refuse("a JSON object holds the same key twice; keep one")
    return mapping


def _check_json(value: Any, depth: int = 0) -> None:
    """What Python's parser lets pass and another reader, or our own writer, would not."""
    if depth > _MAX_DEPTH:
        _refuse(f"the JSON is nested more than {_MAX_DEPTH} levels deep; flatten it")
    if isinstance(value, dict):
        for key, entry in value.items():
            _check_json(key, depth + 1)
            _check_json(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            _check_json(entry, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse("NaN, infinity and numbers too large for float64 are not allowed in the JSON; remove them")
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        _refuse("a string in the JSON holds half of a surrogate pair; write valid Unicode")


def _refuse(message: str, param: str | None = None) -> NoReturn:
    raise InterventionManifestError(message, param=param)
