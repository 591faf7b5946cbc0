"""The device that the model is on: which thread launches there, and how much of its memory is left."""

from __future__ import annotations

import torch


def use_device(device: torch.device) -> None:
    """Make a GPU the calling thread's current one.

    Triton launches on the current device, wherever its tensors are, and every thread starts with the first one.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
