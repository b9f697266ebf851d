"""What several processes run in the tests of tensor parallelism: a module of its own, so that they can import it."""

import warnings

import torch
import torch.distributed.checkpoint as dcp
from shards import KINDS, kept, load_into, weights_of, whole
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import torch_bnb as bnb

PROCESSES = {"tensor": 2, "sequence": 2, "mesh": 4}
"""By layout: tensor parallelism; the same with what lies between its layers cut along the sequence; that in FSDP2."""

VOCABULARY, UNEVEN, WIDTH, HIDDEN = 64, 66, 256, 1024
"""Of an uneven vocabulary every process of two has the same share, of four not."""


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))

    def forward(self, x):
        q, k, v = (each(x).unflatten(-1, (-1, 64)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.o(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """One block. Two weights are cut in columns: that of `down` between blocks of 256, that of `o` through them."""

    def __init__(self, vocabulary):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, WIDTH)
        self.before, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.between, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.head = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(self.before(x))
        x = x + self.down(nn.functional.gelu(self.up(self.between(x))))
        return self.head(x)


def transformer(vocabulary=VOCABULARY):
    torch.manual_seed(0)
    return Transformer(vocabulary)


def parallel(model, mesh, sequence):
    between = Shard(1) if sequence else Replicate()
    plan = {
        "embed": RowwiseParallel(input_layouts=Replicate(), output_layouts=between),
        **{f"attention.{name}": ColwiseParallel() for name in "qkv"},
        "attention.o": RowwiseParallel(output_layouts=between),
        "up": ColwiseParallel(input_layouts=between),
        "down": RowwiseParallel(output_layouts=between),
        "head": ColwiseParallel(input_layouts=between, output_layouts=Replicate()),
    }
    if sequence:
        plan["before"] = plan["between"] = SequenceParallel()
        plan["attention"] = PrepareModuleInput(input_layouts=between, desired_input_layouts=Replicate())
    return parallelize_module(model, mesh, plan)


def lay_out(model, layout):
    """Cuts a model up as a layout says."""
    if layout != "mesh":
        return parallel(model, init_device_mesh("cpu", (2,)), layout == "sequence")
    return within_fsdp(model, (2, 2))


def within_fsdp(model, shape):
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
    return fully_shard(parallel(model, mesh["tensor"], sequence=True), mesh=mesh["data"])


def built(model, cls=bnb.optim.AdamW, **options):
    return cls(model.named_parameters(), **{"lr": 2e-3, "optim_bits": 8, "min_8bit_size": 1024, **options})


def alone(cls=bnb.optim.AdamW, vocabulary=VOCABULARY, **options):
    """The whole model and its optimizer, with 32 bits where the shards of the parallel one cut blocks."""
    model = transformer(vocabulary)
    bnb.optim.GlobalOptimManager.get_instance().override_config(model.attention.o.weight, "optim_bits", 32)
    return model, built(model, cls, block_grid="rows", **options)


def loss_of(model, step):
    """Of sequences that count: all of them, or the share that FSDP2's mesh dimension leaves to this process."""
    vocabulary = model.embed.num_embeddings
    tokens = torch.randint(0, vocabulary, (4, 1), generator=torch.Generator().manual_seed(step)) + torch.arange(9)
    mesh = getattr(model.head.weight, "device_mesh", None)
    if mesh is not None and mesh.ndim == 2:
        tokens = tokens.chunk(mesh.size(0))[mesh.get_local_rank(0)]
    tokens %= vocabulary
    return nn.functional.cross_entropy(model(tokens[:, :8]).flatten(0, 1), tokens[:, 1:].flatten())


def learn(model, optimizer, steps):
    """Trains; by step the loss and the whole gradients."""
    seen = []
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()
        seen.append((loss.item(), {name: gradient_of(p) for name, p in model.named_parameters()}))
        optimizer.step()
        optimizer.zero_grad()
    return seen


def gradient_of(parameter):
    """The whole gradient, of the parts that step: copies of it on several processes need not be the same bits."""
    grad = parameter.grad
    if isinstance(grad, DTensor):
        grad = grad.redistribute(parameter.device_mesh, parameter.placements)
    return whole(grad).clone()


def give(model, optimizer, seen):
    """Steps of a whole model with the gradients of another."""
    for _, grads in seen:
        for name, parameter in model.named_parameters():
            parameter.grad = grads[name]
        optimizer.step()


def everything(model, optimizer):
    """The optimizer's state and the weights, whole."""
    return {**kept(model, optimizer), **weights_of(model)}


def differences(expected, got):
    if expected.keys() != got.keys():
        return sorted(map(str, expected.keys() ^ got.keys()))
    return [key for key, value in expected.items() if not same(value, got[key])]


def same(one, other):
    if not isinstance(one, torch.Tensor):
        return one == other
    return torch.equal(torch.nan_to_num(one), torch.nan_to_num(other))  # histories begin with NaN


TRAININGS = {
    "8 bits": (bnb.optim.AdamW, {}),
    "32 bits": (bnb.optim.AdamW, {"optim_bits": 32}),
    "norms of the rule": (bnb.optim.LAMB, {}),
    "max_unorm": (bnb.optim.AdamW, {"max_unorm": 0.01}),
    "percentile": (bnb.optim.AdamW, {"percentile_clipping": 30}),
    "chance": (bnb.optim.AdamW, {"state_rounding": "stochastic", "seed": 3}),
}


def trained(rank, layout, names):
    """Training in parallel, beside a whole model that gets the same gradients, and one that learns by itself."""
    found = {}
    for name in names:
        cls, options = TRAININGS[name]
        model = lay_out(transformer(UNEVEN), layout)
        optimizer = built(model, cls, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            seen = learn(model, optimizer, range(4))
        other, others = alone(cls, UNEVEN, **options)
        give(other, others, seen)
        itself = learn(*alone(cls, UNEVEN, **options), range(4))
        found[name] = {
            "differences": differences(everything(other, others), everything(model, optimizer)),
            "losses": torch.tensor([loss for loss, _ in seen]),
            "alone": torch.tensor([loss for loss, _ in itself]),
            "said": [str(warning.message) for warning in caught if "32-bit state" in str(warning.message)],
            "bytes": bytes_of(model, optimizer, cls, options),
        }
    return found


def bytes_of(model, optimizer, cls, options):
    """Of all state: planned from the model, planned from the optimizer, reported, and what is here."""
    values = [value for state in optimizer.state.values() for value in state.values() if not isinstance(value, int)]
    here = [value.to_local() if isinstance(value, DTensor) else value for value in values]
    plan = bnb.plan(model, cls, **{"optim_bits": 8, "min_8bit_size": 1024, **options}).total.state
    report = bnb.report(optimizer).total
    return plan, report.planned, report.state, sum(tensor.nbytes for tensor in here)


def of_one_process_each(rank):
    """FSDP2 and tensor parallelism in meshes of which one dimension has a single process."""
    found = {}
    for shape in ((2, 1), (1, 2)):
        model = within_fsdp(transformer(), shape)
        optimizer = built(model)
        seen = learn(model, optimizer, range(2))
        other, others = alone()
        if shape == (2, 1):  # no block is cut
            bnb.optim.GlobalOptimManager.get_instance().forget_config(other.attention.o.weight)
        give(other, others, seen)
        found[shape] = differences(everything(other, others), everything(model, optimizer))
    return found


def hinted(rank, layout):
    """Hints before the model is cut, after it, and between steps: what `explain` says, what is kept, what moves."""
    manager = bnb.optim.GlobalOptimManager.get_instance()
    model = transformer()
    manager.register_parameters(model)
    manager.register_module_override(model.attention.q, "weight", {"optim_bits": 32})
    manager.override_named(model, {"*.k.weight": {"lr": 0.0}, nn.LayerNorm: {"weight_decay": 0.0}})
    manager.override_config(model.down.weight, "optim_bits", 32)
    lay_out(model, layout)
    manager.override_config(model.head.weight, key_value_dict={"optim_bits": 32, "betas": (0.8, 0.9)})
    manager.override_config(model.down.bias, "lr", 0.0)
    optimizer = built(model)
    rows = {row.name: (row.bits, row.overrides, row.winners) for row in manager.explain(optimizer)}
    before = weights_of(model)
    learn(model, optimizer, range(2))
    still = [name for name, weight in weights_of(model).items() if torch.equal(weight, before[name])]
    first = forms(model, optimizer)
    manager.override_config(model.up.weight, "optim_bits", 32)
    manager.forget_config(model.down.weight)
    learn(model, optimizer, range(2, 3))
    steps = {state["step"] for state in optimizer.state.values()}
    return rows, still, first, forms(model, optimizer), steps, bytes_of(model, optimizer, bnb.optim.AdamW, {})


def forms(model, optimizer):
    """By parameter, the bits of its state."""
    return {
        name: 8 if "exp_avg_codes" in optimizer.state[parameter] else 32 for name, parameter in model.named_parameters()
    }


def save(rank, layout, folder):
    """Trains, saves, and trains on: what was saved, the gradients after it, what came of them."""
    model = lay_out(transformer(), layout)
    optimizer = built(model)
    learn(model, optimizer, range(2))
    write(model, optimizer, folder)
    saved = everything(model, optimizer)
    return saved, learn(model, optimizer, range(2, 4)), everything(model, optimizer)


def write(model, optimizer, folder):
    """A sharded checkpoint and a full one."""
    weights, state = get_state_dict(model, optimizer, options=KINDS["sharded"])
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/sharded")
    weights, state = get_state_dict(model, optimizer, options=KINDS["full"])
    if state:
        torch.save({"model": weights, "optimizer": state}, f"{folder}/full.pt")


def resume(rank, layout, folder, kinds=("sharded", "full")):
    """By kind of checkpoint: what was loaded, what came of training on, or what was said."""
    found = {}
    for kind in kinds:
        model = lay_out(transformer(), layout)
        optimizer = built(model)
        learn(model, optimizer, range(7, 8))  # all of this must go
        try:
            load_into(model, optimizer, folder, kind)
        except IndexError as error:
            found[kind] = str(error)
            continue
        loaded = everything(model, optimizer)
        learn(model, optimizer, range(2, 4))
        found[kind] = loaded, everything(model, optimizer)
    return found


def cut_after_steps(rank, layout):
    """A model that is cut up when it has trained, as a framework does it."""
    model, optimizer = alone()
    learn(model, optimizer, range(2))
    before = everything(model, optimizer)
    lay_out(model, layout)
    optimizer.param_groups[0]["params"] = [parameter for _, parameter in model.named_parameters()]
    optimizer.state_dict()
    found = differences(before, everything(model, optimizer))
    learn(model, optimizer, range(2, 3))
    return found, {state["step"] for state in optimizer.state.values()}


def cut_again_after_steps(rank):
    """A model in parallel that FSDP2 cuts again when it has trained."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    model = parallel(transformer(), mesh["tensor"], sequence=False)
    optimizer = built(model)
    learn(model, optimizer, range(1))
    fully_shard(model, mesh=mesh["data"])
    optimizer.param_groups[0]["params"] = [parameter for _, parameter in model.named_parameters()]
    try:
        learn(model, optimizer, range(1, 2))
    except ValueError as error:
        return str(error)


def partial_sums(rank):
    """Gradients that are sums over the processes, while one process, and not the other, must plan a step anew."""
    mesh = init_device_mesh("cpu", (2,))
    scale = nn.Parameter(distribute_tensor(torch.ones(64), mesh, [Replicate()]))
    weight = nn.Parameter(distribute_tensor(torch.ones(3, 64), mesh, [Shard(0)]))
    optimizer = bnb.optim.SGD([scale, weight], lr=0.5)
    for step in range(3):
        here = torch.ones(2 - rank, 64)
        if step == 0:
            here = here.t().contiguous().t()  # of one row that is no other layout, of two it is
        weight.grad = DTensor.from_local(here, mesh, [Shard(0)], shape=weight.shape, stride=weight.stride())
        scale.grad = DTensor.from_local(torch.full((64,), 1.0 + rank), mesh, [Partial()])
        optimizer.step()
    return whole(scale.detach()), whole(weight.detach())
