"""A process that does nothing but save, for a test that kills it."""

import itertools

import torch

from torch_bnb import checkpoint


def keep_saving(path, first):
    """Saves checkpoints with the numbers `first`, `first` + 1, ... for ever."""
    torch.set_num_threads(1)
    for number in itertools.count(first):
        checkpoint.save({"number": number, "values": torch.full((500_000,), float(number))}, path)
