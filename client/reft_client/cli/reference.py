"""How the command line writes an intervention: `name[@version][*scale]`, and what else belongs to it."""

from __future__ import annotations

import argparse
from typing import Any

from pydantic import ValidationError

from ..types import InterventionRef

__all__ = ["OfIntervention", "parse_reference", "parse_subspaces"]


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


def parse_subspaces(text: str) -> tuple[int | str, ...]:
    """Read rank dimensions and names of groups of them, separated by commas."""
    words = [word.strip() for word in text.split(",")]
    return tuple(int(word) if word.isascii() and word.isdigit() else word for word in words)


class OfIntervention(argparse.Action):
    """An option that belongs to the `-i` before it, and sets the field of its own name there."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        """Put the value into the last intervention."""
        refs: list[InterventionRef] = list(namespace.intervention or ())
        if not refs:
            raise argparse.ArgumentError(self, "write it after the -i NAME that it belongs to")
        try:
            refs[-1] = InterventionRef(**refs[-1].model_dump(exclude_unset=True), **{self.dest: values})
        except (ValidationError, TypeError) as error:
            raise argparse.ArgumentError(self, f"can't be read for {refs[-1]}: {values!r}") from error
        namespace.intervention = refs
