"""Lists in pages, as OpenAI's: `limit`, `after`, `has_more`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Generic, Protocol, TypeVar

from fastapi import Depends, Query
from starlette.requests import Request

from reft_server.errors import InvalidRequestError

MAX_PAGE = 1000

LimitQuery = Annotated[int, Query(ge=1, le=MAX_PAGE, description="At most so many.")]
AfterQuery = Annotated[str | None, Query(max_length=256, description="The `last_id` of the page before.")]


class Comparable(Protocol):
    """What a list is ordered by."""

    def __lt__(self, other: Any, /) -> bool: ...


T = TypeVar("T")


async def check_query(request: Request) -> None:
    """A dependency: refuse a query that says one thing twice, where FastAPI would take the last.

    Raises:
        InvalidRequestError: it does.
    """
    seen: set[str] = set()
    for key, _ in request.query_params.multi_items():
        if key in seen:
            raise InvalidRequestError(f"The query has {key[:64]!r} more than once", param=key[:64])
        seen.add(key)


ONE_OF_EACH = Depends(check_query)


class Page(Generic[T]):
    """Some of an ordered list.

    Args:
        ordered: the whole list, in the order of `key`.
        after: the key of the last one of the page before; it need not exist any more. None = the first page.
    """

    def __init__(
        self, ordered: Sequence[T], key: Callable[[T], Comparable], limit: int, after: Comparable | None = None
    ) -> None:
        rest = list(ordered) if after is None else [one for one in ordered if after < key(one)]
        self.items = rest[:limit]
        self.has_more = len(rest) > limit
