"""Where a parameter's state lives: on the parameter's device, or in host memory that a GPU reads and writes by itself.

Knows devices and no more. What travels between the two at a step is paging's affair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_bnb.optim import sharding


@dataclass(frozen=True)
class Home:
    """Where tensors of state belong."""

    device: torch.device
    pinned: bool = False
    """Whether the host's memory is page-locked, as copies need it that wait for nobody."""

    def full(self, shape: Sequence[int], value: float, dtype: torch.dtype) -> Tensor:
        """A new tensor here, every element `value`."""
        return torch.full(tuple(shape), value, dtype=dtype, device=self.device, pin_memory=self.pinned)

    def copy(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor here, contiguous."""
        empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device, pin_memory=self.pinned)
        return empty.copy_(tensor)

    def take(self, tensor: Tensor) -> Tensor:
        """The tensor itself, if it is here already, else a copy."""
        here = tensor.device == self.device and (not self.pinned or tensor.is_pinned())
        return tensor if here else self.copy(tensor)


def on_host(config: Mapping[str, Any]) -> bool:
    """Whether a config wants state in host memory, wherever the parameter is."""
    return str(config["state_device"]) == "cpu"


def is_away(config: Mapping[str, Any], parameter: Tensor) -> bool:
    """Whether a config wants a parameter's state elsewhere than on its device."""
    return on_host(config) and parameter.device.type == "cuda" and not sharding.is_sharded(parameter)


def home_of(config: Mapping[str, Any], parameter: Tensor) -> Home:
    """Where a config wants a parameter's state."""
    if not is_away(config, parameter):
        return Home(parameter.device)
    return Home(torch.device("cpu"), pinned=parameter.device.type == "cuda")


def captures(device: torch.device) -> bool:
    """Whether what is launched on a device now goes into a CUDA graph instead of being run."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def settle(state: Mapping[Tensor, Mapping[str, Any]]) -> None:
    """Waits until what steps have written into host memory is there, before somebody on the host reads it.

    Args:
        state: An optimizer's, by parameter. Nothing is waited for unless some of it is in host memory and its parameter
            on a GPU.
    """

    def is_visited(entry: Mapping[str, Any]) -> bool:
        tensors = (value for key, value in entry.items() if key != "step" and isinstance(value, Tensor))
        return any(tensor.device.type == "cpu" for tensor in tensors)

    for device in {p.device for p, entry in state.items() if p.device.type == "cuda" and is_visited(entry)}:
        torch.cuda.synchronize(device)
