"""A request that names a task gets the interventions of the task's route."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, TypeVar

from fastapi import Depends, Header

from reft_client.types import AppliedIntervention, AppliedRoute, InterventionRef, SamplingFields
from reft_interventions.errors import InterventionNotFoundError
from reft_interventions.folded import FoldedSet
from reft_server.errors import InvalidRequestError
from reft_server.routing.model import Route
from reft_server.tenants import SHARED, Caller
from reft_server.tenants.model import SHARED_NAME, label_of, tenant_of_wire_name, wire_name

from .applied import apply_interventions
from .context import ApiContext

_NUM_ATTEMPTS = 4

Body = TypeVar("Body", bound=SamplingFields)


@dataclass(frozen=True)
class Shadow:
    """The interventions to run besides a request, and its body, whose other fields hold for them too."""

    refs: tuple[InterventionRef, ...]
    body: SamplingFields


@dataclass(frozen=True)
class Applied:
    """What edits the prompts of one request.

    Args:
        interventions: as resolved; the response names them.
        folded: the same, as the engine takes them.
        route: what chose them; None = the request named them itself.
        shadow: what to run besides, and not to answer with; None = nothing.
    """

    interventions: tuple[AppliedIntervention, ...]
    folded: tuple[FoldedSet, ...]
    route: AppliedRoute | None = None
    shadow: Shadow | None = None


def route_label(route: AppliedRoute) -> str:
    """What metrics call a route: `task`, and `owner/task` where it is not the operator's."""
    return label_of(tenant_of_wire_name(route.tenant), route.task)


@dataclass(frozen=True)
class RoutingHeaders:
    """What proxies and clients that can't change a body say in headers."""

    task: str | None
    routing_key: str | None

    def apply(self, body: Body) -> Body:
        """The body, with the fields that mean the same.

        Raises:
            InvalidRequestError: body and header contradict each other.
        """
        found = {name: value for name, value in asdict(self).items() if value is not None}
        for name, value in found.items():
            if getattr(body, name) not in (None, value):
                raise InvalidRequestError(
                    f"{name} and the header X-Reft-{name.title().replace('_', '-')} contradict each other: send one",
                    param=name,
                )
        return body.model_copy(update=found) if found else body


async def routing_headers(
    x_reft_task: Annotated[str | None, Header(min_length=1, max_length=512, description="As `task`.")] = None,
    x_reft_routing_key: Annotated[
        str | None, Header(min_length=1, max_length=512, description="As `routing_key`.")
    ] = None,
) -> RoutingHeaders:
    """Read them from a request."""
    return RoutingHeaders(x_reft_task, x_reft_routing_key)


ByHeaders = Annotated[RoutingHeaders, Depends(routing_headers)]


async def apply(
    context: ApiContext, caller: Caller, body: SamplingFields, prompts: Sequence[tuple[int, ...]]
) -> Applied:
    """Find the interventions of a request, by its route if it names a task, and get them ready for its prompts.

    A route may change, and its old sets be deleted, between the look at the route and the look at the store: then the
    request takes the new route, so that no change of a route loses a request.

    Raises:
        ReftError: a task, a name or a source that can't be served; see `apply_interventions`.
    """
    named = context.model_names.merge(body.model, body.intervention_refs())
    if body.task is None:
        return Applied(*await apply_interventions(context, caller, body, prompts, named))
    if named:
        raise InvalidRequestError(
            f"The route of a task chooses the interventions: leave {', '.join(map(str, named))} out, or the task",
            param="task",
        )
    route = context.routes.find(caller.tenant.name, body.task)
    for _ in range(_NUM_ATTEMPTS):
        try:
            return await _apply_route(context, caller, body, prompts, route)
        except InterventionNotFoundError as error:
            error.param = "task"
            await asyncio.to_thread(context.directory.refresh)  # another process may have changed it
            stale, route = route, context.routes.find(caller.tenant.name, body.task)
            if route == stale:
                raise
    return await _apply_route(context, caller, body, prompts, route)


async def _apply_route(
    context: ApiContext, caller: Caller, body: SamplingFields, prompts: Sequence[tuple[int, ...]], route: Route
) -> Applied:
    definition, tenant = route.definition, caller.tenant.name
    target = route.choose(body.routing_key or body.user)
    refs = _as_of(route, tenant, target.intervention_refs())
    interventions, folded = await apply_interventions(context, caller, body, prompts, refs)
    shadow = definition.shadow
    is_shadowed = shadow is not None and random.random() < shadow.fraction
    return Applied(
        interventions,
        folded,
        AppliedRoute(task=route.task, revision=route.revision, tenant=wire_name(route.tenant)),
        Shadow(_as_of(route, tenant, shadow.intervention_refs()), body) if shadow and is_shadowed else None,
    )


def _as_of(route: Route, tenant: str, refs: tuple[InterventionRef, ...]) -> tuple[InterventionRef, ...]:
    """References as `tenant` has to write them: a bare name in a shared route is the shared set, not the tenant's."""
    if route.tenant != SHARED or tenant == SHARED:
        return refs
    return tuple(
        ref if "/" in ref.name else ref.model_copy(update={"name": f"{SHARED_NAME}/{ref.name}"}) for ref in refs
    )
