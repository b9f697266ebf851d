"""Random numbers that a test asks for by a seed of its own, on the device where it makes its tensors."""

import torch


def generator(seed: int) -> torch.Generator:
    """The numbers of two devices differ; those of one are the same every time."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)
