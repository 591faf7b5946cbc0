"""How a request names interventions, and what the server says about them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from .base import FiniteFloat, Int, ResponseModel, Text, check_text
from .messages import ChatMessage

__all__ = [
    "AppliedIntervention",
    "DeleteResponse",
    "Grant",
    "GrantDeleted",
    "GrantList",
    "InterventionArgument",
    "InterventionInfo",
    "InterventionList",
    "InterventionRef",
    "InterventionUpload",
    "Provenance",
    "SelfTestReport",
    "SelfTestSite",
    "VersionList",
    "intervention_refs",
]

MAX_INTERVENTIONS_PER_REQUEST = 16


def _check_source(value: Any) -> Any:
    if isinstance(value, str):
        return check_text(value)
    items = value if isinstance(value, list | tuple) else ()
    if items and all(type(item) is int and item >= 0 for item in items):
        return tuple(items)
    if items and all(isinstance(item, dict | ChatMessage) for item in items):
        return tuple(ChatMessage.model_validate(item) for item in items)
    raise ValueError("must be a text, a list of token ids, or a list of messages")


SourceType = str | tuple[int, ...] | tuple[ChatMessage, ...]
SourceArgument = Annotated[SourceType, BeforeValidator(_check_source)]


class InterventionRef(BaseModel):
    """One intervention of a request. `name` may carry the version: `name`, `name@3`, `name@sha256:<hex>`.

    After validation `name` is bare, and a version that is a number is an int.

    Args:
        version: None = the newest.
        scale: multiplies the edit's delta; 0 switches it off, -1 negates it.
        subspaces: only these rank dimensions act, by number or by the names that the set gives; None = all.
        source: for an interchange, the prompt whose hidden rows take the place of the prompt's own. For chat a text is
            one user message, and a conversation may be given; for completions token ids may.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[Text, Field(min_length=1, max_length=512)]
    version: Annotated[int, Field(strict=True, ge=1)] | Annotated[Text, Field(min_length=1, max_length=512)] | None = (
        None
    )
    scale: FiniteFloat = 1.0
    subspaces: Annotated[tuple[Int | Annotated[Text, Field(max_length=64)], ...], Field(max_length=4096)] | None = None
    source: SourceArgument | None = None

    @model_validator(mode="before")
    @classmethod
    def _split_version(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        fields = {key: value for key, value in data.items() if value is not None}
        name = fields.get("name")
        if isinstance(name, str) and "@" in name:
            bare, _, version = name.partition("@")
            if not bare or not version:
                raise ValueError(f"{name!r} is not an intervention; write name or name@version")
            if str(fields.get("version", version)) != version:
                raise ValueError(f"{name!r} and version {fields['version']!r} contradict each other")
            fields |= {"name": bare, "version": version}
        number = fields.get("version")
        if isinstance(number, str) and number.isascii() and number.isdigit():
            fields["version"] = int(number)
        return fields

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def _check_intervention(value: Any) -> Any:
    if value is None or isinstance(value, InterventionRef):
        return value
    if isinstance(value, str):
        _check_ref({"name": value})
        return value
    if isinstance(value, dict):
        return _check_ref(value)
    if isinstance(value, list | tuple):
        if len(value) > MAX_INTERVENTIONS_PER_REQUEST:
            raise ValueError(f"at most {MAX_INTERVENTIONS_PER_REQUEST} interventions per request, got {len(value)}")
        if any(not isinstance(item, str | dict | InterventionRef) for item in value):
            raise ValueError("every item must be a name or an object with a name")
        return [_check_intervention(item) for item in value]
    raise ValueError("must be a name, an object with a name, or a list of these")


def _check_ref(value: dict[str, Any]) -> InterventionRef:
    try:
        return InterventionRef.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"{first['loc'][0]}: {message}" if first["loc"] else message) from error


InterventionArgument = Annotated[
    str | InterventionRef | list[str | InterventionRef] | None,
    BeforeValidator(_check_intervention),
]
"""The `intervention` field: one or several, applied in order; None or an empty list = the base model."""


def intervention_refs(value: str | InterventionRef | list[str | InterventionRef] | None) -> tuple[InterventionRef, ...]:
    """The interventions that an `intervention` field names, in order, in one shape.

    Raises:
        pydantic.ValidationError: a name that can't be read.
    """
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    return tuple(InterventionRef(name=item) if isinstance(item, str) else item for item in items)


class AppliedIntervention(ResponseModel):
    """An intervention that took part in an answer, as the server resolved it.

    Args:
        name: as the caller calls it.
        tenant: whose it is; None = it is a shared one.
        subspaces: the rank dimensions that acted; None = all.
        source_tokens: how long its source prompt was, in tokens; None = it took none.
    """

    name: str
    tenant: str | None = None
    version: int
    content_hash: str
    scale: float = 1.0
    subspaces: tuple[int, ...] | None = None
    source_tokens: int | None = None


class Provenance(ResponseModel):
    """Where a version comes from.

    Args:
        source: how it came: `upload`, `fine_tuning`, `preload`.
        key_id: of the API key that brought it; only its owner is told.
        details: what was said at the upload, or the job that trained it.
        training: what the file says about its training.
    """

    source: str | None = None
    key_id: str | None = None
    details: dict[str, Any] = Field(default_factory=dict)
    training: dict[str, Any] = Field(default_factory=dict)


class InterventionInfo(ResponseModel):
    """One version of a stored intervention set.

    Args:
        name: what a request of the same caller calls it: `owner/name` for a set of another tenant.
        tenant: whose it is; `shared` is the operator, whose sets everybody may use.
        content_hash: `sha256:<hex>` of the canonical manifest and tensors, computed by the server.
        created: Unix time in seconds.
        low_rank_dimension: the largest of its sites; None for formulas without one.
        subspaces: names of groups of rank dimensions, which a request may choose.
        description, labels: what its owner says about the set, all versions of it.
        aliases: those that name this version now.
        deleted: Unix time in seconds; None = it lives. Until `restorable_until` it can be restored.
        provenance: where this version comes from; only where one set is asked for.
        state: `loaded` = its folded tensors are in memory; `stored` = on disk, read at the next use.
    """

    object: Literal["intervention"] = "intervention"
    name: str
    tenant: str = "shared"
    version: int
    content_hash: str
    size_bytes: int
    created: int
    base_model: str
    formulas: tuple[str, ...] = ()
    components: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    positions: tuple[str, ...] = ()
    low_rank_dimension: int | None = None
    subspaces: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    num_parameters: int | None = None
    description: str = ""
    license: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    deleted: int | None = None
    restorable_until: int | None = None
    provenance: Provenance | None = None
    state: Literal["stored", "loaded"] = "stored"


class SelfTestSite(ResponseModel):
    """What a trial forward showed at one site; norms are means over the edited rows."""

    layer: int
    component: str
    num_edited_rows: int
    delta_norm: float
    residual_norm: float


class SelfTestReport(ResponseModel):
    """The trial forward of an upload: every edited row changed, every other row the same bit for bit."""

    sites: tuple[SelfTestSite, ...] = ()
    duration_s: float = 0.0


class InterventionUpload(InterventionInfo):
    """The answer to an upload: the new version, and its self-test."""

    self_test: SelfTestReport | None = None


class InterventionList(ResponseModel):
    """The newest version of every intervention. For the next page, send `last_id` as `after`."""

    object: Literal["list"] = "list"
    data: tuple[InterventionInfo, ...] = ()
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class VersionList(ResponseModel):
    """Every version of one intervention, oldest first. For the next page, send `last_id` as `after`."""

    object: Literal["list"] = "list"
    name: str
    data: tuple[InterventionInfo, ...] = ()
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class Grant(ResponseModel):
    """A tenant that may use a set of another, all versions of it, and not change it."""

    object: Literal["grant"] = "grant"
    name: str
    tenant: str


class GrantList(ResponseModel):
    """Whom a set was granted to, by name."""

    object: Literal["list"] = "list"
    data: tuple[Grant, ...] = ()


class GrantDeleted(Grant):
    """A grant that was taken back."""

    deleted: bool = True


class DeleteResponse(ResponseModel):
    """What was deleted; `version` None = every version."""

    object: Literal["intervention.deleted"] = "intervention.deleted"
    name: str
    version: Int | None = None
    deleted: bool = True
