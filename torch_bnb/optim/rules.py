"""The rules' Python halves: what a user sees, and a config turned into the scalars of csrc/rules.h."""

import math
from collections.abc import Mapping
from typing import Any

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack, override

from torch_bnb.optim.base import BlockwiseOptimizer
from torch_bnb.optim.numbers import least
from torch_bnb.optim.options import CommonOptions
from torch_bnb.optim.state import SIGNED, UNSIGNED
from torch_bnb.overrides.spec import BETAS, FLAG, NON_NEGATIVE, NUMBER, RATE, SHARE, STEPS_OR_NONE, THREE_BETAS

__all__ = ["LAMB", "LARS", "SGD", "AdEMAMix", "Adagrad", "Adam", "AdamW", "Lion", "RMSprop"]


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

    Note:
        For recipes that were tuned with Adam and L2 decay; where weight decay matters, AdamW is the better choice.
        L2 decay is divided by sqrt(v) like the gradient, so weights with large gradients decay less (arXiv 1711.05101).
        The rate is AdamW's. Keep embeddings at 32 bits, as a registered model does by itself: the paper of the 8-bit
        state does so too (arXiv 2110.02861). In 8 bits, with the nearest code and beta2 = 0.999, v stays too high long
        after gradients have become smaller: by some percent if all of a block have, several times (ten in the hardest
        case measured) if some of them have. ``state_rounding="stochastic"`` has no such bias. docs/rounding.md measures
        it, and finds no training that notices.

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
    def check(self, config: Mapping[str, Any]) -> None:
        if config.get("decoupled_weight_decay") and self.rule == "adam":
            raise ValueError("decoupled_weight_decay=True: Adam adds the decay to the gradient, AdamW decouples it")

    @override
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        return dict(zip(self.states, config["betas"], strict=True))

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        beta1, beta2 = config["betas"]
        return {
            "lr": float(config["lr"]),
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "eps": config["eps"],
            "weight_decay": config["weight_decay"],
            "debias1": 1 / (1 - beta1**step),
            "debias2_sqrt": (1 - beta2**step) ** -0.5,
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

    Note:
        For transformers, and where you have no reason for another; its rate is what the others' pages compare with.
        Keep embeddings at 32 bits, as a registered model does by itself: the paper of the 8-bit state does so too
        (arXiv 2110.02861). In 8 bits, with the nearest code and beta2 = 0.999, v stays too high long after gradients
        have become smaller: by some percent if all of a block have, several times (ten in the hardest case measured) if
        some of them have. ``state_rounding="stochastic"`` has no such bias. docs/rounding.md measures it, and finds no
        training that notices.

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

    Note:
        For convolutional networks, with a momentum and a rate that is tuned to the model.
        ResNets were trained with lr 0.1, momentum 0.9 and weight_decay 1e-4 (arXiv 1512.03385): a hundred times AdamW's
        usual rate. The update grows with the gradient, so a large gradient needs clipping. The buffer is the most
        harmless state to keep in 8 bits: ResNet-50 reached 77.2 % on ImageNet with it and 77.1 % without (arXiv
        2110.02861).

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
    optional = frozenset({"momentum_buffer"})
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
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        return {"momentum_buffer": config["momentum"]}

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        momentum = config["momentum"]
        fresh = fresh or momentum == 0
        dampening = config["dampening"] * least(step - 1, 1.0)  # none at the first step that counts
        return {
            "lr": float(config["lr"]),
            "weight_decay": config["weight_decay"],
            "buffer_decay": 0.0 if fresh else momentum,
            "gradient_weight": 1.0 if fresh else 1 - dampening,
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

    Note:
        For large batches and little memory: one state, and the paper's gain over AdamW grows with the batch.
        Every element moves by lr, so the rate is 3 to 10 times smaller than AdamW's and weight_decay 3 to 10 times
        larger, which keeps their product (arXiv 2302.06675, section 5). In 8 bits the code decides the sign of an
        update that is nearly zero: about one sign in a hundred differs from 32 bits when gradients are noise.

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
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        return {"exp_avg": config["betas"][1]}

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        beta1, beta2 = config["betas"]
        return {
            "lr": float(config["lr"]),
            "one_minus_beta1": 1 - beta1,
            "one_minus_beta2": 1 - beta2,
            "weight_decay": config["weight_decay"],
        }


class RMSprop(BlockwiseOptimizer):
    """RMSprop (https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf), as ``torch.optim.RMSprop``.

    ::

        g = g + weight_decay * p
        s = alpha * s + (1 - alpha) * g * g
        a = a + (1 - alpha) * (g - a)                      if centered (https://arxiv.org/abs/1308.0850), else 0
        b = momentum * b + g / (sqrt(s - a * a) + eps)     (8-bit state: at least s / 32 under the root)
        p = p - lr * b

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        alpha: Decay of the mean of squares s.
        eps: Added to the denominator.
        weight_decay: L2 coefficient.
        momentum: Decay of the buffer b; with 0 there is no buffer.
        centered: Divide by an estimate of the standard deviation instead.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Note:
        For recurrent networks and reinforcement learning, where recipes were tuned with it.
        There is no bias correction: at alpha = 0.99 the first steps are up to 10 times lr long, so start with a tenth
        of AdamW's rate or warm up. Centered wants 32 bits: where the gradient's mean is more than about twice its
        deviation, rounding to 8 bits takes s - a * a below zero. With 8-bit state it is therefore at least s / 32,
        which bounds a step without momentum at 6 times lr * g / sqrt(s) and makes centering do less than it should.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.9, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
    """

    rule = "rmsprop"
    states = {"square_avg": UNSIGNED, "momentum_buffer": SIGNED, "grad_avg": SIGNED}
    optional = frozenset({"momentum_buffer", "grad_avg"})
    options = {
        "lr": RATE,
        "alpha": SHARE,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
        "momentum": NON_NEGATIVE,
        "centered": FLAG,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(params, {**own, "centered": centered}, common)

    @override
    def active_states(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        absent = {"momentum_buffer"} if not config["momentum"] else set()
        absent |= {"grad_avg"} if not config["centered"] else set()
        return {name: signed for name, signed in self.states.items() if name not in absent}

    @override
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        return {"square_avg": config["alpha"], "momentum_buffer": config["momentum"], "grad_avg": config["alpha"]}

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        return {
            "lr": float(config["lr"]),
            "alpha": config["alpha"],
            "one_minus_alpha": 1 - config["alpha"],
            "grad_avg_weight": 1 - config["alpha"] if config["centered"] else 0.0,
            "eps": config["eps"],
            "weight_decay": config["weight_decay"],
            "momentum": config["momentum"],
            "least_variance": 1 / 32 if config["optim_bits"] == 8 else 0.0,
        }


class Adagrad(BlockwiseOptimizer):
    """Adagrad (https://jmlr.org/papers/v12/duchi11a.html), as ``torch.optim.Adagrad``.

    ::

        g = g + weight_decay * p
        s = s + g * g
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        lr_decay: Decay of the learning rate with the steps.
        weight_decay: L2 coefficient.
        initial_accumulator_value: What the sum of squares s starts with.
        eps: Added to the denominator.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Note:
        For sparse gradients, as of rare words, and for problems that want no schedule: every element's rate only falls.
        Its rate is larger than AdamW's, by ten times as a start. In 8 bits the sum follows the largest element of its
        block: nine elements in ten are within a third of their 32-bit value, after 2000 steps of noise as after 10000.
        ``state_rounding="stochastic"`` does not narrow that.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.Adagrad(model.parameters(), lr=1e-2, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
    """

    rule = "adagrad"
    states = {"sum": UNSIGNED}
    options = {
        "lr": RATE,
        "lr_decay": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
        "initial_accumulator_value": NON_NEGATIVE,
        "eps": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {"lr": lr, "lr_decay": lr_decay, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {**own, "initial_accumulator_value": initial_accumulator_value}, common)

    @override
    def initial(self, config: Mapping[str, Any]) -> float:
        return config["initial_accumulator_value"]

    @override
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        return {"sum": 1.0}

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        return {
            "lr": float(config["lr"]) / (1 + (step - 1) * config["lr_decay"]),
            "eps": config["eps"],
            "weight_decay": config["weight_decay"],
        }


class AdEMAMix(BlockwiseOptimizer):
    """AdEMAMix (https://arxiv.org/abs/2409.03137): AdamW with a second first moment that forgets slowly.

    ::

        m1 = m1 + (1 - beta1) * (g - m1)
        m2 = m2 + (1 - beta3_t) * (g - m2)
        v = beta2 * v + (1 - beta2) * g * g
        u = (m1 / (1 - beta1**t) + alpha_t * m2) / (sqrt(v) / sqrt(1 - beta2**t) + eps)
        p = p - lr * (u + weight_decay * p)

    alpha_t grows linearly from 0 to alpha in t_alpha steps; beta3_t from beta1 to beta3 in t_beta3 steps such that its
    half-life grows linearly (the paper's equations 2 and 3).

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        betas: Decay of the fast first moment m1, of the second moment v, and of the slow first moment m2.
        alpha: Weight of the slow moment.
        t_alpha: Steps in which alpha grows; None: it is there from the start.
        t_beta3: Steps in which beta3 grows; None: it is there from the start.
        eps: Added to the denominator.
        weight_decay: Share of a weight, times the learning rate, that a step takes off.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Note:
        For long trainings, in which old gradients still help; its paper saw a 1.3B model need half of AdamW's tokens.
        Start with AdamW's rate and decay. Set t_alpha and t_beta3, to the number of steps for instance: without them
        the slow moment enters before it has seen anything. In 8 bits leave ``state_rounding`` at "auto", which
        rounds the slow moment stochastically: it moves by less than half a code a step, and with "nearest" most of it
        stands still. On a noisy quadratic with beta3 = 0.999, 2000 steps ended at a loss of 0.34 that way, at 0.051
        with "auto", and at 0.045 with all states rounded stochastically and with 32 bits.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.AdEMAMix(model.parameters(), lr=1e-3, t_alpha=1000, t_beta3=1000, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
    """

    rule = "ademamix"
    states = {"exp_avg": SIGNED, "exp_avg_slow": SIGNED, "exp_avg_sq": UNSIGNED}
    options = {
        "lr": RATE,
        "betas": THREE_BETAS,
        "alpha": NON_NEGATIVE,
        "t_alpha": STEPS_OR_NONE,
        "t_beta3": STEPS_OR_NONE,
        "eps": NON_NEGATIVE,
        "weight_decay": NON_NEGATIVE,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {"lr": lr, "betas": betas, "alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        super().__init__(params, {**own, "eps": eps, "weight_decay": weight_decay}, common)

    @override
    def check(self, config: Mapping[str, Any]) -> None:
        beta1, _, beta3 = config["betas"]
        if config["t_beta3"] is not None and not 0 < beta1 <= beta3:
            raise ValueError(f"t_beta3={config['t_beta3']} needs 0 < beta1 <= beta3, got betas={config['betas']!r}")

    @override
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        beta1, beta2, beta3 = config["betas"]
        return {"exp_avg": beta1, "exp_avg_slow": beta3, "exp_avg_sq": beta2}

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        beta1, beta2, beta3 = config["betas"]
        alpha = config["alpha"]
        if config["t_alpha"] is not None:
            alpha = alpha * least(step / config["t_alpha"], 1.0)
        if config["t_beta3"] is not None:
            done, start, end = least(step / config["t_beta3"], 1.0), math.log(beta1), math.log(beta3)
            beta3 = least(math.e ** (start * end / ((1 - done) * end + done * start)), beta3)
        return {
            "lr": float(config["lr"]),
            "one_minus_beta1": 1 - beta1,
            "beta2": beta2,
            "one_minus_beta2": 1 - beta2,
            "one_minus_beta3": 1 - beta3,
            "alpha": alpha,
            "eps": config["eps"],
            "weight_decay": config["weight_decay"],
            "debias1": 1 / (1 - beta1**step),
            "debias2_sqrt": (1 - beta2**step) ** -0.5,
        }


class LAMB(Adam):
    """LAMB (https://arxiv.org/abs/1904.00962): AdamW whose step is as long as the parameter, times the learning rate.

    ::

        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        u = (m / (1 - beta1**t)) / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * p
        p = p - lr * norm(p) / norm(u) * u                 (the ratio is 1 where a norm is 0)

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        betas: Decay of the first moment m and the second moment v, per step.
        eps: Added to the denominator.
        weight_decay: Coefficient of the parameter in the direction.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Note:
        For batches of many thousands; AdamW, well tuned, can do as well there (arXiv 2102.06356).
        lr is the share of its length by which a tensor moves in a step, whatever the gradient: 1e-3 to 1e-2, grown with
        the square root of the batch, after a warm-up (arXiv 1904.00962). A tensor that starts at 0 is short and so
        moves slowly: give biases and norms a group with AdamW. The norms are those of the decoded state, so 8 bits
        change the length of a step as little as its direction.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.LAMB(model.parameters(), lr=1e-2, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
    """

    rule = "lamb"
    layerwise = True

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        **common: Unpack[CommonOptions],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **common)


class LARS(BlockwiseOptimizer):
    """LARS (https://arxiv.org/abs/1708.03888): SGD whose gradient is as long as a share of the parameter.

    ::

        r = trust_coefficient * norm(p) / (norm(g) + weight_decay * norm(p) + eps)      (1 where a norm is 0)
        b = momentum * b + r * (g + weight_decay * p)
        p = p - lr * (r * (g + weight_decay * p) + momentum * b  if nesterov else  b)

    The paper's buffer contains the learning rate; here it does not, as in SGD, so that a rate of 0 moves nothing.

    Args:
        params: Parameters, named parameters or parameter groups; float32, bfloat16, float16 or float64.
        lr: Learning rate.
        momentum: Decay of the momentum buffer b; with 0 there is no buffer.
        weight_decay: L2 coefficient.
        trust_coefficient: The share, eta in the paper.
        eps: Added to the denominator.
        nesterov: Look one buffer ahead; needs a momentum.
        {common}

    Raises:
        ValueError: An option has an impossible value; it is named with what is allowed.

    Note:
        For convolutional networks with batches of many thousands; SGD, well tuned, can do as well there (arXiv
        2102.06356).
        A tensor's gradient moves it by lr * trust_coefficient of its length: with lr = 1 and the default by a
        thousandth a step, after a warm-up (arXiv 1708.03888); AdamW's rate says nothing about it. A tensor of norm 0
        takes the plain SGD step, at this large rate: give biases and norms a group with SGD. As with SGD, the buffer is
        harmless to keep in 8 bits.

    Example:
        >>> import torch, torch_bnb as bnb
        >>> model = torch.nn.Linear(128, 128)
        >>> optimizer = bnb.optim.LARS(model.parameters(), lr=1.0, optim_bits=8)
        >>> model(torch.randn(4, 128)).square().mean().backward()
        >>> optimizer.step()
    """

    rule = "lars"
    layerwise = True
    states = {"momentum_buffer": SIGNED}
    optional = frozenset({"momentum_buffer"})
    options = {
        "lr": RATE,
        "momentum": SHARE,
        "weight_decay": NON_NEGATIVE,
        "trust_coefficient": NON_NEGATIVE,
        "eps": NON_NEGATIVE,
        "nesterov": FLAG,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
        nesterov: bool = False,
        **common: Unpack[CommonOptions],
    ) -> None:
        own = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient}
        super().__init__(params, {**own, "eps": eps, "nesterov": nesterov}, common)

    @override
    def check(self, config: Mapping[str, Any]) -> None:
        if config["nesterov"] and config["momentum"] <= 0:
            raise ValueError(f"nesterov=True needs momentum > 0, got momentum={config['momentum']!r}")

    @override
    def active_states(self, config: Mapping[str, Any]) -> Mapping[str, bool]:
        return self.states if config["momentum"] else {}

    @override
    def decays(self, config: Mapping[str, Any]) -> Mapping[str, float]:
        return {"momentum_buffer": config["momentum"]}

    @override
    def scalars(self, config: Mapping[str, Any], step: int, fresh: bool) -> dict[str, float]:
        return {
            "lr": float(config["lr"]),
            "weight_decay": config["weight_decay"],
            "momentum": config["momentum"],
            "nesterov_momentum": config["momentum"] if config["nesterov"] else 0.0,
            "trust_coefficient": config["trust_coefficient"],
            "eps": config["eps"],
        }
