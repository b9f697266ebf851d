"""Overrides: what single parameters get instead of their group's options. Depends on torch alone."""

from torch_bnb.overrides.declare import optim_overrides
from torch_bnb.overrides.files import load_overrides
from torch_bnb.overrides.manager import GlobalOptimManager
from torch_bnb.overrides.names import check_overrides
from torch_bnb.overrides.spec import OverrideError, OverrideSpec

__all__ = [
    "GlobalOptimManager",
    "OverrideError",
    "OverrideSpec",
    "check_overrides",
    "load_overrides",
    "optim_overrides",
]
