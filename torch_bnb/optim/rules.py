"""The rules' Python halves: what a user sees, and a config turned into the scalars of csrc/rules.h."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.optim.options import CommonOptions
from torch_bnb.optim.state import SIGNED, UNSIGNED
from torch_bnb.overrides.spec import BETAS, FLAG, NON_NEGATIVE, NUMBER, RATE

__all__ = ["SGD", "Adam", "AdamW", "Lion"]


class Adam(BlockwiseOptimizer):
    """Adam (https://arxiv.org/abs/1412.6980); weight decay is L2, part of the gradient, as in ``torch.optim.Adam``.

    ::

        g = g + weight_decay * p
        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (1 - beta1**t)) / (sqrt(v) / sqrt(1 - beta2**t) + eps)

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        betas: Decay of the first moment m and the second moment v, per step.
        eps: Added to the denominator.
        weight_decay: L2 coefficient.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.Adam(model.parameters(), lr=1e-3, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["exp_avg_codes"].dtype
        torch.uint8
    """

    rule = "adam"
    states = {"exp_avg": SIGNED, "exp_avg_sq": UNSIGNED}
    options = {"lr": RATE, "betas": BETAS, "eps": NON_NEGATIVE, "weight_decay": NON_NEGATIVE}

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, common)

    @override
    def scalars(self, config: Mapping[str, Any], step: int) -> dict[str, float]:
        beta1, beta2 = config["betas"]
        return {
            "lr": float(config["lr"]),
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": config["eps"],
            "weight_decay": config["weight_decay"],
            "bias_correction1": 1 - beta1**step,
            "bias_correction2_sqrt": math.sqrt(1 - beta2**step),
        }


class AdamW(Adam):
    """AdamW (https://arxiv.org/abs/1711.05101): Adam whose weight decay is apart from the gradient, as
    ``torch.optim.AdamW``.

    ::

        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * ((m / (1 - beta1**t)) / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * p)

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        betas: Decay of the first moment m and the second moment v, per step.
        eps: Added to the denominator.
        weight_decay: Share of a weight, times the learning rate, that a step takes off.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
        >>> sorted(optimizer.state[model.weight])
        ['exp_avg_absmax', 'exp_avg_codes', 'exp_avg_sq_absmax', 'exp_avg_sq_codes', 'step']
    """

    rule = "adamw"

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **common)


class SGD(BlockwiseOptimizer):
    """SGD with momentum (https://proceedings.mlr.press/v28/sutskever13.html), in the form of ``torch.optim.SGD``.

    ::

        g = g + weight_decay * p
        b = g  on the first step, else  momentum * b + (1 - dampening) * g
        p = p - lr * (g + momentum * b  if nesterov else  b)

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        momentum: Decay of the momentum buffer b; with 0 there is no buffer.
        dampening: Share of the gradient that is kept out of the buffer.
        weight_decay: L2 coefficient.
        nesterov: Look one buffer ahead; needs a momentum and no dampening.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["momentum_buffer_codes"].shape
        torch.Size([128, 128])
    """

    rule = "sgd"
    states = {"momentum_buffer": SIGNED}
    options = {
        "lr": RATE,
        "momentum": NON_NEGATIVE,
        "dampening": NUMBER,
        "weight_decay": NON_NEGATIVE,
        "nesterov": FLAG,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, own, common)

    @override
    def check(self, config: Mapping[str, Any]) -> None:
        if config["nesterov"] and (config["momentum"] <= 0 or config["dampening"] != 0):
            raise ValueError(
                f"nesterov=True needs momentum > 0 and dampening=0, got momentum={config['momentum']!r} and "
                f"dampening={config['dampening']!r}"
            )

    @override
    def active_states(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        return self.states if config["momentum"] else {}

    @override
    def scalars(self, config: Mapping[str, Any], step: int) -> dict[str, float]:
        momentum = config["momentum"]
        fresh = step == 1 or momentum == 0
        return {
            "lr": float(config["lr"]),
            "weight_decay": config["weight_decay"],
            "buffer_decay": 0.0 if fresh else momentum,
            "gradient_weight": 1.0 if fresh else 1 - config["dampening"],
            "nesterov_momentum": momentum if config["nesterov"] else 0.0,
        }


class Lion(BlockwiseOptimizer):
    """Lion (https://arxiv.org/abs/2302.06675): the sign of an interpolated momentum.

    ::

        u = sign(m + (1 - beta1) * (g - m))
        m = m + (1 - beta2) * (g - m)
        p = p - lr * (u + weight_decay * p)

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate; a third to a tenth of AdamW's.
        betas: Weight of the momentum in the update's sign, and the momentum's own decay.
        weight_decay: Share of a weight, times the learning rate, that a step takes off.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.Lion(model.parameters(), lr=1e-4, weight_decay=0.1, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
    """

    rule = "lion"
    states = {"exp_avg": SIGNED}
    options = {"lr": RATE, "betas": BETAS, "weight_decay": NON_NEGATIVE}

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay}, common)

    @override
    def scalars(self, config: Mapping[str, Any], step: int) -> dict[str, float]:
        beta1, beta2 = config["betas"]
        return {
            "lr": float(config["lr"]),
            "one_minus_beta1": 1 - beta1,
            "one_minus_beta2": 1 - beta2,
            "weight_decay": config["weight_decay"],
        }
