"""Accelerate in one process: what prepare makes, trains, saves and resumes."""

import copy
import pickle
import warnings

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.deepspeed import DummyScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import torch_bnb as bnb
from accelerate_bnb import BnbAccelerator, BnbDummyOptim, BnbOptimizerPlugin, optimizer_factory, prepare
from accelerate_bnb.fsdp1 import make_loadable


class Model(nn.Module):
    optim_overrides = {"body.weight": {"optim_bits": 32}}

    def __init__(self):
        super().__init__()
        self.embed, self.body, self.head = nn.Embedding(100, 64), nn.Linear(64, 64), nn.Linear(64, 100)

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens)).relu())


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate's state is one per process."""

    def reset():
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        PartialState._reset_state()

    reset()
    yield
    reset()


def data(batches=8):
    tokens = torch.arange(batches * 8) % 100
    return DataLoader(TensorDataset(tokens, tokens.roll(1)), batch_size=8)


def train(accelerator, model, optimizer, loader, scheduler=None, steps=None, clip=None):
    losses = []
    for index, (tokens, targets) in enumerate(loader):
        if index == steps:
            break
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(tokens).float(), targets)
            accelerator.backward(loss)
            if clip and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def bits(model, optimizer):
    state = optimizer.optimizer.state
    return {
        name: 8 if "exp_avg_codes" in state[p] else 32 for name, p in model.named_parameters() if "bias" not in name
    }


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_a_placeholder_becomes_the_plugins_optimizer_with_the_hints_of_modules_and_plugin():
    accelerator = Accelerator(cpu=True)
    plugin = BnbOptimizerPlugin(optimizer="adamw8bit", lr=1e-2)
    model, optimizer, loader = prepare(accelerator, Model(), BnbDummyOptim(lr=2e-2), data(), plugin=plugin)
    assert type(optimizer.optimizer) is bnb.optim.AdamW8bit and optimizer.param_groups[0]["lr"] == 2e-2
    first, second = (train(accelerator, model, optimizer, loader) for _ in range(2))
    assert sum(second) < 0.9 * sum(first)
    assert bits(model, optimizer) == {"embed.weight": 32, "body.weight": 32, "head.weight": 8}
    bnb.verify(model, optimizer)


def test_the_short_way_does_the_same_and_takes_the_environment(monkeypatch):
    monkeypatch.setenv("ACCELERATE_BNB_OPTIMIZER", "lion8bit")
    accelerator = BnbAccelerator(cpu=True)
    _, optimizer = accelerator.prepare(Model(), BnbDummyOptim())
    assert type(optimizer.optimizer) is bnb.optim.Lion8bit
    assert prepare(accelerator, data()).dataset is not None, "one object comes back as one"
    assert accelerator._optimizers == [optimizer], "prepared once"


def test_an_optimizer_of_the_users_own_gets_the_models_hints_and_the_plugins():
    model = Model()
    own = bnb.optim.AdamW(model.parameters(), optim_bits=8)
    plugin = BnbOptimizerPlugin(overrides={"head.weight": {"lr": 1e-5}})
    model, optimizer = prepare(Accelerator(cpu=True), model, own, plugin=plugin)
    assert optimizer.optimizer is own
    rows = bnb.optim.GlobalOptimManager.get_instance().explain(own)
    assert (rows["head.weight"].lr, rows["body.weight"].bits, rows["embed.weight"].bits) == (1e-5, 32, 32)


def test_optimizers_of_other_libraries_pass_through():
    model = Model()
    _, optimizer = prepare(Accelerator(cpu=True), model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert type(optimizer.optimizer) is torch.optim.SGD


def test_what_is_ours_or_was_not_asked_for_is_no_warning():
    model = Model()
    accelerator = BnbAccelerator(cpu=True, bnb_plugin=BnbOptimizerPlugin(optimizer="lion8bit"))
    model, optimizer = accelerator.prepare(model, BnbDummyOptim())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = accelerator.prepare(optimizer)
        other = BnbAccelerator(cpu=True).prepare(torch.optim.SGD(model.parameters(), lr=0.1))
    assert again.optimizer is optimizer.optimizer and type(again.optimizer) is bnb.optim.Lion8bit
    assert type(other.optimizer) is torch.optim.SGD


@pytest.mark.parametrize("how", ["argument", "environment", "accelerator"])
def test_a_plugin_that_does_nothing_for_another_librarys_optimizer_is_a_warning(how, monkeypatch):
    plugin = BnbOptimizerPlugin(optimizer="lion8bit")
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"SGD is none of torch_bnb and trains as it is, .* plugin\.create_optimizer"):
        if how == "accelerator":
            BnbAccelerator(cpu=True, bnb_plugin=plugin).prepare(model, optimizer)
        elif how == "argument":
            prepare(Accelerator(cpu=True), model, optimizer, plugin=plugin)
        else:
            monkeypatch.setenv("ACCELERATE_BNB_LR", "0.5")
            prepare(Accelerator(cpu=True), model, optimizer)


def test_what_fsdp1_loads_into_is_the_state_of_what_is_trained():
    model = Model()
    model.embed.weight.requires_grad_(False)
    optimizer = bnb.optim.AdamW8bit(model.parameters())
    make_loadable(optimizer)
    assert {id(p) for p in optimizer.state} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(optimizer.state_dict()["state"]) == 4 and optimizer.checkpoint_format == "portable"


def test_a_model_may_be_prepared_before_its_optimizer():
    accelerator, plugin = Accelerator(cpu=True), BnbOptimizerPlugin(overrides={"head.bias": {"weight_decay": 0.5}})
    model = prepare(accelerator, Model(), plugin=plugin)
    optimizer = prepare(accelerator, BnbDummyOptim(), plugin=plugin)
    rows = bnb.optim.GlobalOptimManager.get_instance().explain(optimizer.optimizer)
    assert rows["head.bias"].overrides == {"weight_decay": 0.5} and rows["body.weight"].bits == 32
    bnb.verify(model, optimizer)


def test_what_stands_in_a_wrong_place_is_named():
    model, plugin = Model(), BnbOptimizerPlugin()
    with pytest.raises(TypeError, match="expected an Accelerator before the objects, got Model"):
        prepare(model, plugin.create_optimizer(model))
    with pytest.raises(TypeError, match=r"give it as prepare\(\.\.\., plugin=plugin\)"):
        prepare(Accelerator(cpu=True), model, plugin)
    with pytest.raises(TypeError, match=r"expected an nn\.Module, got generator; parameters come after the model"):
        plugin.create_optimizer(model.parameters())
    for take in (optimizer_factory, lambda it: BnbAccelerator(cpu=True, bnb_plugin=it)):
        with pytest.raises(TypeError, match="plugin='lion8bit': expected a BnbOptimizerPlugin"):
            take("lion8bit")


def test_several_models_and_optimizers_in_one_call():
    first, second = Model(), nn.Linear(64, 64)
    accelerator, plugin = Accelerator(cpu=True), BnbOptimizerPlugin()
    with pytest.raises(ValueError, match=r"prepare got 2 models; say which one is meant: BnbDummyOptim\(model\)"):
        prepare(accelerator, first, second, BnbDummyOptim(), plugin=plugin)
    *_, a, b = prepare(accelerator, first, second, BnbDummyOptim(first), BnbDummyOptim(second.parameters(), lr=0.5))
    assert len(a.param_groups[0]["params"]) == 5 and b.param_groups[0]["lr"] == 0.5


def test_a_parameter_that_would_not_train_is_an_error_in_prepare():
    model = Model()
    with pytest.raises(bnb.VerificationError, match=r"AdamW8bit lacks 4 of 5 trainable parameters: embed.weight"):
        prepare(Accelerator(cpu=True), model, bnb.optim.AdamW8bit([model.body.weight]))


def test_a_prepare_that_fails_leaves_nothing_in_the_accelerator(tmp_path):
    accelerator, model, loader = Accelerator(cpu=True), Model(), data()
    kept = prepare(accelerator, torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    partial = bnb.optim.AdamW8bit([model.body.weight])
    with pytest.raises(bnb.VerificationError, match="AdamW8bit lacks"):
        prepare(accelerator, model, partial, loader, LambdaLR(partial, lambda step: 1.0))
    assert accelerator._optimizers == [kept]
    assert not (accelerator._models or accelerator._schedulers or accelerator._dataloaders)
    whole = bnb.optim.AdamW8bit(model.parameters())
    model, optimizer, loader = prepare(accelerator, model, whole, loader)
    assert accelerator._models == [model] and accelerator._optimizers == [kept, optimizer]
    train(accelerator, model, optimizer, loader)
    accelerator.save_state(tmp_path)
    assert len(torch.load(tmp_path / "optimizer_1.bin")["state"]) == 5


def test_a_scheduler_waits_for_the_real_optimizer():
    accelerator, placeholder = Accelerator(cpu=True), BnbDummyOptim(lr=1e-2)
    halve = DummyScheduler(placeholder, lr_scheduler_callable=lambda optimizer: LambdaLR(optimizer, lambda s: 0.5**s))
    model, optimizer, loader, scheduler = prepare(accelerator, Model(), placeholder, data(3), halve)
    train(accelerator, model, optimizer, loader, scheduler)
    assert optimizer.param_groups[0]["lr"] == 1e-2 / 8
    with pytest.raises(ValueError, match="needs lr_scheduler_callable"):
        prepare(accelerator, Model(), placeholder, DummyScheduler(placeholder))


@pytest.mark.parametrize("make", [Accelerator, BnbAccelerator])
def test_what_cannot_make_the_optimizer_of_a_placeholder_is_told_at_once(make):
    accelerator, placeholder = make(cpu=True), BnbDummyOptim(lr=0.1)
    uses = [
        lambda: accelerator.prepare_optimizer(placeholder),
        lambda: Accelerator.prepare(accelerator, Model(), placeholder),
        lambda: LambdaLR(placeholder, lambda step: 1.0),
        lambda: placeholder.zero_grad(set_to_none=True),
        placeholder.step,
    ]
    for use in uses:
        with pytest.raises(
            (RuntimeError, AttributeError),
            match=r"prepare\(accelerator, \.\.\.\) or BnbAccelerator\.prepare\(\.\.\.\) returns",
        ):
            use()
    assert repr(placeholder) == "BnbDummyOptim(lr=0.1)"
    assert not hasattr(placeholder, "param_groups")
    copies = copy.deepcopy(placeholder), pickle.loads(pickle.dumps(placeholder))
    assert all(one.options == {"lr": 0.1} for one in copies)


def test_the_wrapper_pickles():
    _, optimizer = prepare(Accelerator(cpu=True), Model(), BnbDummyOptim())
    assert pickle.loads(pickle.dumps(optimizer)).state_dict().keys() == optimizer.state_dict().keys()


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_saved_and_loaded_training_goes_on_bit_for_bit(tmp_path, precision):
    def start():
        torch.manual_seed(0)
        bnb.optim.GlobalOptimManager.get_instance().initialize()
        accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        model = Model()
        optimizer = BnbOptimizerPlugin(lr=1e-2).create_optimizer(model)
        scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
        return accelerator, *prepare(accelerator, model, optimizer, data(), scheduler)

    accelerator, model, optimizer, loader, scheduler = start()
    train(accelerator, model, optimizer, loader, scheduler, clip=0.5)
    accelerator.save_state(tmp_path)
    train(accelerator, model, optimizer, loader, scheduler, clip=0.5)
    reference = model

    accelerator, model, optimizer, loader, scheduler = start()
    accelerator.load_state(tmp_path)
    assert bits(model, optimizer) == {"embed.weight": 32, "body.weight": 32, "head.weight": 8}
    train(accelerator, model, optimizer, loader, scheduler, clip=0.5)
    assert same(model, reference)
    assert optimizer.optimizer.state[model.head.weight]["step"] == 8


def test_parameters_in_bfloat16_keep_their_state_through_prepare_and_load(tmp_path):
    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = prepare(accelerator, Model().bfloat16(), BnbDummyOptim(lr=1e-3), data())
    train(accelerator, model, optimizer, loader)
    accelerator.save_state(tmp_path)
    state = optimizer.optimizer.state[model.head.weight]
    accelerator.load_state(tmp_path)
    loaded = optimizer.optimizer.state[model.head.weight]
    assert loaded["exp_avg_codes"].dtype == torch.uint8 and loaded["exp_avg_absmax"].dtype == torch.float32
    assert all(torch.equal(torch.as_tensor(loaded[key]), torch.as_tensor(state[key])) for key in state)


def test_a_step_with_overflow_is_skipped_and_the_scaler_goes_on():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    model, optimizer, scheduler = Model(), None, None
    optimizer = BnbOptimizerPlugin(lr=1e-2).create_optimizer(model)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    model, optimizer, scheduler = prepare(accelerator, model, optimizer, scheduler)
    before = [p.detach().clone() for p in model.parameters()]
    for overflow in (True, False):
        accelerator.backward(model(torch.arange(8)).sum())
        if overflow:
            model.head.weight.grad[0, 0] = torch.inf
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        assert optimizer.step_was_skipped == overflow
        unchanged = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert unchanged == overflow and optimizer.param_groups[0]["lr"] == (1e-2 if overflow else 5e-3)


def test_explain_and_report_look_through_the_wrapper(manager):
    plugin = BnbOptimizerPlugin(optimizer="adamw8bit", overrides={"head.*": {"lr": 0.1}})
    _, optimizer = prepare(Accelerator(cpu=True), Model(), BnbDummyOptim(), plugin=plugin)
    assert manager.explain(optimizer)["head.weight"].lr == 0.1
    assert bnb.report(optimizer).to_dict() == bnb.report(optimizer.optimizer).to_dict()


def test_trackers_get_what_report_measures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("run")
    model, optimizer, loader = prepare(accelerator, Model(), BnbDummyOptim(), data(2))
    seen = []
    with bnb.monitor.watch(optimizer.optimizer, when=lambda: True, then=seen.append):
        train(accelerator, model, optimizer, loader)
    accelerator.log(bnb.monitor.as_metrics(seen[-1]), step=2)
    total = bnb.report(optimizer.optimizer).total
    accelerator.log({"optimizer/state_bytes": total.state, "optimizer/state_bytes_32bit": total.state_32bit}, step=2)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Scalars("optimizer/state_bytes")[0].value == total.state < total.state_32bit
    assert 0 < events.Scalars("optimizer_state/group0/quantization_error")[0].value < 0.1


class Engine:
    """An Accelerator as far as the choice of engine goes."""

    prepare = None

    def __init__(self, kind, config=None, **attributes):
        self.distributed_type = kind
        self.deepspeed_plugin = type("Plugin", (), {"deepspeed_config": config})
        vars(self).update(attributes)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Engine(DistributedType.MEGATRON_LM), "Megatron-LM builds an optimizer of its own"),
        (Engine(DistributedType.MULTI_GPU, fp8_backend="MSAMP"), "use another fp8 backend"),
        (
            Engine(DistributedType.DEEPSPEED, {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}),
            "zero_force_ds_cpu_optimizer: false",
        ),
        (
            Engine(
                DistributedType.FSDP,
                is_fsdp2=False,
                state=type("State", (), {"fsdp_plugin": type("Plugin", (), {"use_orig_params": False})}),
            ),
            "fsdp_use_orig_params: true",
        ),
    ],
)
def test_engines_that_replace_the_optimizer_are_refused_before_they_do(engine, message):
    with pytest.raises(bnb.VerificationError, match=message):
        prepare(engine, Model(), BnbDummyOptim())
