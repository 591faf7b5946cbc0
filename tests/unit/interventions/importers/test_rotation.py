"""R out of torch's orthogonal parametrization."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.parametrizations import orthogonal

from reft_interventions.errors import InterventionImportError
from reft_interventions.importers.rotation import rebuild_rotation, take_rotation


def parametrized(height: int, width: int, seed: int) -> torch.nn.Linear:
    """A trained one: its raw tensor has moved away from where it starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = orthogonal(torch.nn.Linear(width, height, bias=False))
        with torch.no_grad():
            raw = layer.parametrizations.weight.original
            noise = torch.randn(raw.shape)
            raw += (noise.tril(-1) if height > width else noise.T.tril(-1).T) * 0.3
    return layer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("height", "width"), [(8, 1), (16, 4), (33, 32), (4, 16)])
def test_rotation_is_what_torch_computes(height: int, width: int, seed: int) -> None:
    layer = parametrized(height, width, seed)
    state = {f"rotate_layer.{name}": value for name, value in layer.state_dict().items()}
    got = take_rotation(state, "rotate_layer", "test")
    weight = layer.weight.detach()
    torch.testing.assert_close(got, weight if height > width else weight.T, atol=2e-6, rtol=0)
    assert not state


def test_raw_tensor_is_not_the_rotation() -> None:
    layer = parametrized(16, 4, 0)
    raw = layer.parametrizations.weight.original.detach()
    assert (raw - layer.weight.detach()).abs().max() > 0.5
    got = rebuild_rotation(raw, layer.parametrizations.weight[0].base)
    assert (got.T @ got - torch.eye(4)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("original", "base"),
    [
        (torch.zeros(4, 4), torch.eye(4)),
        (torch.zeros(8, 2), torch.eye(4)),
        (torch.zeros(8), None),
        (torch.zeros(8, 0), None),
    ],
)
def test_other_parametrization_is_refused(original: torch.Tensor, base: torch.Tensor | None) -> None:
    with pytest.raises(InterventionImportError, match="not the Householder form"):
        rebuild_rotation(original, base)
