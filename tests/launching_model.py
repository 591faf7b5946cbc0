"""A model that launches steps without a device: done at once, but the engine learns the tokens only by reading."""

from __future__ import annotations

import random
from dataclasses import replace

import torch
from torch import Tensor

from reft_server.engine.batch import Batch
from reft_server.engine.launched import LaunchedStep
from reft_server.engine.sampler import TOO_WIDE, DrawSettings, choose, is_truncated
from reft_server.engine.sequence import EXPECTED
from reft_server.engine.single import Model


class LaunchingOnHost:
    """`LaunchingModel` over any model path of the CPU.

    Attributes:
        log: ("launch" or "wait", number of the step), in order.

    Args:
        late_share: of the truncated rows; they are left to the host, which the step behind has not seen.
    """

    def __init__(self, model: Model, late_share: float = 0.0) -> None:
        self.kv_layout = model.kv_layout
        self.supports_shared_prefixes = model.supports_shared_prefixes
        self.log: list[tuple[str, int]] = []
        self.num_late = 0
        self._model = model
        self._late_share = late_share
        self._chance = random.Random(1)
        self._num_launched = 0
        self._tokens: list[int] = []  # of the last step: only the next one reads them

    def forward(self, batch: Batch) -> Tensor:
        assert EXPECTED not in batch.token_ids
        return self._model.forward(batch)

    def launch(self, batch: Batch, previous: LaunchedStep | None) -> LaunchedStep:
        number = self._num_launched
        self._num_launched += 1
        self.log.append(("launch", number))
        sampled = batch.sampled_sequences
        uniforms = {one: one.random.random() for one in sampled if one.sampling.temperature > 0}
        logits = self._model.forward(replace(batch, token_ids=self._fed(batch, previous)))[: len(sampled)].float()
        chosen = self._choose(logits, batch, uniforms) if sampled else torch.empty(0, dtype=torch.int64)
        self._tokens = chosen.tolist()
        return LaunchedStep(batch, chosen, lambda: self.log.append(("wait", number)), uniforms, logits.clone())

    def _choose(self, logits: Tensor, batch: Batch, uniforms: dict[object, float]) -> Tensor:
        sampled, vocab_size = batch.sampled_sequences, logits.shape[-1]
        values = [DrawSettings.values(one.sampling, uniforms.get(one, 0.0), vocab_size) for one in sampled]
        settings = DrawSettings.unpack(torch.tensor(values, dtype=torch.float64).t())
        chosen = choose(logits, settings, has_plain=True, has_truncated=True)
        for row, one in enumerate(sampled):
            can_be_late = one in uniforms and is_truncated(one.sampling, vocab_size) and chosen[row] >= 0
            if can_be_late and self._chance.random() < self._late_share:
                chosen[row] = TOO_WIDE
                self.num_late += 1
        return chosen

    def _fed(self, batch: Batch, previous: LaunchedStep | None) -> list[int]:
        """The batch's token ids, as a device knows them."""
        token_ids, end = list(batch.token_ids), 0
        for chunk in batch.chunks:
            end += chunk.num_tokens
            if token_ids[end - 1] == EXPECTED:
                assert previous is not None
                token_ids[end - 1] = max(self._tokens[previous.rows[chunk.sequence]], 0)
        assert EXPECTED not in token_ids
        return token_ids
