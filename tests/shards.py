"""What several processes run in the tests of sharded state: a module of its own, so that they can import it."""

import contextlib
import os
import signal
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from cases import CASES, CONFIGS
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import torch_bnb as bnb

warnings.filterwarnings("ignore")

SHAPES = {
    "whole blocks": (8, 256),
    "uneven": (5, 512),
    "fewer rows than processes": (1, 2048),
    "odd rows": (31, 77),
    "conv": (20, 16, 3, 3),
    "bias": (3000,),
    "small": (7,),
    "scalar": (),
}

OPTIONS = {
    "plain": {},
    "max_unorm": {"max_unorm": 0.01},
    "percentile": {"percentile_clipping": 50},
    "chance": {"state_rounding": "stochastic", "weight_rounding": "stochastic", "seed": 3},
}


def numbers(seed, scale, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: (scale * torch.randn(shape, generator=generator)).to(dtype) for name, shape in SHAPES.items()}


def trained(make, place=lambda tensor: tensor, steps=3, dtype=torch.float32):
    """Parameters of all shapes after some steps with given gradients."""
    params = {name: nn.Parameter(place(value)) for name, value in numbers(99, 1.0, dtype).items()}
    optimizer = make(list(params.values()))
    for step in range(steps):
        for name, value in numbers(step, 0.1, dtype).items():
            params[name].grad = place(value)
        optimizer.step()
    return params, optimizer


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(one, other):
    return torch.equal(*(torch.nan_to_num(t.detach().float()) for t in (one, other)))


def differences(expected, got, what):
    """Where two trainings have not the very same parameters, states and counts."""
    (params, optimizer), (others, other) = expected, got
    found = []
    for name, parameter in params.items():
        if not same(parameter, whole(others[name])):
            found.append(f"{what}: {name}")
        ours, theirs = optimizer.state[parameter], other.state[others[name]]
        if ours.keys() != theirs.keys():
            found.append(f"{what}: {name}: {sorted(ours)} {sorted(theirs)}")
            continue
        for key, value in ours.items():
            equal = same(value, whole(theirs[key])) if isinstance(value, torch.Tensor) else value == theirs[key]
            if not equal:
                found.append(f"{what}: {name}: {key}")
    return found


def place_by(mesh, placements):
    def place(tensor):
        return (
            distribute_tensor(tensor, mesh, placements)
            if tensor.dim()
            else distribute_tensor(tensor, mesh, [Replicate()] * mesh.ndim)
        )

    return place


def same_bits(rank, names):
    """Every rule: sharded, replicated and alone."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    found = []
    for name, config in CONFIGS:
        if name not in names:
            continue
        case = CASES[name]
        for option, extra in OPTIONS.items():
            dtype = torch.bfloat16 if option == "chance" else torch.float32

            def make(params, case=case, config=config, extra=extra):
                options = {"lr": case.lr, "optim_bits": 8, "min_8bit_size": 1024, "block_grid": "rows"}
                return case.optimizer(params, **options, **config, **extra)

            alone = trained(make, dtype=dtype)
            for placements in ([Shard(0)], [Replicate()]):
                together = trained(make, place_by(mesh, placements), dtype=dtype)
                found += differences(alone, together, f"{name} {config} {option} {placements}")
    return found


def hybrid(rank):
    """Replicate x shard, shards of shards, and shards of the second dimension."""
    found = []
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    options = {"optim_bits": 8, "min_8bit_size": 1024, "block_grid": "rows", "lr": 0.01}
    for cls, extra in ((bnb.optim.AdamW, OPTIONS["chance"]), (bnb.optim.LAMB, {"max_unorm": 0.1})):

        def make(params, cls=cls, extra=extra):
            return cls(params, **options, **extra)

        alone = trained(make)
        for placements in ([Replicate(), Shard(0)], [Shard(0), Shard(0)]):
            together = trained(make, place_by(mesh, placements))
            found += differences(alone, together, f"{cls.__name__} {placements}")
        columns = [p for p in SHAPES if SHAPES[p][1:2] in ((512,), (2048,))]  # cut between blocks by two
        place = place_by(mesh, [Replicate(), Shard(1)])
        params = {name: nn.Parameter(place(numbers(99, 1.0)[name])) for name in columns}
        both = {name: nn.Parameter(numbers(99, 1.0)[name]) for name in columns}
        for some in (params, both):
            optimizer = make(list(some.values()))
            for step in range(3):
                for name, parameter in some.items():
                    grad = numbers(step, 0.1)[name]
                    parameter.grad = place(grad) if some is params else grad
                optimizer.step()
        found += [f"{cls.__name__} columns {name}" for name in columns if not same(both[name], whole(params[name]))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cut = nn.Parameter(place_by(mesh, [Replicate(), Shard(1)])(torch.randn(16, 300)))
        cut.grad = torch.ones_like(cut)
        optimizer = bnb.optim.AdamW([cut], optim_bits=8)
        optimizer.step()
    return found, sorted(optimizer.state[cut]), [str(warning.message) for warning in caught]


class Net(nn.Module):
    """Rows of whole blocks and others, one tensor with fewer rows than processes, a tied and a frozen weight."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 64)
        self.inner = nn.Sequential(nn.Linear(64, 131), nn.Tanh(), nn.Linear(131, 256), nn.LayerNorm(256))
        self.few = nn.Linear(256, 1)
        self.head = nn.Linear(256, 64, bias=False)
        self.out = nn.Linear(64, 40, bias=False)
        self.out.weight = self.embed.weight
        self.frozen = nn.Linear(64, 64)
        self.frozen.requires_grad_(False)

    def forward(self, tokens):
        x = self.inner(self.frozen(self.embed(tokens)).mean(1))
        return self.out(self.head(x) * (1 + self.few(x)))


def net():
    torch.manual_seed(0)
    return Net()


def sharded_net(mesh=None):
    model = net()
    fully_shard(model.inner, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def learn(model, optimizer, steps, seen=None):
    """Steps over this process's share of 12 sequences."""
    rank, size = (dist.get_rank(), dist.get_world_size()) if seen is None else seen
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 40, (12, 6), generator=generator)
        share = tokens[rank * 12 // size : (rank + 1) * 12 // size]
        nn.functional.cross_entropy(model(share[:, :5]), share[:, 5]).backward()
        optimizer.step()
        optimizer.zero_grad()


def weights_of(model):
    return {name: whole(value).clone() for name, value in model.state_dict().items()}


def adamw(model, **options):
    return bnb.optim.AdamW(trainable(model), **{"lr": 1e-2, "optim_bits": 8, "min_8bit_size": 1024, **options})


KINDS = {
    "sharded": StateDictOptions(),
    "full": StateDictOptions(full_state_dict=True),
    "offloaded": StateDictOptions(full_state_dict=True, cpu_offload=True),
}


def give(model, optimizer, steps):
    """Steps with given gradients, the same on any number of processes."""
    for step in steps:
        for _, parameter in model.named_parameters():
            if parameter.requires_grad:
                grad = numbers_like(parameter, step)
                sharded = isinstance(parameter, DTensor)
                parameter.grad = (
                    distribute_tensor(grad, parameter.device_mesh, parameter.placements) if sharded else grad
                )
        optimizer.step()
        optimizer.zero_grad()


def numbers_like(tensor, seed):
    return 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))


def kept(model, optimizer):
    """Everything in the optimizer's state, whole."""
    return {
        (name, key): whole(value).clone() if isinstance(value, torch.Tensor) else value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def save(rank, folder):
    """Trains two steps, saves in every kind, and goes on once with given gradients and once with its own."""
    model = sharded_net()
    optimizer = adamw(model)
    learn(model, optimizer, range(2))
    for kind, options in KINDS.items():
        weights, state = get_state_dict(model, optimizer, options=options)
        if kind == "sharded":
            dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{kind}")
        elif rank == 0:
            torch.save({"model": weights, "optimizer": state}, f"{folder}/{kind}.pt")
    result = {"state": kept(model, optimizer)}
    learn(model, optimizer, range(2, 4))
    result["learned"] = weights_of(model)
    load_into(model, optimizer, folder, "sharded")
    give(model, optimizer, range(2, 4))
    return {**result, "given": weights_of(model)}


def load_into(model, optimizer, folder, kind):
    options = KINDS[kind]
    if kind == "sharded":
        weights, state = get_state_dict(model, optimizer, options=options)
        dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/{kind}")
    else:
        saved = torch.load(f"{folder}/{kind}.pt", weights_only=True)
        weights, state = saved["model"], saved["optimizer"]
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options)


def resume(rank, folder):
    results = {}
    for kind in KINDS:
        model = sharded_net()
        optimizer = adamw(model)
        load_into(model, optimizer, folder, kind)
        results[kind] = {"state": kept(model, optimizer)}
        give(model, optimizer, range(2, 4))
        results[kind]["given"] = weights_of(model)
        load_into(model, optimizer, folder, kind)
        learn(model, optimizer, range(2, 4))
        results[kind]["learned"] = weights_of(model)
    return results


def state_without_a_step(rank):
    """What is done to an optimizer that has not stepped by asking for its state, and by having it made."""

    def start():
        model = sharded_net()
        options = {"momentum": 0.9, "weight_decay": 0.1, "percentile_clipping": 50, "min_8bit_size": 1024}
        return model, bnb.optim.SGD(trainable(model), lr=1e-2, optim_bits=8, **options)

    other, fresh = start()
    learn(other, fresh, range(2))
    results = []
    for make in (get_optimizer_state_dict, lambda model, optimizer: optimizer.make_state()):
        model, optimizer = start()
        before = weights_of(model)
        make(model, optimizer)
        result = {
            "weights": equal(before, weights_of(model)),
            "histories": all(bool(optimizer.state[p]["grad_norms"].isnan().all()) for p in trainable(model)),
            "counts": {optimizer.state[p]["step"] for p in trainable(model)},
        }
        learn(model, optimizer, range(2))
        results.append({**result, "as if it had not been": equal(weights_of(model), weights_of(other))})
    return results


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def other_bits(rank, folder):
    """What loading an 8-bit checkpoint into 32 bits does: from shards, and from a whole one, and back."""
    model = sharded_net()
    optimizer = adamw(model, optim_bits=32)
    try:
        load_into(model, optimizer, folder, "sharded")
        said = "loaded"
    except CheckpointException as error:
        said = f"{type(error).__name__}: {error}"
    load_into(model, optimizer, folder, "full")
    in_32 = kept(model, optimizer)
    weights, state = get_state_dict(model, optimizer, options=KINDS["full"])
    eight = adamw(model)
    set_state_dict(model, eight, model_state_dict=weights, optim_state_dict=state, options=KINDS["full"])
    back = kept(model, eight)  # in 32 bits until the step
    give(model, eight, [5])
    return said, in_32, back, {key for _, key in kept(model, eight)}


def grids(rank, folder):
    """A whole checkpoint of the flat grid into shards."""
    saved = torch.load(f"{folder}/flat.pt", weights_only=True)
    model = sharded_net()
    optimizer = adamw(model)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=KINDS["full"]
    )
    give(model, optimizer, range(2, 3))
    return kept(model, optimizer)


def broadcast(rank, folder):
    """A whole checkpoint of the grid of rows, of which one process gives all others their parts."""
    saved = torch.load(f"{folder}/rows.pt", weights_only=True)
    model = sharded_net()
    optimizer = adamw(model)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_state_dict(
        model, optimizer, model_state_dict=saved["model"], optim_state_dict=saved["optimizer"], options=options
    )
    return kept(model, optimizer)


def swapped_after_a_step(rank):
    """fully_shard under an optimizer that has stepped already, as a framework does it."""
    model = net()
    optimizer = adamw(model, block_grid="rows")
    learn(model, optimizer, range(2), seen=(0, 1))
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    fully_shard(model.inner)
    fully_shard(model)
    now = dict(model.named_parameters())
    optimizer.param_groups[0]["params"] = [now[name] for name in names]
    give(model, optimizer, range(2, 4))
    alone = net()
    other = adamw(alone, block_grid="rows")
    learn(alone, other, range(2), seen=(0, 1))
    give(alone, other, range(2, 4))
    held = {id(p) for p in now.values()}
    return {
        "same": all(torch.equal(whole(now[name]), dict(alone.named_parameters())[name]) for name in names),
        "orphans": sum(id(p) not in held for p in optimizer.state),
        "steps": {state["step"] for state in optimizer.state.values()},
    }


def own_layouts(rank):
    """Norms of parameters whose parts lie in memory otherwise on each process, beside those of whole ones."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    wrong = []
    for name, options in (("lamb", {}), ("adamw", {"max_unorm": 0.01}), ("adamw", {"percentile_clipping": 10})):
        alone, parts = [], []
        for i in range(3):
            generator = torch.Generator().manual_seed(i)
            weight, grad = (10.0**i * torch.randn(3, 64, generator=generator) for _ in range(2))
            alone.append(nn.Parameter(weight.clone()))
            alone[-1].grad = grad.clone()
            parts.append(nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)])))
            here = distribute_tensor(grad, mesh, [Shard(0)]).to_local()
            if i != 1:
                here = here.t().contiguous().t()  # of one row that is no other layout, of two it is
            parts[-1].grad = DTensor.from_local(here, mesh, [Shard(0)], shape=weight.shape, stride=weight.stride())
        for params in (alone, parts):
            CASES[name].optimizer(params, lr=0.1, **options).step()
        close = [torch.allclose(p, whole(q), rtol=1e-4) for p, q in zip(alone, parts, strict=True)]
        wrong += [] if all(close) else [(name, close)]
    idle = CASES["adamw"].optimizer(parts, lr=0.0)
    idle.step()  # all processes are asked whether any gradient is there, before it only makes state
    return wrong, {state["step"] for state in idle.state.values()}


def disagreement(rank):
    """Ranks with different overrides, then a gradient that is not sharded, then one absmax for a sharded tensor."""
    said = []
    model = sharded_net()
    if rank == 1:
        bnb.optim.GlobalOptimManager.get_instance().override_named(model, {"head.weight": {"optim_bits": 32}})
    bnb.optim.GlobalOptimManager.get_instance().register_parameters(model)
    optimizer = adamw(model)
    try:
        learn(model, optimizer, [0])
    except ValueError as error:
        said.append(str(error))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parameter = nn.Parameter(distribute_tensor(torch.ones(8, 512), mesh, [Shard(0)]))
    for options, grad in (({}, torch.ones(8, 512)), ({"block_wise": False}, torch.ones_like(parameter))):
        # torch itself refuses p.grad of another type; frameworks that assign .data get past it
        optimizer = bnb.optim.AdamW([parameter], optim_bits=8, **options)
        try:
            parameter.grad = grad
            optimizer.step()
        except (ValueError, NotImplementedError) as error:
            said.append(str(error))
    return said


def killed_while_saving(rank, folder):
    """Saves twice; one process is killed in the second save. The other is ended by the test's own time-out on it."""
    model = sharded_net()
    optimizer = adamw(model)
    learn(model, optimizer, range(2))
    weights, state = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/first")
    learn(model, optimizer, range(2, 3))
    if rank == 1:

        class Deadly(dcp.FileSystemWriter):
            def write_data(self, plan, planner):
                os.kill(os.getpid(), signal.SIGKILL)

        dcp.save(
            dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)),
            storage_writer=Deadly(f"{folder}/second"),
        )
    else:
        dcp.save(
            dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True)),
            checkpoint_id=f"{folder}/second",
        )


def mixed_and_hooked(rank):
    """A model partly sharded and partly not, with hooks, accumulated gradients and a closure."""
    model = net()
    fully_shard(model.inner)
    optimizer = adamw(model)
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 40, (4, 6), generator=generator)
        for last, half in enumerate(tokens.chunk(2)):
            model.inner.set_requires_gradient_sync(bool(last))
            nn.functional.cross_entropy(model(half[:, :5]), half[:, 5]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return calls, weights_of(model), {key for p in trainable(model) for key in optimizer.state[p]}


def read_whole(folder, model, optimizer):
    """A sharded checkpoint in a process that has no process group."""
    weights, state = get_state_dict(model, optimizer)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    return optimizer.state


def alone_in_a_group(rank, processes, folder):
    """The same as `processes.run` for a process that is to be killed."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    killed_while_saving(rank, folder)


def first_fsdp(rank):
    """FSDP1 with portable checkpoints in shards; norms that it cannot give; an optimizer of what it has flattened."""
    from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

    def start(rule=bnb.optim.AdamW, **options):
        model = net()
        model.out = nn.Linear(64, 40, bias=False)
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
        optimizer = rule(trainable(model), lr=1e-2, optim_bits=8, min_8bit_size=1024, **options)
        optimizer.checkpoint_format = "portable"
        return model, optimizer

    def weights(model):
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    model, optimizer = start()
    learn(model, optimizer, range(2))
    kinds = {key for p in trainable(model) for key in optimizer.state.get(p, {})}
    sizes = [p.numel() for p in trainable(model)]
    before = weights(model)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
        saved = FullyShardedDataParallel.optim_state_dict(model, optimizer)
    learn(model, optimizer, range(2, 4))
    other, fresh = start()
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(before[name])
    with FullyShardedDataParallel.state_dict_type(other, StateDictType.SHARDED_STATE_DICT):
        fresh.load_state_dict(FullyShardedDataParallel.optim_state_dict_to_load(other, fresh, saved))
    learn(other, fresh, range(2, 4))
    said = []
    for rule, options in ((bnb.optim.LAMB, {}), (bnb.optim.AdamW, {"max_unorm": 0.1}), (None, {})):
        try:
            if rule is None:
                flat = nn.Sequential(nn.Linear(64, 64))
                stale = bnb.optim.AdamW(flat.parameters())
                flat = FullyShardedDataParallel(flat, use_orig_params=False, device_id=torch.device("cpu"))
                flat(torch.randn(2, 64)).sum().backward()
                stale.step()
            else:
                learn(*start(rule, **options), [0])
        except (NotImplementedError, ValueError) as error:
            said.append(str(error))
    return {"same": equal(weights(model), weights(other)), "kinds": kinds, "sizes": sizes, "said": said}


def data_parallel(rank):
    """DDP, and with the state itself spread by ZeroRedundancyOptimizer."""
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    results = []
    for zero in (False, True):
        model = net()
        model.frozen.requires_grad_(False)
        wrapped = DistributedDataParallel(model)
        options = {"lr": 1e-2, "optim_bits": 8, "min_8bit_size": 1024}
        if zero:
            optimizer = ZeroRedundancyOptimizer(trainable(model), bnb.optim.AdamW, **options)
        else:
            optimizer = bnb.optim.AdamW(trainable(model), **options)
            bnb.check_agreement(optimizer, [dist.group.WORLD])
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            tokens = torch.randint(0, 40, (2, 2, 3, 6), generator=generator)[rank]
            for last, half in enumerate(tokens):
                with contextlib.nullcontext() if last else wrapped.no_sync():
                    nn.functional.cross_entropy(wrapped(half[:, :5]), half[:, 5]).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(weights_of(model))
    if rank == 1:
        optimizer = bnb.optim.AdamW([{"params": trainable(model), "lr": 0.5}])
    else:
        optimizer = bnb.optim.AdamW(trainable(model), lr=0.1)
    try:
        bnb.check_agreement(optimizer, [dist.group.WORLD])
        said = "nothing"
    except ValueError as error:
        said = str(error)
    return *results, said
