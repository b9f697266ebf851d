"""What a step must know of whole tensors when processes hold parts of them: norms, added up over the processes.

One small sum for all tensors together, and none where nobody asks. Knows calls; nothing of meshes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torch_bnb import ops
from torch_bnb.optim import sharding
from torch_bnb.optim import state as storage
from torch_bnb.optim.calls import Call
from torch_bnb.optim.clipping import percentile_scales


def clip(calls: Sequence[Call]) -> None:
    """Scales for the gradients of calls with percentile clipping."""
    calls = [call for call in calls if call.percentile < 100]
    squares = [torch.stack(torch._foreach_norm(call.grads, dtype=torch.float64)).square() for call in calls]
    add_up(squares, [call.groups for call in calls])
    for call, square in zip(calls, squares, strict=True):
        histories = [state[storage.HISTORY] for state in call.stepped]
        call.grad_scales = percentile_scales(histories, square.sqrt().to(torch.float32), call.percentile)


def measure(calls: Sequence[Call], rule: str, names: Mapping[str, bool], layerwise: bool) -> None:
    """Norms for the calls with parts of parameters that need some; the others' are the kernel's own affair.

    Args:
        calls: Of one optimizer, in the order that all processes have.
        rule: Name of the operator.
        names: Its states.
        layerwise: Whether the rule needs norms of its own.
    """
    calls = [call for call in calls if call.groups]
    for call in calls:
        call.norms = None
    if layerwise:
        _measure(calls, rule, names)
    _measure([call for call in calls if call.arguments["max_unorm"] > 0], rule, names)


def _measure(calls: Sequence[Call], rule: str, names: Mapping[str, bool]) -> None:
    sums = [torch.zeros(len(call.params), 3, dtype=torch.float64, device=call.params[0].device) for call in calls]
    for call, own in zip(calls, sums, strict=True):
        with call.laid_out(writes=False):
            ops.measure(rule, *call.tensors(names), call.scalars, own, **call.keywords())
    add_up(sums, [call.groups for call in calls])
    for call, own in zip(calls, sums, strict=True):
        call.norms = ops.norms_of(own, call.arguments["max_unorm"])


def add_up(sums: Sequence[Tensor], groups: Sequence[tuple[Any, ...]]) -> None:
    """Sums of this process become sums of all, in place; those of the same groups travel together."""
    together: dict[tuple, list[Tensor]] = {}
    for own, group in zip(sums, groups, strict=True):
        if group:
            together.setdefault((own.device, *group), []).append(own)
    for (_, *group), parts in together.items():
        whole = torch.cat([part.reshape(-1) for part in parts])
        sharding.add_up(whole, group)
        for part, summed in zip(parts, whole.split([part.numel() for part in parts]), strict=True):
            part.copy_(summed.view(part.shape))
