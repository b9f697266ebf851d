"""One row per rule: what it is compared with, and the configurations in which it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import reference
import torch

import torch_bnb as bnb


@dataclass(frozen=True)
class Case:
    optimizer: type[torch.optim.Optimizer]
    oracle: Callable[..., torch.optim.Optimizer]
    """Takes float32 parameters and the same options."""
    configs: tuple[dict[str, Any], ...]
    lr: float = 1e-2
    tracks_within: float = 0.05
    """How far 8-bit state may lead from 32-bit state in 30 steps, as a share of the way that the parameters went."""


CASES = {
    "adam": Case(
        bnb.optim.Adam,
        torch.optim.Adam,
        ({}, {"weight_decay": 0.1}, {"betas": (0.8, 0.95), "eps": 1e-3}, {"maximize": True}),
    ),
    "adamw": Case(
        bnb.optim.AdamW,
        torch.optim.AdamW,
        ({}, {"weight_decay": 0.1}, {"betas": (0.5, 0.9), "eps": 1e-6}, {"maximize": True}),
    ),
    "sgd": Case(
        bnb.optim.SGD,
        torch.optim.SGD,
        (
            {},
            {"momentum": 0.9},
            {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01},
            {"momentum": 0.9, "nesterov": True, "maximize": True},
        ),
    ),
    "lion": Case(
        bnb.optim.Lion,
        reference.Lion,
        ({}, {"weight_decay": 0.1}, {"betas": (0.8, 0.9)}, {"maximize": True}),
        lr=1e-3,
        tracks_within=0.25,  # near zero the code decides a sign, and Lion's update is nothing but signs
    ),
    "rmsprop": Case(
        bnb.optim.RMSprop,
        torch.optim.RMSprop,
        (
            {},
            {"momentum": 0.9},
            {"centered": True, "weight_decay": 0.1},
            {"alpha": 0.9, "eps": 1e-4, "momentum": 0.5, "centered": True, "maximize": True},
        ),
        lr=1e-3,
    ),
    "adagrad": Case(
        bnb.optim.Adagrad,
        torch.optim.Adagrad,
        (
            {},
            {"lr_decay": 0.1, "weight_decay": 0.1},
            {"initial_accumulator_value": 0.5, "eps": 1e-3},
            {"maximize": True},
        ),
    ),
    "ademamix": Case(
        bnb.optim.AdEMAMix,
        reference.AdEMAMix,
        (
            {},
            {"weight_decay": 0.1, "alpha": 2.0},
            {"t_alpha": 10, "t_beta3": 15, "betas": (0.8, 0.9, 0.999)},
            {"maximize": True, "eps": 1e-4},
        ),
        lr=1e-3,
    ),
    "lamb": Case(
        bnb.optim.LAMB,
        reference.LAMB,
        ({}, {"weight_decay": 0.1}, {"betas": (0.8, 0.95), "eps": 1e-3}, {"maximize": True}),
    ),
    "lars": Case(
        bnb.optim.LARS,
        reference.LARS,
        (
            {},
            {"momentum": 0.5, "weight_decay": 0.1},
            {"trust_coefficient": 0.01, "eps": 0.1, "nesterov": True},
            {"momentum": 0.0, "maximize": True},
        ),
        lr=1.0,
        tracks_within=0.08,  # in 16 bits, the smallest of these steps are below what a weight can take
    ),
}

CONFIGS = [(name, config) for name, case in CASES.items() for config in case.configs]
