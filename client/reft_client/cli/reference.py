"""How the command line writes an intervention: `name[@version][*scale]`."""

from __future__ import annotations

import argparse

from pydantic import ValidationError

from ..types import InterventionRef

__all__ = ["parse_reference"]


def parse_reference(text: str) -> InterventionRef:
    """Read `name`, `name@version`, `name*scale` or `name@version*scale`.

    Raises:
        argparse.ArgumentTypeError: it can't be read.
    """
    name, star, scale = text.rpartition("*")
    try:
        return InterventionRef(name=name, scale=float(scale)) if star else InterventionRef(name=text)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise argparse.ArgumentTypeError(f"{text!r}: {message}") from error
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {scale!r} is not a number; write name*scale") from error
