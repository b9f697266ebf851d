"""What the callback says at the start and the end of a fit."""

import importlib.util

import pytest
import torch
from lit import Bare, Model, fit
from torch import nn

import torch_bnb as bnb
from lightning_bnb import EightBitOptimizer, summary

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")

OVERRIDES = {"head.weight": {"lr": 0.25, "optim_bits": 32}}


def without_rich(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "rich" else find(name))


@pytest.mark.parametrize("rich", [True, False])
def test_the_summary_says_who_gets_what_and_why_and_what_it_takes(rich, capsys, caplog, monkeypatch):
    if not rich:
        without_rich(monkeypatch)
    with caplog.at_level("INFO"):
        trainer = fit(Model(), EightBitOptimizer(overrides=OVERRIDES))
    text = capsys.readouterr().out if rich else caplog.text
    lines = {
        line.split()[0]: line.split(maxsplit=4) for line in text.splitlines() if "weight" in line or "bias" in line
    }
    assert lines["embed.weight"][1:] == ["100x64", "32", "0.001", "optim_bits=32 by nn.Embedding keeps 32-bit state"]
    assert lines["head.weight"][1:4] == ["100x64", "32", "0.25"]
    assert "lr=0.25 by EightBitOptimizer('head.weight')" in text
    assert lines["head.bias"][1:] == ["100", "32*", "0.001"] and "* fewer than min_8bit_size elements" in text
    state = bnb.report(trainer.optimizers[0]).total.state
    assert state == 2 * 4 * sum(p.numel() for p in Model().parameters())
    assert "planned: 100.78 KiB; in 32 bits: 100.78 KiB" in text
    assert "measured: 100.78 KiB" in text
    assert "Embeddings keep 32-bit state, which costs 37.30 KiB" in text


def test_without_a_summary_nothing_is_said(capsys):
    fit(Model(), EightBitOptimizer(summary=False))
    assert "EightBitOptimizer" not in capsys.readouterr().out


def test_a_long_table_shows_a_few_of_those_that_are_alike(capsys):
    class Deep(Bare):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(30))

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    fit(Deep(), EightBitOptimizer(overrides={"blocks.*.bias": {"weight_decay": 0.0}}))
    text = capsys.readouterr().out
    assert "AdamW, 63 parameters" in text
    assert "... 28 more like these" in text and "... 29 more like these" in text
    assert "blocks.1.bias" in text and "blocks.9.bias" not in text


def test_what_is_not_ours_is_not_in_the_table():
    assert summary.planned([torch.optim.Adamax([torch.zeros(3, requires_grad=True)])]) == ""
