"""The plugin's fields, wherever they are said, and the optimizer that comes of them."""

import json
from dataclasses import fields

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import torch_bnb as bnb
from accelerate_bnb import BnbOptimizerPlugin, optimizer_factory, prepare


class Model(nn.Module):
    optim_overrides = {"head.weight": {"lr": 1e-5}}

    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(100, 64), nn.LayerNorm(64), nn.Linear(64, 100)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch):
    for name in [field.name for field in fields(BnbOptimizerPlugin)]:
        monkeypatch.delenv(f"ACCELERATE_BNB_{name.upper()}", raising=False)


def bits(optimizer):
    return {place.name: place.bits for place in optimizer.configurations()}


def test_every_field_has_a_help_text_and_no_default_of_its_own():
    expected = (
        "optimizer lr betas weight_decay optim_bits min_8bit_size overrides config_file embeddings_32bit paged strict"
    )
    assert [field.name for field in fields(BnbOptimizerPlugin)] == expected.split()
    assert (BnbOptimizerPlugin().optimizer, BnbOptimizerPlugin().names_optimizer()) == ("adamw", False)
    assert all(field.default is None and field.metadata["help"] for field in fields(BnbOptimizerPlugin))


def test_without_settings_it_is_8_bit_adamw_with_embeddings_at_32_bits():
    model = Model()
    optimizer = BnbOptimizerPlugin().create_optimizer(model)
    assert type(optimizer) is bnb.optim.AdamW
    assert bits(optimizer) == {
        "embed.weight": 32,
        "norm.weight": 32,
        "norm.bias": 32,
        "head.weight": 8,
        "head.bias": 32,
    }
    assert optimizer.defaults["lr"] == 1e-3


def test_fields_become_options_and_hints():
    plugin = BnbOptimizerPlugin(
        optimizer="AdamW",
        lr=3e-4,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        optim_bits=8,
        min_8bit_size=64,
        overrides={"head.*": {"optim_bits": 32}},
        embeddings_32bit=False,
        paged=True,
    )
    model = Model()
    optimizer = plugin.create_optimizer(model)
    assert type(optimizer) is bnb.optim.PagedAdamW
    group = optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (3e-4, (0.9, 0.95), 0.1)
    assert bits(optimizer) == {
        "embed.weight": 8,
        "norm.weight": 8,
        "norm.bias": 8,
        "head.weight": 32,
        "head.bias": 32,
    }
    rows = bnb.optim.GlobalOptimManager.get_instance().explain(optimizer)
    assert rows["head.weight"].winners == {
        "lr": "optim_overrides of Model",
        "optim_bits": "BnbOptimizerPlugin('head.*')",
    }


def test_frozen_parameters_are_left_out_and_given_ones_are_taken():
    model = Model()
    model.embed.requires_grad_(False)
    optimizer = BnbOptimizerPlugin().create_optimizer(model)
    assert "embed.weight" not in bits(optimizer)
    given = [{"params": [model.head.weight], "weight_decay": 0.5}, {"params": [model.head.bias], "weight_decay": 0.0}]
    optimizer = BnbOptimizerPlugin(lr=1e-4).create_optimizer(model, given, lr=2e-4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]
    assert optimizer.param_groups[0]["lr"] == 2e-4


def test_the_environment_fills_what_is_not_given_and_a_file_what_is_neither(monkeypatch, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(
        "distributed_type: 'NO'\nbnb_config:\n"
        "  optimizer: lion\n  lr: 1e-4\n  betas: [0.8, 0.9]\n  weight_decay: 5e-1\n"
        '  overrides: {"head.*": {lr: 1e-6}}\n  embeddings_32bit: no\n'
    )
    monkeypatch.setenv("ACCELERATE_BNB_CONFIG_FILE", str(file))
    monkeypatch.setenv("ACCELERATE_BNB_LR", "2e-4")
    monkeypatch.setenv("ACCELERATE_BNB_MIN_8BIT_SIZE", "128")
    plugin = BnbOptimizerPlugin(weight_decay=0.25)
    assert plugin.optimizer_class is bnb.optim.Lion
    assert (plugin.weight_decay, plugin.lr, plugin.betas) == (0.25, 2e-4, (0.8, 0.9))
    assert (plugin.min_8bit_size, plugin.embeddings_32bit, plugin.strict) == (128, False, True)
    assert plugin.overrides == {"head.*": {"lr": 1e-6}}


def test_a_file_may_hold_the_fields_alone_or_name_a_file_of_hints_beside_it(tmp_path):
    (tmp_path / "hints.yaml").write_text('"*.weight": {optim_bits: 32}\n')
    (tmp_path / "x.json").write_text(json.dumps({"optimizer": "sgd", "lr": 0.1, "overrides": "hints.yaml"}))
    plugin = BnbOptimizerPlugin(config_file=str(tmp_path / "x.json"))
    assert plugin.optimizer_class is bnb.optim.SGD and plugin.overrides == {"*.weight": {"optim_bits": 32}}


def test_hints_in_the_environment_are_json_or_the_path_of_a_file(monkeypatch, tmp_path):
    (tmp_path / "hints.yaml").write_text('"head.*": {lr: 1e-4}\n')
    for text in ('{"head.*": {"lr": 1e-4}}', str(tmp_path / "hints.yaml")):
        monkeypatch.setenv("ACCELERATE_BNB_OVERRIDES", text)
        assert BnbOptimizerPlugin().overrides == {"head.*": {"lr": 1e-4}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimizer": "adamw8bits"}, "unknown optimizer 'adamw8bits'; did you mean adamw8bit"),
        ({"optimizer": torch.optim.AdamW}, "expected a name, or a class of torch_bnb.optim"),
        ({"optim_bits": 4}, "optim_bits=4: expected 8 or 32"),
        ({"optimizer": "adamw8bit", "optim_bits": 32}, "AdamW8bit: optim_bits=32: expected 8; use AdamW to choose"),
        ({"lr": -1.0}, "lr=-1.0: expected a finite number >= 0"),
        ({"optimizer": "sgd", "betas": (0.9, 0.99)}, r"SGD has no option 'betas'; it was given \(0.9, 0.99\)"),
        (
            {"overrides": {"*": {"optim_bit": 32}}},
            r"overrides\['\*'\]: unknown option 'optim_bit', did you mean 'optim_b",
        ),
        ({"embeddings_32bit": "yes"}, "embeddings_32bit='yes': expected True or False"),
        ({"config_file": "nowhere.yaml"}, "No such file or directory: 'nowhere.yaml'"),
    ],
)
def test_what_cannot_be_is_an_error_at_once(given, message):
    with pytest.raises((ValueError, OSError), match=message):
        BnbOptimizerPlugin(**given)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("LR", "fast", "ACCELERATE_BNB_LR='fast': expected a number"),
        (
            "OPTIM_BIT",
            "8",
            "unknown environment variable 'ACCELERATE_BNB_OPTIM_BIT'; did you mean ACCELERATE_BNB_OPTIM_BITS",
        ),
        ("EMBEDDINGS_32BIT", "maybe", "ACCELERATE_BNB_EMBEDDINGS_32BIT='maybe': expected true or false"),
        ("OVERRIDES", "{oops", "ACCELERATE_BNB_OVERRIDES='{oops': expected a mapping of patterns to options"),
    ],
)
def test_what_cannot_be_in_the_environment_is_named(monkeypatch, variable, text, message):
    monkeypatch.setenv(f"ACCELERATE_BNB_{variable}", text)
    with pytest.raises(ValueError, match=message):
        BnbOptimizerPlugin()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bnb_config: {optimiser: lion}", "x.yaml, line 1: unknown key 'optimiser'; did you mean optimizer"),
        ("lr: 1e-4\nlr: 1e-3", "x.yaml, line 2: 'lr' stands there twice"),
        ("bnb_config: lion", "x.yaml, line 1: bnb_config must be a mapping"),
        ("bnb_config:\n  lr: fast", "x.yaml, line 2: lr='fast': expected a number"),
        ("lr: [1]", "x.yaml, line 1: lr: expected a number"),
        (
            "bnb_config:\n  overrides:\n    a.*: {lr: fast}",
            "x.yaml, line 3: 'a.*': lr='fast': expected a finite number",
        ),
        ("config_file: y.yaml", "unknown key 'config_file'"),
        ("[1, 2", "x.yaml, line 1: expected"),
    ],
)
def test_what_cannot_be_in_a_file_is_named_by_file_line_and_key(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError) as caught:
        BnbOptimizerPlugin(config_file=str(tmp_path / "x.yaml"))
    assert message in str(caught.value)


def test_a_pattern_that_fits_nothing_is_an_error_or_with_strict_false_a_warning():
    hints = {"haed.*": {"lr": 1e-4}}
    with pytest.raises(bnb.OverrideError, match=r"BnbOptimizerPlugin\('haed.\*'\): Model has no parameter"):
        BnbOptimizerPlugin(overrides=hints).create_optimizer(Model())
    with pytest.warns(UserWarning, match="Model has no parameter"):
        BnbOptimizerPlugin(overrides=hints, strict=False).create_optimizer(Model())


def test_for_engines_that_flatten_groups_hints_become_groups():
    plugin = BnbOptimizerPlugin(lr=1e-3, overrides={"norm.*": {"weight_decay": 0.0}})
    optimizer = plugin.create_optimizer(Model(), as_groups=True)
    assert [(g["lr"], g["optim_bits"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [
        (1e-3, 8, 0.01, 1),
        (1e-3, 32, 0.01, 1),
        (1e-3, 8, 0.0, 2),
        (1e-5, 8, 0.01, 1),
    ]
    assert not any(place.overrides for place in optimizer.configurations())
    with pytest.raises(ValueError, match="as_groups makes the groups itself"):
        plugin.create_optimizer(Model(), [], as_groups=True)


@pytest.mark.parametrize("name", ["AdamW8bit", "adamw8bit", "adamw_8bit", "AdamW-8bit"])
def test_names_are_found_in_any_spelling(name):
    assert bnb.optim.by_name(name) is bnb.optim.AdamW8bit


def test_every_optimizer_has_a_name_and_other_names_are_errors():
    for name in (*bnb.optim.rules.__all__, *bnb.optim.variants.__all__):
        assert bnb.optim.by_name(name.lower()).__name__ == name
    with pytest.raises(ValueError, match="unknown optimizer 'zzz'; there are lamb, lars, sgd"):
        bnb.optim.by_name("zzz")
    with pytest.raises(TypeError, match="expected a name, got 3"):
        bnb.optim.by_name(3)


def test_the_factory_for_trainer_makes_trainers_groups_and_asks_for_a_rate():
    model = Model()
    optimizer = optimizer_factory(BnbOptimizerPlugin(weight_decay=0.1))()(model, lr=1e-4)
    names = [[place.name for place in optimizer.configurations() if place.group == group] for group in (0, 1)]
    assert names == [["embed.weight", "head.weight"], ["norm.weight", "norm.bias", "head.bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert bits(optimizer)["embed.weight"] == 32
    with pytest.warns(UserWarning, match="Trainer does not pass on its learning_rate"):
        optimizer_factory(BnbOptimizerPlugin())()(Model())


def test_a_pattern_that_fits_frozen_parameters_only_is_a_warning():
    model = Model()
    model.embed.requires_grad_(False)
    plugin = BnbOptimizerPlugin(overrides={"embed.*": {"optim_bits": 8}, "*.weight": {"weight_decay": 0.1}})
    message = r"^BnbOptimizerPlugin\('embed\.\*'\) fits only embed\.weight, which no optimizer has: frozen, or left out"
    with pytest.warns(UserWarning, match=message) as said:
        plugin.create_optimizer(model)
    assert len(said) == 1


def test_overrides_that_are_no_mapping_are_named():
    with pytest.raises(ValueError, match=r"overrides: expected a dict of names and options, got \['a'\]"):
        BnbOptimizerPlugin(overrides=["a"])


def test_hints_that_went_into_groups_do_not_apply_again_when_prepare_registers_the_model():
    plugin = BnbOptimizerPlugin(lr=1e-2, overrides={"head.bias": {"lr_scale": 0.5}})
    model = Model()
    optimizer = plugin.create_optimizer(model, as_groups=True)
    _, optimizer = prepare(Accelerator(cpu=True), model, optimizer, plugin=plugin)
    assert bnb.optim.GlobalOptimManager.get_instance().explain(optimizer)["head.bias"].lr == 0.005


def test_a_word_about_embeddings_is_not_overruled_by_the_default():
    model = Model()
    bnb.optim.GlobalOptimManager.get_instance().register_parameters(model, embeddings_32bit=False)
    assert bits(BnbOptimizerPlugin().create_optimizer(model))["embed.weight"] == 8
    assert bits(BnbOptimizerPlugin(embeddings_32bit=True).create_optimizer(model))["embed.weight"] == 32
