import pytest
import torch

from torch_bnb.optim import GlobalOptimManager


@pytest.fixture(autouse=True)
def fresh():
    """Every test starts with a manager that has heard nothing, and with the same random numbers."""
    GlobalOptimManager.get_instance().initialize()
    torch.manual_seed(0)
    yield
    GlobalOptimManager.get_instance().initialize()


@pytest.fixture
def manager():
    return GlobalOptimManager.get_instance()
