"""transformers.Trainer with the optimizer of the factory."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

import torch_bnb as bnb

transformers = pytest.importorskip("transformers")


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()
    from trainer_gpt import make_trainer

    transformers.utils.logging.disable_progress_bar()
    small = {"n_embd": 64, "n_layer": 1, "n_head": 2}
    return lambda out: make_trainer(str(out), steps=6, save_steps=3, **small)


def test_it_trains_with_trainers_decay_groups_embeddings_at_32_bits_and_resumes_bit_for_bit(make, tmp_path):
    whole = make(tmp_path / "a")
    whole.train()
    optimizer = whole.optimizer.optimizer
    assert type(optimizer) is bnb.optim.AdamW8bit
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.param_groups[0]["initial_lr"] == 1e-3, "Trainer's schedule stands on its learning rate"
    decayed = {
        name: p for name, p in whole.model.named_parameters() if name in whole.get_decay_parameter_names(whole.model)
    }
    assert set(map(id, optimizer.param_groups[0]["params"])) == set(map(id, decayed.values()))
    bits = {place.name: place.bits for place in optimizer.configurations()}
    assert bits["transformer.wte.weight"] == bits["transformer.wpe.weight"] == 32
    assert bits["transformer.h.0.mlp.c_fc.weight"] == 8
    bnb.verify(whole.model, whole.optimizer)
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]

    resumed = make(tmp_path / "a")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    pairs = zip(whole.model.parameters(), resumed.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
