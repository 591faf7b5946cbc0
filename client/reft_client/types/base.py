"""What every wire type shares: scalars that refuse look-alikes, and the two kinds of model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

__all__ = ["FiniteFloat", "Int", "RequestModel", "ResponseModel", "Text", "TokenId", "check_text"]

Int = Annotated[int, Field(strict=True)]
"""An integer; `true`, `1.0` and `"1"` are refused."""

FiniteFloat = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number; booleans, strings, NaN and infinity are refused."""

TokenId = Annotated[int, Field(strict=True, ge=0)]


def check_text(value: str) -> str:
    """Refuse half of a surrogate pair: JSON can hold it as an escape, no tokenizer and no UTF-8 can.

    Raises:
        ValueError: `value` is not text.
    """
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"holds half of a surrogate pair at character {error.start}") from error
    return value


Text = Annotated[str, Field(strict=True), AfterValidator(check_text)]
"""A string that has a UTF-8 form."""


class RequestModel(BaseModel):
    """A request body: `null` means absent, and unknown fields are kept in `model_extra` for the server to judge."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        must_be_known = cls.model_config.get("extra") == "forbid"
        return {
            key: value
            for key, value in data.items()
            if value is not None or (must_be_known and key not in cls.model_fields)
        }


class ResponseModel(BaseModel):
    """A response body: fields that a newer server adds are kept, so that an older client reads it."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())
