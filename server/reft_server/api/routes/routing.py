"""`/v1/routes`: which interventions answer the requests of a task."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Body

from reft_client.types import (
    RouteDefinition,
    RouteDeleted,
    RouteInfo,
    RouteList,
    RouteRevisionList,
    RouteRollback,
    TaskName,
)
from reft_interventions.errors import InterventionNotFoundError
from reft_server.errors import TaskNotFoundError
from reft_server.routing.model import Route
from reft_server.tenants import Caller
from reft_server.tenants.model import wire_name

from ..authentication import Reader, Upload
from ..context import ApiContext, Context
from ..openapi import ERROR, ROUTE_EXAMPLES

router = APIRouter(
    prefix="/v1/routes",
    tags=["routes"],
    responses={404: {**ERROR, "description": "No such route, revision or intervention."}},
)


@router.get("", summary="List routes")
async def list_routes(caller: Reader, context: Context) -> RouteList:
    """The caller's, and the shared ones for tasks that it has no route for."""
    return RouteList(data=tuple(_info(route) for route in context.routes.list(caller.tenant.name)))


@router.get("/{task}", summary="Show a route")
async def get_route(caller: Reader, context: Context, task: TaskName) -> RouteInfo:
    """The revision in force: of the caller's own route, or else of the shared one."""
    return _info(context.routes.get(caller.tenant.name, task))


@router.put("/{task}", summary="Set a route")
async def put_route(
    caller: Upload,
    context: Context,
    task: TaskName,
    body: Annotated[RouteDefinition, Body(openapi_examples=ROUTE_EXAMPLES)],
) -> RouteInfo:
    """The next revision, in force with the answer. Requests in flight finish with what they have.

    The route of the task `default` also answers the tasks that have none.
    """
    _check_targets(context, caller, body)
    return _info(await asyncio.to_thread(context.routes.put, caller.tenant.name, task, body))


@router.get("/{task}/revisions", summary="List a route's revisions")
async def list_revisions(caller: Reader, context: Context, task: TaskName) -> RouteRevisionList:
    """Of the caller's own route, newest first; the last 50 are kept."""
    revisions = await asyncio.to_thread(context.routes.revisions, caller.tenant.name, task)
    active = context.routes.get(caller.tenant.name, task).revision
    data = tuple(_info(route, is_active=route.revision == active) for route in revisions)
    return RouteRevisionList(task=task, data=data)


@router.post("/{task}/rollback", summary="Go back to an earlier revision")
async def roll_back_route(
    caller: Upload, context: Context, task: TaskName, body: Annotated[RouteRollback | None, Body()] = None
) -> RouteInfo:
    """Without a body to what was in force before the present revision was made."""
    tenant, revision = caller.tenant.name, None if body is None else body.revision
    revisions = {route.revision: route for route in await asyncio.to_thread(context.routes.revisions, tenant, task)}
    if revision is None:
        revision = context.routes.get(tenant, task).previous
    if revision not in revisions:
        told = "earlier revision" if revision is None else f"revision {revision}"
        raise TaskNotFoundError(f"The route {task!r} has no {told} to go back to", param="revision")
    _check_targets(context, caller, revisions[revision].definition)
    return _info(await asyncio.to_thread(context.routes.roll_back, tenant, task, revision))


@router.delete("/{task}", summary="Delete a route")
async def delete_route(caller: Upload, context: Context, task: TaskName) -> RouteDeleted:
    """The caller's own, with its revisions. Its task then gets the shared route, or the default one, or none."""
    await asyncio.to_thread(context.routes.delete, caller.tenant.name, task)
    return RouteDeleted(task=task)


def _check_targets(context: ApiContext, caller: Caller, definition: RouteDefinition) -> None:
    """Every set that a route names must be there for the caller: a slip must not become the answer of a task.

    Raises:
        InterventionNotFoundError, InvalidInterventionNameError: one is not.
    """
    shadow = () if definition.shadow is None else definition.shadow.intervention_refs()
    for index, target in enumerate(definition.targets):
        for ref in target.intervention_refs():
            _check_ref(context, caller, ref.name, ref.version, f"targets[{index}].intervention")
    for ref in shadow:
        _check_ref(context, caller, ref.name, ref.version, "shadow.intervention")


def _check_ref(context: ApiContext, caller: Caller, name: str, version: int | str | None, param: str) -> None:
    try:
        context.registry.get(name, version, tenant=caller.tenant.name)
    except InterventionNotFoundError as error:
        error.param = param
        raise


def _info(route: Route, *, is_active: bool = True) -> RouteInfo:
    definition = route.definition
    return RouteInfo(
        task=route.task,
        tenant=wire_name(route.tenant),
        revision=route.revision,
        previous=route.previous,
        created=int(route.created_at),
        is_active=is_active,
        targets=definition.targets,
        shadow=definition.shadow,
        description=definition.description,
    )
