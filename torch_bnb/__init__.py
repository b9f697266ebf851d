"""8-bit optimizers for PyTorch.

``optim`` has the optimizers and the override manager, ``optim_overrides`` declares overrides on a module's class,
``codec`` is the 8-bit code itself.
"""

from torch_bnb import codec, optim
from torch_bnb.memory import plan, report
from torch_bnb.optim.groups import param_groups
from torch_bnb.overrides import OverrideError, OverrideSpec, load_overrides, optim_overrides

__all__ = [
    "OverrideError",
    "OverrideSpec",
    "codec",
    "load_overrides",
    "optim",
    "optim_overrides",
    "param_groups",
    "plan",
    "report",
]
__version__ = "0.1.0"
