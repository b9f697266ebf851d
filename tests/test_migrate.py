"""docs/migrate.md: what it says of other libraries."""

import inspect
from pathlib import Path

import bitsandbytes
import pytest
import torch
import torchao.optim

import torch_bnb as bnb

ROOT = Path(__file__).parents[1]


def defaults(cls):
    signature = getattr(cls, "__signature__", None) or inspect.signature(cls.__init__)
    return {name: p.default for name, p in signature.parameters.items() if name not in ("self", "params", "args")}


def differing(theirs, ours):
    """(theirs, ours) by option, of what theirs takes; None stands for an option or a default that there is not."""
    a, b = defaults(theirs), defaults(ours)
    pairs = {name: tuple(None if v is inspect.Parameter.empty else v for v in (a[name], b.get(name))) for name in a}
    return {name: pair for name, pair in pairs.items() if name not in b or pair[0] != pair[1]}


def test_every_class_of_bitsandbytes_is_here_under_its_name():
    names = [
        name
        for name, cls in vars(bitsandbytes.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and name != "PytorchLARS"
    ]
    assert len(names) > 30
    assert not [name for name in names if not hasattr(bnb.optim, name)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Adam", {"amsgrad": (False, None), "is_paged": (False, None)}),
        ("AdamW", {"amsgrad": (False, None), "is_paged": (False, None)}),
        ("SGD", {"lr": (None, 1e-3)}),
        ("Lion", {"is_paged": (False, None)}),
        ("RMSprop", {}),
        ("Adagrad", {}),
        ("AdEMAMix", {"is_paged": (False, None)}),
        (
            "LAMB",
            {
                "bias_correction": (True, None),
                "eps": (1e-8, 1e-6),
                "weight_decay": (0, 0.01),
                "amsgrad": (False, None),
                "adam_w_mode": (True, None),
                "max_unorm": (1.0, 0.0),
            },
        ),
        (
            "LARS",
            {
                "lr": (None, 0.1),
                "momentum": (0, 0.9),
                "dampening": (0, None),
                "weight_decay": (0, 5e-4),
                "max_unorm": (0.02, 0.0),
            },
        ),
    ],
)
def test_the_defaults_are_bitsandbytes_but_where_the_page_says_so(name, expected):
    assert differing(getattr(bitsandbytes.optim, name), getattr(bnb.optim, name)) == expected


def test_the_defaults_are_torchaos_and_torchs_but_where_the_page_says_so():
    for name in ("Adam8bit", "AdamW8bit"):
        assert differing(getattr(torchao.optim, name), getattr(bnb.optim, name)).keys() == {
            "amsgrad",
            "block_size",
            "bf16_stochastic_round",
        }
    expected = {"Adam": {"amsgrad", "differentiable", "decoupled_weight_decay"}, "AdamW": {"amsgrad", "differentiable"}}
    for name in ("Adam", "AdamW", "SGD", "RMSprop", "Adagrad"):
        assert differing(getattr(torch.optim, name), getattr(bnb.optim, name)).keys() == expected.get(
            name, {"differentiable"}
        )
