import pytest
import torch

from torch_bnb.optim import GlobalOptimManager


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests make the tensors for which they name no device")


@pytest.fixture(autouse=True)
def fresh(request):
    """Every test starts with a manager that has heard nothing, and with the same random numbers."""
    GlobalOptimManager.get_instance().initialize()
    torch.manual_seed(0)
    device = request.config.getoption("--device")
    if device != "cpu":
        torch.set_default_device(device)
    yield
    if device != "cpu":
        torch.set_default_device(None)
    GlobalOptimManager.get_instance().initialize()


@pytest.fixture
def manager():
    return GlobalOptimManager.get_instance()
