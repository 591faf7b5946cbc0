"""Arguments to the JSON of a request, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from .errors import InvalidArgumentError

__all__ = ["request_body"]


def request_body(model: type[BaseModel], fields: Mapping[str, object]) -> bytes:
    """The body with these fields.

    Raises:
        InvalidArgumentError: one is wrong; the message names it.
    """
    try:
        return model.model_validate(fields).model_dump_json(exclude_unset=True).encode()
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in detail["loc"])
        message = detail["msg"].removeprefix("Value error, ")
        raise InvalidArgumentError(f"{where}: {message}" if where else message) from error
