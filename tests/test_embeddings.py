"""Embeddings keep 32-bit state, unless somebody says otherwise."""

import pickle

import pytest
import torch
from model import Model, bits, train
from torch import nn

import torch_bnb as bnb
from torch_bnb.optim import AdamW


def test_embeddings_of_known_models_keep_32_bits_and_the_plan_says_what_it_costs(manager):
    model = Model()
    optimizer = AdamW(model.parameters(), optim_bits=8)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8, "the module is not known"
    manager.register_parameters(model)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 32
    saved = 2 * (4 * 6400 - 6400 - 4 * 25)
    assert bnb.report(optimizer).embedding_bytes == saved
    assert f"Embeddings keep 32-bit state, which costs {saved / 1024:.2f} KiB" in str(bnb.report(optimizer))
    manager.register_parameters(model, embeddings_32bit=False)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8
    manager.register_parameters(model)
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8, "registering again does not turn it on again"


@pytest.mark.parametrize("how", ["hint", "group"])
def test_explicit_optim_bits_turn_the_default_for_embeddings_off(manager, how):
    model = Model()
    manager.register_parameters(model)
    if how == "hint":
        manager.override_named(model, {nn.Embedding: {"optim_bits": 8}})
        optimizer = AdamW(model.parameters(), optim_bits=8)
    else:
        optimizer = AdamW([{"params": model.parameters(), "optim_bits": 8}])
    train(model, optimizer)
    assert bits(optimizer, model.embed.weight) == 8


def test_an_explicit_word_about_embeddings_stays(manager):
    model = Model()
    manager.register_parameters(model, embeddings_32bit=False)
    groups = bnb.param_groups(model)
    assert not any("optim_bits" in group for group in groups)
    outer = nn.ModuleList([model])
    manager.register_parameters(outer, embeddings_32bit=True)
    assert manager.explain(AdamW(model.parameters(), optim_bits=8))["0.embed.weight"].bits == 32


def test_a_word_about_embeddings_holds_through_wrappers_until_a_later_one(manager):
    def embedding_bits(outer):
        optimizer = AdamW(outer.parameters(), optim_bits=8)
        return next(row.bits for row in manager.explain(optimizer) if row.name.endswith("embed.weight"))

    inner = Model()
    outer = nn.ModuleList([inner])
    manager.register_parameters(inner, embeddings_32bit=False)
    manager.register_parameters(outer)
    assert embedding_bits(outer) == 8
    assert not any("optim_bits" in group for group in bnb.param_groups(torch.compile(inner, backend="eager")))
    manager.register_parameters(outer, embeddings_32bit=True)
    assert embedding_bits(outer) == 32
    manager.register_parameters(inner, embeddings_32bit=False)
    assert embedding_bits(outer) == 8
    loaded = pickle.loads(pickle.dumps(outer))
    manager.register_parameters(loaded)
    assert embedding_bits(loaded) == 8


def test_the_default_for_embeddings_holds_as_soon_as_a_group_asks_for_8_bits(manager):
    model = Model()
    manager.register_parameters(model)
    optimizer = AdamW(model.parameters())
    optimizer.param_groups[0]["optim_bits"] = 8
    assert manager.explain(optimizer)["embed.weight"].bits == 32


def test_an_embedding_whose_weight_is_no_parameter_has_no_default(manager):
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 64))
    weight = model[0].weight.detach()
    del model[0].weight
    model[0].register_buffer("weight", weight)
    manager.register_parameters(model)
    assert [row.bits for row in manager.explain(AdamW(model.parameters(), optim_bits=8))] == [8, 32]


def test_bits_that_a_group_says_stay_through_a_rebuild_and_a_checkpoint(manager):
    model = Model()
    manager.register_parameters(model)
    default = AdamW(model.parameters(), optim_bits=8)
    again = AdamW(default.param_groups, **default.defaults)
    explicit = AdamW([{"params": model.parameters(), "optim_bits": 8}])
    for optimizer, expected in ((default, 32), (again, 32), (explicit, 8)):
        assert manager.explain(optimizer)["embed.weight"].bits == expected
    default.load_state_dict(explicit.state_dict())
    explicit.load_state_dict(again.state_dict())
    assert manager.explain(default)["embed.weight"].bits == 32
    assert manager.explain(explicit)["embed.weight"].bits == 8


def test_a_plan_says_what_embeddings_of_a_model_that_is_not_registered_will_take_once_it_is(manager):
    model = Model()
    unknown = bnb.plan(model)
    manager.register_parameters(model)
    known = bnb.plan(model)
    more = (known.total.state - unknown.total.state) / 1024
    assert f"they keep 32-bit state: {more:.2f} KiB more." in str(unknown) and more > 0
    assert not known.remarks
    manager.register_parameters(model, embeddings_32bit=False)
    assert not bnb.plan(model).remarks
    other = Model()
    manager.override_named(other, {"embed.weight": {"optim_bits": 8}})
    assert not bnb.plan(other).remarks
    assert not bnb.plan(Model(), optim_bits=32).remarks
