"""Training data: JSON lines in, token ids out, tokenized exactly as the server tokenizes a request."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jinja2 import TemplateError

from ..errors import TrainingError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True)
class TokenizedExample:
    """One row: the prompt is what a request would send; the loss is on the answer, its end token included.

    `source_ids` is the other prompt of an interchange, whose answers have no end token; `subspace` names the rank
    dimensions that the row trains, None = all.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    line: int
    source_ids: tuple[int, ...] | None = None
    subspace: str | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


@dataclass(frozen=True)
class Dataset:
    """The rows that fit, and what was left out."""

    examples: tuple[TokenizedExample, ...]
    num_too_long: int
    sha256: str


def read_dataset(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Read `{"prompt", "completion"}` or `{"messages": [...]}` rows, one JSON object a line; empty lines are skipped.

    A row may have a `source`, another prompt in the row's own form (its prompt may then be called `base`), and a
    `subspace`.

    Args:
        path: UTF-8 JSON lines.
        tokenizer: the base model's; `messages` need its chat template.
        max_length: rows with more tokens are left out and counted, not cut: a cut answer teaches to stop early.

    Raises:
        TrainingError: the file can't be read, a line is wrong (the message names it), or no row is left.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        raise TrainingError(f"{path} can't be read: {error.strerror}", param="data") from error
    except UnicodeDecodeError as error:
        raise TrainingError(f"{path} is not UTF-8 (byte {error.start})", param="data") from error
    rows = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    examples = [_tokenize_line(f"{path.name} line {number}", number, line, tokenizer) for number, line in rows]
    fitting = tuple(e for e in examples if max(e.num_tokens, len(e.source_ids or ())) <= max_length)
    if not examples:
        raise TrainingError(f"{path} holds no rows", param="data")
    if not fitting:
        raise TrainingError(f"all {len(examples)} rows of {path} exceed --max-length {max_length}", param="data")
    return Dataset(fitting, len(examples) - len(fitting), hashlib.sha256(raw).hexdigest())


def split_dataset(dataset: Dataset, eval_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Take a random share of the rows away for evaluation; rows with the same prompt stay on one side.

    Raises:
        TrainingError: one side would be empty.
    """
    prompts = sorted({example.prompt_ids for example in dataset.examples})
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    num_held_out = max(1, round(len(prompts) * eval_fraction))
    if num_held_out >= len(prompts):
        raise TrainingError(f"{len(prompts)} different prompts are too few to hold some out", param="eval_fraction")
    held_out = {prompts[index] for index in order[:num_held_out]}
    train = tuple(example for example in dataset.examples if example.prompt_ids not in held_out)
    evaluation = tuple(example for example in dataset.examples if example.prompt_ids in held_out)
    return Dataset(train, dataset.num_too_long, dataset.sha256), Dataset(evaluation, 0, dataset.sha256)


def tokenize_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[dict[str, str]]) -> tuple[int, ...]:
    """The token ids that a request with this prompt, or these chat messages, has on the server.

    Raises:
        TrainingError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if isinstance(prompt, str):
        return tuple(tokenizer(prompt)["input_ids"])
    text = _render(tokenizer, prompt, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_row(where: str, line: str) -> dict[str, Any]:
    """The row that a line holds, after a look at its form; only a tokenizer can tell whether it can be learnt.

    Raises:
        TrainingError: it is neither a prompt with a completion nor messages; `where` begins the sentence, and nothing
            of the line is in it.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{where}: not valid JSON", param="data") from error
    if isinstance(row, dict) and "source" in row and "base" in row and "prompt" not in row:
        row["prompt"] = row.pop("base")
    if not isinstance(row, dict) or ("messages" in row) == ("prompt" in row or "completion" in row):
        raise TrainingError(f"{where}: write either prompt and completion, or messages", param="data")
    subspace = row.get("subspace")
    if subspace is not None and not isinstance(subspace, str):
        raise TrainingError(f"{where}: the subspace must be a name", param="data")
    if "messages" in row:
        _check_messages(where, row["messages"])
    elif not isinstance(row.get("prompt"), str) or not isinstance(row.get("completion"), str):
        raise TrainingError(f"{where}: prompt and completion must both be strings", param="data")
    elif not row["completion"].strip():
        raise TrainingError(f"{where}: the completion is empty", param="data")
    if "source" in row:
        _check_source(where, row)
    return row


def _check_source(where: str, row: dict[str, Any]) -> None:
    source = row["source"]
    if "messages" in row:
        is_right = isinstance(source, list) and bool(source) and all(_is_message(message) for message in source)
    else:
        is_right = isinstance(source, str)
    if not is_right:
        raise TrainingError(f"{where}: the source must be a prompt in the row's own form", param="data")


def _check_messages(where: str, messages: Any) -> None:
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        raise TrainingError(f"{where}: messages need a role ({', '.join(sorted(_ROLES))}) and a content", param="data")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise TrainingError(f"{where}: the last message must be the assistant's answer", param="data")
    if not messages[-1]["content"].strip():
        raise TrainingError(f"{where}: the answer is empty", param="data")


def _tokenize_line(where: str, number: int, line: str, tokenizer: PreTrainedTokenizerBase) -> TokenizedExample:
    row = check_row(where, line)
    if "messages" in row:
        prompt_ids, answer_ids = _tokenize_messages(where, row["messages"], tokenizer)
    else:
        prompt_ids, answer_ids = _tokenize_pair(row, tokenizer)
    if not prompt_ids:
        raise TrainingError(f"{where}: the prompt is empty", param="data")
    if "source" not in row:
        return TokenizedExample(prompt_ids, answer_ids, number, subspace=row.get("subspace"))
    source_ids = tokenize_prompt(tokenizer, row["source"])
    if not source_ids:
        raise TrainingError(f"{where}: the source is empty", param="data")
    # The answer to an interchange is the next tokens, not the end of the text.
    return TokenizedExample(prompt_ids, answer_ids[:-1], number, source_ids, row.get("subspace"))


def _tokenize_pair(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    # Apart from the prompt: at inference the prompt's tokens end where the prompt ends.
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    return tokenize_prompt(tokenizer, row["prompt"]), (*answer, _end_token(tokenizer))


def _tokenize_messages(
    where: str, messages: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    try:
        prompt = _render(tokenizer, messages[:-1], add_generation_prompt=True)
        whole = _render(tokenizer, messages, add_generation_prompt=False)
    except TrainingError as error:
        raise TrainingError(f"{where}: {error.message}", param="data") from error
    if not whole.startswith(prompt):
        raise TrainingError(f"{where}: the chat template does not end its prompt where the answer begins", param="data")
    answer = tokenizer(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    end = _end_token(tokenizer)
    # What the template writes behind the end token is never generated: the server has stopped there.
    answer = answer[: answer.index(end) + 1] if end in answer else [*answer, end]
    return tokenize_prompt(tokenizer, messages[:-1]), tuple(answer)


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool
) -> str:
    if not tokenizer.chat_template:
        raise TrainingError("the model has no chat template; write prompt and completion instead", param="data")
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except TemplateError as error:
        raise TrainingError(f"the chat template refuses the messages: {error}", param="data") from error


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if not isinstance(tokenizer.eos_token_id, int):
        raise TrainingError("the tokenizer names no end-of-sequence token", param="model")
    return tokenizer.eos_token_id
