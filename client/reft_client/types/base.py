"""What every wire type shares: scalars that refuse look-alikes, and the two kinds of model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FiniteFloat", "Int", "RequestModel", "ResponseModel", "TokenId"]

Int = Annotated[int, Field(strict=True)]
"""An integer; `true`, `1.0` and `"1"` are refused."""

FiniteFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number; booleans, strings, NaN and infinity are refused."""

TokenId = Annotated[int, Field(strict=True, ge=0)]


class RequestModel(BaseModel):
    """A request body: `null` means absent, and unknown fields are kept in `model_extra` for the server to judge."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {key: value for key, value in data.items() if value is not None}
        return data


class ResponseModel(BaseModel):
    """A response body: fields that a newer server adds are kept, so that an older client reads it."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
