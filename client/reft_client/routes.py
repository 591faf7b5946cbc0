"""Routes of tasks over both clients: `client.routes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from .calls import Call
from .request_body import request_body
from .transports import AsyncTransport, Transport
from .types import (
    RouteDefinition,
    RouteDeleted,
    RouteInfo,
    RouteList,
    RouteRevisionList,
    RouteRollback,
    RouteShadow,
    RouteTarget,
)

__all__ = ["AsyncRoutes", "RouteTargets", "Routes"]

RouteTargets = str | Sequence[str | RouteTarget | Mapping[str, object]]
"""`"name@3"`, or a list of names and of `{"intervention": ..., "weight": ...}`; no `intervention` = the base model."""


class Routes:
    """Which interventions answer the requests of a task: `client.routes`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def list(self) -> RouteList:
        """The routes in force: the caller's, and the shared ones for other tasks."""
        return self._transport.send(_list_routes())

    def get(self, task: str) -> RouteInfo:
        """The route in force of a task."""
        return self._transport.send(_get_route(task))

    def set(
        self,
        task: str,
        targets: RouteTargets,
        *,
        shadow: RouteShadow | Mapping[str, object] | None = None,
        description: str = "",
    ) -> RouteInfo:
        """Put a new revision in force; the task `default` also answers the tasks that have no route.

        Raises:
            InvalidArgumentError: no targets, no weight, or a name that can't be one; nothing was sent.
            APIStatusError: the server refused; the route is as it was.
        """
        return self._transport.send(_set_route(task, targets, shadow, description))

    def revisions(self, task: str) -> RouteRevisionList:
        """The revisions that are kept, newest first."""
        return self._transport.send(_list_revisions(task))

    def rollback(self, task: str, revision: int | None = None) -> RouteInfo:
        """Go back to a revision; None = to what was in force before the present one."""
        return self._transport.send(_roll_back(task, revision))

    def delete(self, task: str) -> RouteDeleted:
        """Delete a route and its revisions."""
        return self._transport.send(_delete_route(task))


class AsyncRoutes:
    """`Routes` with `await`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> RouteList:
        """See `Routes.list`."""
        return await self._transport.send(_list_routes())

    async def get(self, task: str) -> RouteInfo:
        """See `Routes.get`."""
        return await self._transport.send(_get_route(task))

    async def set(
        self,
        task: str,
        targets: RouteTargets,
        *,
        shadow: RouteShadow | Mapping[str, object] | None = None,
        description: str = "",
    ) -> RouteInfo:
        """See `Routes.set`."""
        return await self._transport.send(_set_route(task, targets, shadow, description))

    async def revisions(self, task: str) -> RouteRevisionList:
        """See `Routes.revisions`."""
        return await self._transport.send(_list_revisions(task))

    async def rollback(self, task: str, revision: int | None = None) -> RouteInfo:
        """See `Routes.rollback`."""
        return await self._transport.send(_roll_back(task, revision))

    async def delete(self, task: str) -> RouteDeleted:
        """See `Routes.delete`."""
        return await self._transport.send(_delete_route(task))


def _list_routes() -> Call[RouteList]:
    return Call("GET", "/v1/routes", RouteList, is_idempotent=True)


def _get_route(task: str) -> Call[RouteInfo]:
    return Call("GET", _path(task), RouteInfo, is_idempotent=True)


def _set_route(
    task: str, targets: RouteTargets, shadow: RouteShadow | Mapping[str, object] | None, description: str
) -> Call[RouteInfo]:
    items = [targets] if isinstance(targets, str) else targets
    fields = {
        "targets": [{"intervention": item} if isinstance(item, str) else item for item in items],
        "shadow": shadow,
        "description": description,
    }
    return Call("PUT", _path(task), RouteInfo, body=request_body(RouteDefinition, fields))


def _list_revisions(task: str) -> Call[RouteRevisionList]:
    return Call("GET", f"{_path(task)}/revisions", RouteRevisionList, is_idempotent=True)


def _roll_back(task: str, revision: int | None) -> Call[RouteInfo]:
    body = request_body(RouteRollback, {"revision": revision})
    return Call("POST", f"{_path(task)}/rollback", RouteInfo, body=body)


def _delete_route(task: str) -> Call[RouteDeleted]:
    return Call("DELETE", _path(task), RouteDeleted)


def _path(task: str) -> str:
    return f"/v1/routes/{quote(task, safe='')}"
