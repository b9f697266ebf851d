# Written by docs/generate.py: change torch_bnb/optim/rules.py, then run `make docs`.
from typing import Literal

from torch.optim.optimizer import ParamsT

from torch_bnb.optim.rules import LAMB, LARS, SGD, AdEMAMix, Adagrad, Adam, AdamW, Lion, RMSprop

__all__ = [
    "LAMB8bit",
    "LAMB32bit",
    "PagedLAMB",
    "PagedLAMB8bit",
    "PagedLAMB32bit",
    "LARS8bit",
    "LARS32bit",
    "PagedLARS",
    "PagedLARS8bit",
    "PagedLARS32bit",
    "SGD8bit",
    "SGD32bit",
    "PagedSGD",
    "PagedSGD8bit",
    "PagedSGD32bit",
    "AdEMAMix8bit",
    "AdEMAMix32bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdEMAMix32bit",
    "Adagrad8bit",
    "Adagrad32bit",
    "PagedAdagrad",
    "PagedAdagrad8bit",
    "PagedAdagrad32bit",
    "Adam8bit",
    "Adam32bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdam32bit",
    "AdamW8bit",
    "AdamW32bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "Lion8bit",
    "Lion32bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedLion32bit",
    "RMSprop8bit",
    "RMSprop32bit",
    "PagedRMSprop",
    "PagedRMSprop8bit",
    "PagedRMSprop32bit",
]

class LAMB8bit(LAMB):
    """`LAMB` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class LAMB32bit(LAMB):
    """`LAMB` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLAMB(LAMB):
    """`LAMB` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLAMB8bit(LAMB):
    """`LAMB` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLAMB32bit(LAMB):
    """`LAMB` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class LARS8bit(LARS):
    """`LARS` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class LARS32bit(LARS):
    """`LARS` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLARS(LARS):
    """`LARS` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLARS8bit(LARS):
    """`LARS` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLARS32bit(LARS):
    """`LARS` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        eps: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class SGD8bit(SGD):
    """`SGD` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class SGD32bit(SGD):
    """`SGD` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedSGD(SGD):
    """`SGD` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedSGD8bit(SGD):
    """`SGD` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedSGD32bit(SGD):
    """`SGD` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class AdEMAMix8bit(AdEMAMix):
    """`AdEMAMix` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class AdEMAMix32bit(AdEMAMix):
    """`AdEMAMix` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdEMAMix(AdEMAMix):
    """`AdEMAMix` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdEMAMix8bit(AdEMAMix):
    """`AdEMAMix` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdEMAMix32bit(AdEMAMix):
    """`AdEMAMix` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class Adagrad8bit(Adagrad):
    """`Adagrad` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class Adagrad32bit(Adagrad):
    """`Adagrad` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdagrad(Adagrad):
    """`Adagrad` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdagrad8bit(Adagrad):
    """`Adagrad` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdagrad32bit(Adagrad):
    """`Adagrad` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class Adam8bit(Adam):
    """`Adam` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class Adam32bit(Adam):
    """`Adam` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdam(Adam):
    """`Adam` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdam8bit(Adam):
    """`Adam` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdam32bit(Adam):
    """`Adam` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class AdamW8bit(AdamW):
    """`AdamW` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class AdamW32bit(AdamW):
    """`AdamW` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdamW(AdamW):
    """`AdamW` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdamW8bit(AdamW):
    """`AdamW` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedAdamW32bit(AdamW):
    """`AdamW` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class Lion8bit(Lion):
    """`Lion` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class Lion32bit(Lion):
    """`Lion` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLion(Lion):
    """`Lion` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLion8bit(Lion):
    """`Lion` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedLion32bit(Lion):
    """`Lion` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class RMSprop8bit(RMSprop):
    """`RMSprop` with 8-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class RMSprop32bit(RMSprop):
    """`RMSprop` with 32-bit state."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = None,
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedRMSprop(RMSprop):
    """`RMSprop` with state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        optim_bits: int = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedRMSprop8bit(RMSprop):
    """`RMSprop` with 8-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        optim_bits: Literal[8] = 8,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...

class PagedRMSprop32bit(RMSprop):
    """`RMSprop` with 32-bit state, in host memory."""

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.01,
        alpha: float = 0.99,
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        *,
        optim_bits: Literal[32] = 32,
        min_8bit_size: int = 4096,
        percentile_clipping: int = 100,
        block_wise: bool = True,
        block_grid: str = 'flat',
        state_device: str | None = 'cpu',
        max_unorm: float = 0.0,
        skip_zeros: bool = False,
        maximize: bool = False,
        state_rounding: str = 'auto',
        weight_rounding: str = 'nearest',
        seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
    ) -> None: ...
