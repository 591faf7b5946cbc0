"""Trying a stored set: its self-test, and the base model's answer beside the edited one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .base import FiniteFloat, RequestModel, ResponseModel, Text
from .chat import ChatCompletionResponse
from .completions import CompletionResponse
from .interventions import InterventionRef, SelfTestReport

__all__ = ["InterventionComparison", "InterventionComparisonRequest", "InterventionTest"]


class InterventionTest(ResponseModel):
    """A stored version's self-test, run again."""

    object: Literal["intervention.test"] = "intervention.test"
    name: str
    version: int
    content_hash: str
    passed: bool = True
    self_test: SelfTestReport


class InterventionComparisonRequest(RequestModel):
    """A completion's or a chat's fields, but for those that choose what answers: `prompt` or `messages`, and any other.

    Args:
        against: another set, or another version of this one, in the place of the base model.
        scale: of the set.
        seed: the same for both sides.
    """

    prompt: object = None
    messages: object = None
    against: Annotated[Text, Field(min_length=1, max_length=512)] | InterventionRef | None = None
    scale: FiniteFloat = 1.0
    seed: object = 0


class InterventionComparison(ResponseModel):
    """Both sides of one request, each as its own route would answer.

    Args:
        base: what the base model answers, or the set in `against`.
        is_same: the texts of all choices are equal.
    """

    object: Literal["intervention.comparison"] = "intervention.comparison"
    name: str
    version: int
    content_hash: str
    is_same: bool
    base: CompletionResponse | ChatCompletionResponse
    edited: CompletionResponse | ChatCompletionResponse
