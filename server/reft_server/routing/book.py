"""Every tenant's routes: looked up in memory, changed in the database, which keeps earlier revisions."""

from __future__ import annotations

import logging
import time
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, insert, select

from reft_client.types import InterventionRef, RouteDefinition
from reft_server.errors import InvalidRequestError, TaskNotFoundError
from reft_server.tenants import SHARED, TenantDirectory
from reft_server.tenants.model import wire_name
from reft_server.tenants.schema import ROUTE_REVISIONS, ROUTES
from reft_server.tenants.snapshot import read_routes

from .model import DEFAULT_TASK, Route

logger = logging.getLogger(__name__)

MAX_ROUTES = 256
"""Of one tenant."""
NUM_KEPT_REVISIONS = 50
"""Of one route; older ones are dropped."""


class RouteBook:
    """The routes of all tenants, in the directory's database. All methods may be called from any thread."""

    def __init__(self, directory: TenantDirectory) -> None:
        self._directory = directory

    def find(self, tenant: str, task: str) -> Route:
        """The route that answers a tenant's task: its own, the shared one, its own default, the shared default.

        Raises:
            TaskNotFoundError: there is none of these.
        """
        routes = self._directory.snapshot.routes
        places = [(owner, name) for name in (task, DEFAULT_TASK) for owner in (tenant, SHARED)]
        found = next((routes[place] for place in places if place in routes), None)
        if found is None:
            raise TaskNotFoundError(
                f"There is no route for the task {task[:64]!r}, and none for {DEFAULT_TASK!r}", param="task"
            )
        return found

    def get(self, tenant: str, task: str) -> Route:
        """The tenant's own route of a task, or the shared one.

        Raises:
            TaskNotFoundError: there is neither.
        """
        routes = self._directory.snapshot.routes
        found = routes.get((tenant, task)) or routes.get((SHARED, task))
        if found is None:
            raise _no_route(task)
        return found

    def list(self, tenant: str) -> tuple[Route, ...]:
        """The tenant's own routes, and the shared ones for other tasks, by name."""
        routes = self._directory.snapshot.routes.values()
        by_task = {route.task: route for route in routes if route.tenant == SHARED}
        by_task |= {route.task: route for route in routes if route.tenant == tenant}
        return tuple(by_task[task] for task in sorted(by_task))

    def put(self, tenant: str, task: str, definition: RouteDefinition) -> Route:
        """Put a new revision of the tenant's route in force, or its first one.

        Raises:
            InvalidRequestError: the tenant has as many routes as it may have.
        """
        entry: dict[str, Any] = {"targets": [_summary(target) for target in definition.targets]}
        if definition.shadow is not None:
            entry["shadow"] = _names(definition.shadow.intervention_refs())
        with self._directory.change("route.put", tenant, task, route=entry) as connection:
            previous = _in_force(connection, tenant, task)
            if previous is None:
                _check_room(connection, tenant)
            newest = connection.execute(
                select(func.max(ROUTE_REVISIONS.c.revision)).where(_is_route(ROUTE_REVISIONS, tenant, task))
            ).scalar()
            entry["revision"] = revision = (newest or 0) + 1
            connection.execute(
                insert(ROUTE_REVISIONS).values(
                    tenant=tenant,
                    task=task,
                    revision=revision,
                    previous=previous,
                    definition=definition.model_dump_json(exclude_unset=True),
                    created_at=time.time(),
                )
            )
            _put_in_force(connection, tenant, task, revision)
            _forget(connection, tenant, task, revision - NUM_KEPT_REVISIONS, previous)
        logger.info("route_put tenant=%s task=%s revision=%d", wire_name(tenant), task, revision)
        return self._directory.snapshot.routes[tenant, task]

    def revisions(self, tenant: str, task: str) -> tuple[Route, ...]:
        """The revisions of the tenant's own route that are kept, newest first.

        Raises:
            TaskNotFoundError: it has none.
        """
        own = select(ROUTE_REVISIONS).where(_is_route(ROUTE_REVISIONS, tenant, task))
        with self._directory.reading() as connection:
            rows = connection.execute(own.order_by(ROUTE_REVISIONS.c.revision.desc())).all()
        if not rows:
            raise _no_route(task)
        return tuple(read_routes(rows))

    def roll_back(self, tenant: str, task: str, revision: int) -> Route:
        """Put a revision that is kept in force again. It keeps its number; the next new one gets a new number.

        Raises:
            TaskNotFoundError: there is no such revision.
        """
        with self._directory.change("route.rollback", tenant, task, revision=revision) as connection:
            kept = select(ROUTE_REVISIONS.c.revision).where(
                _is_route(ROUTE_REVISIONS, tenant, task), ROUTE_REVISIONS.c.revision == revision
            )
            if connection.execute(kept).first() is None:
                raise TaskNotFoundError(f"The route {task!r} has no revision {revision}", param="revision")
            _put_in_force(connection, tenant, task, revision)
        logger.info("route_rolled_back tenant=%s task=%s revision=%d", wire_name(tenant), task, revision)
        return self._directory.snapshot.routes[tenant, task]

    def delete(self, tenant: str, task: str) -> None:
        """Delete the tenant's own route, and its revisions.

        Raises:
            TaskNotFoundError: it has none.
        """
        with self._directory.change("route.delete", tenant, task) as connection:
            if not connection.execute(delete(ROUTES).where(_is_route(ROUTES, tenant, task))).rowcount:
                raise _no_route(task)
            connection.execute(delete(ROUTE_REVISIONS).where(_is_route(ROUTE_REVISIONS, tenant, task)))
        logger.info("route_deleted tenant=%s task=%s", wire_name(tenant), task)


def _summary(target: Any) -> dict[str, object]:
    return {"intervention": _names(target.intervention_refs()), "weight": target.weight}


def _names(refs: tuple[InterventionRef, ...]) -> list[str]:
    """References without their source prompts, which are content."""
    return [str(ref) for ref in refs]


def _is_route(table: Table, tenant: str, task: str) -> ColumnElement[bool]:
    return (table.c.tenant == tenant) & (table.c.task == task)


def _in_force(connection: Connection, tenant: str, task: str) -> int | None:
    revision: int | None = connection.execute(select(ROUTES.c.revision).where(_is_route(ROUTES, tenant, task))).scalar()
    return revision


def _put_in_force(connection: Connection, tenant: str, task: str, revision: int) -> None:
    connection.execute(delete(ROUTES).where(_is_route(ROUTES, tenant, task)))
    connection.execute(insert(ROUTES).values(tenant=tenant, task=task, revision=revision))


def _forget(connection: Connection, tenant: str, task: str, last: int, kept: int | None) -> None:
    """Drop the revisions up to `last`, but for `kept`, which a rollback goes to."""
    old = _is_route(ROUTE_REVISIONS, tenant, task) & (ROUTE_REVISIONS.c.revision <= last)
    connection.execute(delete(ROUTE_REVISIONS).where(old, ROUTE_REVISIONS.c.revision != (kept or 0)))


def _check_room(connection: Connection, tenant: str) -> None:
    count = connection.execute(select(func.count()).select_from(ROUTES).where(ROUTES.c.tenant == tenant)).scalar_one()
    if count >= MAX_ROUTES:
        raise InvalidRequestError(f"A tenant has at most {MAX_ROUTES} routes: delete one first", param="task")


def _no_route(task: str) -> TaskNotFoundError:
    return TaskNotFoundError(f"There is no route for the task {task[:64]!r}", param="task")
