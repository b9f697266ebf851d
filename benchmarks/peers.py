"""Which optimizers there are here, and how each is built. Knows nothing of time and memory.

Every peer gets the same options for a rule; the rest is its own default, as a user would have it. A library that is
not installed, or that fails when imported, is left out with a reason.
"""

import importlib
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType

import torch
from torch import nn

import torch_bnb as bnb

Build = Callable[..., torch.optim.Optimizer]

RULES = {
    optimizer.rule: optimizer
    for optimizer in (getattr(bnb.optim, name) for name in sorted(bnb.optim.__all__))
    if "rule" in vars(optimizer)
}
"""Our optimizers, by the names of their rules."""

OPTIONS = {
    "adamw": {"weight_decay": 0.01},
    "lamb": {"weight_decay": 0.01},
    "ademamix": {"weight_decay": 0.01},
    "sgd": {"momentum": 0.9},
    "lars": {"momentum": 0.9},
}
"""What a rule is given beside a small learning rate."""

OURS, TORCH_FUSED, TORCH_FOREACH, BITSANDBYTES, TORCHAO, DEEPSPEED = (
    "torch_bnb",
    "torch-fused",
    "torch-foreach",
    "bitsandbytes",
    "torchao",
    "deepspeed",
)
BITSANDBYTES_PAGED = "bitsandbytes paged"
"""With state in host memory, which only a GPU's benchmark asks for."""

LIBRARIES = (TORCH_FUSED, TORCH_FOREACH, BITSANDBYTES, TORCHAO, DEEPSPEED)


@dataclass(frozen=True)
class Peer:
    """One optimizer in one width of state, ours included."""

    library: str
    bits: int | None
    """Of its state; None: state in the parameter's dtype."""
    rules: Mapping[str, Build] = field(hash=False)
    """Builds it from parameters and options, by rule."""

    @property
    def name(self) -> str:
        """For people: ``bitsandbytes 8-bit``."""
        return self.library.replace("torch-", "torch ") + (f" {self.bits}-bit" if self.bits else "")

    def build(self, rule: str, params: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """A fresh optimizer."""
        return self.rules[rule](params, lr=1e-4, **OPTIONS.get(rule, {}))


def _module(name: str) -> ModuleType:
    """Imports a library without what it has to say of GPUs."""
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(name)
    finally:
        logging.disable(logging.NOTSET)


def _torch(option: str) -> list[Peer]:
    found = {}
    for rule, ours in RULES.items():
        theirs = getattr(torch.optim, ours.__name__, None)
        if theirs is not None and option in inspect.signature(theirs).parameters:
            found[rule] = partial(theirs, **{option: True})
    return [Peer(f"torch-{option}", None, found)]


def _bitsandbytes() -> list[Peer]:
    optim = _module("bitsandbytes").optim
    return [
        Peer(BITSANDBYTES, bits, {rule: getattr(optim, f"{ours.__name__}{bits}bit") for rule, ours in RULES.items()})
        for bits in (8, 32)
    ]


def _bitsandbytes_paged() -> list[Peer]:
    optim = _module("bitsandbytes").optim
    found = {rule: getattr(optim, f"Paged{ours.__name__}8bit", None) for rule, ours in RULES.items()}
    return [Peer(BITSANDBYTES_PAGED, 8, {rule: build for rule, build in found.items() if build})]


def _torchao() -> list[Peer]:
    optim = _module("torchao.optim")
    return [Peer(TORCHAO, 8, {"adam": optim.Adam8bit, "adamw": optim.AdamW8bit})]


def _deepspeed() -> list[Peer]:
    optimizer = _module("deepspeed.ops.adam").DeepSpeedCPUAdam
    return [Peer(DEEPSPEED, 32, {name: partial(optimizer, adamw_mode=name == "adamw") for name in ("adam", "adamw")})]


_FIND: dict[str, Callable[[], list[Peer]]] = {
    TORCH_FUSED: partial(_torch, "fused"),
    TORCH_FOREACH: partial(_torch, "foreach"),
    BITSANDBYTES: _bitsandbytes,
    BITSANDBYTES_PAGED: _bitsandbytes_paged,
    TORCHAO: _torchao,
    DEEPSPEED: _deepspeed,
}


def find(libraries: Iterable[str], bits: Iterable[int]) -> tuple[list[Peer], dict[str, str]]:
    """Ours in each width, and the peers of some libraries.

    Args:
        libraries: From `LIBRARIES`.
        bits: Widths of state, 8 or 32; peers whose state has the parameter's dtype are there with either.

    Returns:
        (ours first, then the peers, and by library why it is left out).
    """
    wanted = sorted(bits)
    found = [
        Peer(OURS, width, {rule: partial(ours, optim_bits=width) for rule, ours in RULES.items()}) for width in wanted
    ]
    missing = {}
    for library in libraries:
        try:
            found += [peer for peer in _FIND[library]() if peer.bits is None or peer.bits in wanted]
        except ModuleNotFoundError as error:
            missing[library] = f"not installed: no module named {error.name!r}"
        except Exception as error:
            missing[library] = f"its import fails: {type(error).__name__}: {error}"
    return found, missing


def in_host_memory() -> Peer:
    """Ours, with 8-bit state in host memory."""
    return Peer(
        f"{OURS} paged", 8, {rule: partial(ours, optim_bits=8, state_device="cpu") for rule, ours in RULES.items()}
    )


def one(library: str, bits: int | None) -> Peer:
    """A single optimizer.

    Args:
        library: `OURS`, or one of `LIBRARIES`.
        bits: As in `Peer`.

    Raises:
        LookupError: It is not here; the message says why.
    """
    peers, missing = find([] if library == OURS else [library], [8, 32])
    for peer in peers:
        if (peer.library, peer.bits) == (library, bits):
            return peer
    raise LookupError(f"{library}, {bits} bits: {missing.get(library, 'there is none')}")
