"""Oracles in plain torch, for what torch itself has not. Written from the papers."""

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
