"""8-bit optimizers for PyTorch.

``optim`` has the optimizers and the override manager, ``optim_overrides`` declares overrides on a module's class,
``checkpoint`` has files and conversions of their state, ``monitor`` measures it, ``codec`` is the 8-bit code itself.
"""

from torch_bnb import codec, optim

# After optim: it stands between optim's state and optim's step loop, and so cannot be the first to be imported.
# isort: split
from torch_bnb import checkpoint, monitor
from torch_bnb.memory import plan, report
from torch_bnb.optim.agreement import check_agreement
from torch_bnb.optim.groups import param_groups
from torch_bnb.overrides import OverrideError, OverrideSpec, check_overrides, load_overrides, optim_overrides
from torch_bnb.verify import VerificationError, verify

__all__ = [
    "OverrideError",
    "OverrideSpec",
    "VerificationError",
    "check_agreement",
    "check_overrides",
    "checkpoint",
    "codec",
    "load_overrides",
    "monitor",
    "optim",
    "optim_overrides",
    "param_groups",
    "plan",
    "report",
    "verify",
]
__version__ = "0.1.0"
