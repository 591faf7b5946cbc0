"""Texts of an exact number of tokens, for a tokenizer that only the server has.

A few calls of its `/tokenize` find common words that are one token each after a space. A text of n such words has n
tokens plus a constant, so that every later text costs no call.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx

from ..connection import Connection

__all__ = ["WORDS", "ServerTokenizer", "Vocabulary", "calibrate"]

_WORDS = """
able about above across after again against air all almost alone along already also always among and animal
another answer any apart area around art ask away back ball base bear beat bed been before began begin behind being
best better between big bird black blood blue board boat body book both box boy bread bring broad brother brought
brown build built burn business but buy call came can capital captain car care carry cat catch cause center century
certain chair chance change charge check child children choose church circle city class clean clear close cloud coast
coat cold college color come common company complete consider contain control cook cool copy corner correct cost cotton
could count country course cover create cross crowd cry current cut dance danger dark day dead deal dear death decide
deep degree depend design develop did differ difficult dinner direct discuss distance divide doctor does dog dollar
done door double down draw dream dress drink drive drop dry during each early earth ease east eat edge effect egg eight
either electric else end enemy energy engine enough enter equal even event ever every exact example expect experience
eye face fact fair fall family famous far farm fast father favor fear feed feel feet fell few field fight figure fill
final find fine finger finish fire first fish fit five flat floor flow flower fly follow food foot for force forest
form forward found four free fresh friend from front fruit full fun game garden gas gave general gentle get girl give
glad glass go gold gone good got govern grand grass gray great green grew ground group grow guess guide gun had hair
half hand happen happy hard has hat have head hear heart heat heavy held help her here high hill him his history hold
hole home hope horse hot hour house how huge human hundred hunt hurry ice idea imagine inch include industry insect
interest invent iron island job join joy jump just keep kept key kill kind king knew know lady lake land language
large last late laugh law lay lead learn least leave led left leg length less let letter level lie life lift light
"""
WORDS = tuple(_WORDS.split())
FIRST_WORD = "the"
"""Begins every text: a word without a space before it may be another number of tokens."""
MIN_WORDS = 32


class ServerTokenizer:
    """Counts tokens by asking the server, in whichever dialect it knows.

    Args:
        endpoint: `chat` counts a conversation of one user message, template included, where the server can.
        model: for servers that want one.
    """

    def __init__(
        self, connection: Connection, endpoint: str, model: str | None, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._model = {} if model is None else {"model": model}
        self._is_chat = endpoint == "chat"
        self._client = httpx.Client(
            base_url=connection.base_url,
            headers=connection.headers,
            timeout=connection.timeout,
            trust_env=connection.trust_env,
            transport=transport,
        )

    def __enter__(self) -> ServerTokenizer:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def count(self, text: str) -> int | None:
        """Tokens of a prompt; None = the server can't say."""
        messages = {"messages": [{"role": "user", "content": text}]}
        vllm = messages if self._is_chat else {"prompt": text}
        dialects = (("/tokenize", {**vllm, **self._model}), ("/tokenize", {"content": text, "add_special": True}))
        for path, body in dialects[:1] if self._is_chat else dialects:
            try:
                response = self._client.post(path, json=body)
                tokens = response.json()["tokens"] if response.status_code == 200 else None
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                return None
            if isinstance(tokens, list) and tokens:  # llama.cpp finds no text, and so no tokens, under vLLM's name
                return len(tokens)
        return None


@dataclass(frozen=True)
class Vocabulary:
    """Words to make texts of.

    Args:
        num_extra_tokens: what a text has besides its words: a token at its start, a chat template.
        is_exact: every word is known to be one token; otherwise it is only likely.
    """

    words: tuple[str, ...] = WORDS
    num_extra_tokens: int = 0
    is_exact: bool = False

    def text(self, num_tokens: int, rng: random.Random) -> str:
        """Random words; at least one, also where the extra tokens alone exceed `num_tokens`."""
        num_words = max(1, num_tokens - self.num_extra_tokens)
        return " ".join((FIRST_WORD, *rng.choices(self.words, k=num_words - 1)))

    def more(self, num_tokens: int, rng: random.Random) -> str:
        """Random words that add `num_tokens` to a text, after a space."""
        return " ".join(rng.choices(self.words, k=num_tokens))


def calibrate(count: Callable[[str], int | None]) -> Vocabulary:
    """Find the words that are one token each.

    Args:
        count: tokens of a text; None = nobody knows, and the vocabulary stays a guess.
    """
    one, two = count(FIRST_WORD), count(f"{FIRST_WORD} {FIRST_WORD}")
    if one is None or two is None or two != one + 1:
        return Vocabulary()
    num_extra = one - 1

    def singles(words: Sequence[str]) -> Sequence[str]:
        if count(" ".join((FIRST_WORD, *words))) == num_extra + 1 + len(words):
            return words
        middle = len(words) // 2
        return (*singles(words[:middle]), *singles(words[middle:])) if middle else ()

    kept = singles(WORDS)
    return Vocabulary(tuple(kept), num_extra, is_exact=True) if len(kept) >= MIN_WORDS else Vocabulary()
