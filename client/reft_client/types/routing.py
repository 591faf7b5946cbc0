"""Routes: which interventions answer the requests of a task."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from .base import FiniteFloat, Int, RequestModel, ResponseModel, Text
from .interventions import InterventionArgument, InterventionRef, intervention_refs

__all__ = [
    "AppliedRoute",
    "RouteDefinition",
    "RouteDeleted",
    "RouteInfo",
    "RouteList",
    "RouteRevisionList",
    "RouteRollback",
    "RouteShadow",
    "RouteTarget",
    "TaskName",
]

MAX_TARGETS = 16
MAX_WEIGHT = 1_000_000

TaskName = Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""What a route is called; `default` also answers the tasks that have no route."""


class _Strict(RequestModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RouteTarget(_Strict):
    """What answers a share of a task's requests: `weight` of the sum of all weights; 0 = none for now.

    Args:
        intervention: as in a request: one or several, applied in order; None = the base model.
    """

    intervention: InterventionArgument = None
    weight: Annotated[Int, Field(ge=0, le=MAX_WEIGHT)] = 1

    def intervention_refs(self) -> tuple[InterventionRef, ...]:
        """`intervention` in one shape, in order."""
        return intervention_refs(self.intervention)


class RouteShadow(_Strict):
    """What also runs, for a share of a task's requests, and answers nobody: it is compared, counted and logged.

    Args:
        intervention: as in a request; None = the base model.
        fraction: of the requests, above 0 and up to 1.
    """

    intervention: InterventionArgument = None
    fraction: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0

    def intervention_refs(self) -> tuple[InterventionRef, ...]:
        """`intervention` in one shape, in order."""
        return intervention_refs(self.intervention)


class RouteDefinition(_Strict):
    """What a task's requests get."""

    targets: Annotated[tuple[RouteTarget, ...], Field(min_length=1, max_length=MAX_TARGETS)]
    shadow: RouteShadow | None = None
    description: Annotated[Text, Field(max_length=256)] = ""

    @model_validator(mode="after")
    def _somebody_answers(self) -> RouteDefinition:
        if not any(target.weight for target in self.targets):
            raise ValueError("all weights are 0: somebody has to answer")
        return self


class RouteRollback(_Strict):
    """Where to go back to; None = what was in force before the present revision."""

    revision: Annotated[Int, Field(ge=1, lt=1 << 31)] | None = None


class RouteInfo(ResponseModel):
    """One revision of a route.

    Args:
        tenant: whose route it is; `shared` is the operator, whose routes serve tenants that have none for the task.
        previous: the revision that was in force when this one was made; None = there was no route.
        created: of this revision, Unix time in seconds.
        is_active: it is the one in force.
    """

    object: Literal["route"] = "route"
    task: str
    tenant: str = "shared"
    revision: int
    previous: int | None = None
    created: int
    is_active: bool = True
    targets: tuple[RouteTarget, ...] = ()
    shadow: RouteShadow | None = None
    description: str = ""


class RouteList(ResponseModel):
    """The caller's routes, and the shared ones for other tasks, by name."""

    object: Literal["list"] = "list"
    data: tuple[RouteInfo, ...] = ()


class RouteRevisionList(ResponseModel):
    """The revisions of one route that are kept, newest first."""

    object: Literal["list"] = "list"
    task: str
    data: tuple[RouteInfo, ...] = ()


class RouteDeleted(ResponseModel):
    """A route that is gone, with its revisions."""

    object: Literal["route.deleted"] = "route.deleted"
    task: str
    deleted: bool = True


class AppliedRoute(ResponseModel):
    """The route that chose what answered; `task` is `default` where the request's own task has none."""

    task: str
    revision: int
    tenant: str = "shared"
