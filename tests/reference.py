"""Oracles in plain torch, for what torch itself has not. Written from the papers. States have our names."""

import math

import torch


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2."""

    def __init__(self, params, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, maximize=False):
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                g = -p.grad if group["maximize"] else p.grad
                m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                update = torch.sign(beta1 * m + (1 - beta1) * g)
                p -= group["lr"] * (update + group["weight_decay"] * p)
                m.copy_(beta2 * m + (1 - beta2) * g)


class AdEMAMix(torch.optim.Optimizer):
    """Pagliardini et al. 2024, https://arxiv.org/abs/2409.03137, algorithm 1 and equations 2 and 3."""

    def __init__(
        self, params, lr, betas=(0.9, 0.999, 0.9999), alpha=5.0, t_alpha=None, t_beta3=None, eps=1e-8,
        weight_decay=1e-2, maximize=False,
    ):  # fmt: skip
        super().__init__(params, {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2, beta3_end = group["betas"]
            for p in group["params"]:
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                alpha, beta3 = group["alpha"], beta3_end
                if group["t_alpha"]:
                    alpha = min(t * alpha / group["t_alpha"], alpha)
                if group["t_beta3"]:
                    x, a, b = t / group["t_beta3"], math.log(beta1), math.log(beta3_end)
                    beta3 = min(math.exp(a * b / ((1 - x) * b + x * a)), beta3_end) if x < 1 else beta3_end
                names = ("exp_avg", "exp_avg_slow", "exp_avg_sq")
                fast, slow, v = (state.setdefault(name, torch.zeros_like(p)) for name in names)
                fast.copy_(beta1 * fast + (1 - beta1) * g)
                slow.copy_(beta3 * slow + (1 - beta3) * g)
                v.copy_(beta2 * v + (1 - beta2) * g * g)
                ratio = (fast / (1 - beta1**t) + alpha * slow) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
                p -= group["lr"] * (ratio + group["weight_decay"] * p)


def norm(x: torch.Tensor) -> float:
    """In double precision: squares of numbers that float32 holds leave its range."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).item()


class LAMB(torch.optim.Optimizer):
    """You et al. 2019, https://arxiv.org/abs/1904.00962, algorithm 2, phi the identity."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=1e-2, maximize=False):
        super().__init__(params, {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                g = -p.grad if group["maximize"] else p.grad
                state = self.state[p]
                t = state["t"] = state.get("t", 0) + 1
                m, v = (state.setdefault(name, torch.zeros_like(p)) for name in ("exp_avg", "exp_avg_sq"))
                m.copy_(beta1 * m + (1 - beta1) * g)
                v.copy_(beta2 * v + (1 - beta2) * g * g)
                u = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"]) + group["weight_decay"] * p
                ratio = norm(p) / norm(u) if norm(p) > 0 and norm(u) > 0 else 1.0
                p -= group["lr"] * ratio * u


class LARS(torch.optim.Optimizer):
    """You et al. 2017, https://arxiv.org/abs/1708.03888, algorithm 1, the rate kept out of the buffer."""

    def __init__(
        self, params, lr, momentum=0.9, weight_decay=5e-4, trust_coefficient=1e-3, eps=0.0, nesterov=False,
        maximize=False,
    ):  # fmt: skip
        super().__init__(params, {k: v for k, v in locals().items() if k not in ("self", "params", "__class__")})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            decay, momentum = group["weight_decay"], group["momentum"]
            for p in group["params"]:
                g = -p.grad if group["maximize"] else p.grad
                length = norm(g) + decay * norm(p) + group["eps"]
                ratio = group["trust_coefficient"] * norm(p) / length if norm(p) > 0 and norm(g) > 0 else 1.0
                d = ratio * (g + decay * p)
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.copy_(momentum * buffer + d)
                p -= group["lr"] * (d + momentum * buffer if group["nesterov"] else buffer)


def dynamic_map(signed: bool) -> torch.Tensor:
    """Dettmers et al. 2021, https://arxiv.org/abs/2110.02861, section 2.2.

    Seven decades 1e-6 .. 1; decade e is cut into 2^e (signed) or 2^(e+1) equal parts of [0.1, 1], whose middles are the
    magnitudes; then 0 and 1. In double precision.
    """
    values = [0.0, 1.0]
    for e in range(7):
        parts = 2**e if signed else 2 ** (e + 1)
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float64)
        middles = 10.0 ** (e - 6) * (edges[:-1] + edges[1:]) / 2
        values += middles.tolist()
        if signed:
            values += (-middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float64)


def nearest_distance(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Distance of every element to the nearest of `values`, in double precision."""
    return (x.double().reshape(-1, 1) - values.double()).abs().amin(dim=1).reshape(x.shape)
