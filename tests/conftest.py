import importlib.util
import re

import pytest
import torch

from torch_bnb.optim import GlobalOptimManager

if importlib.util.find_spec("hypothesis"):
    from hypothesis import settings

    # A default run says the same twice; `make test-all` looks at other examples every time. Machines are slow at times.
    settings.register_profile("repeat", derandomize=True, deadline=None)
    settings.register_profile("explore", derandomize=False, deadline=None, print_blob=True)
    settings.load_profile("repeat")


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="where tests make the tensors for which they name no device")
    parser.addoption("--skip-missing", action="store_true", help="skip tests of packages that are not installed")


ORACLES = (
    "bitsandbytes",
    "torchao",
    "expecttest",
    "mypy",
    "transformers",
    "jsonargparse",
    "yaml",
    "rich",
    "matplotlib",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """On a machine without network not every package of [dev] is there; elsewhere a missing one is a failure."""
    try:
        return (yield)
    except ModuleNotFoundError as error:
        if item.config.getoption("--skip-missing") and (error.name or "").partition(".")[0] in ORACLES:
            pytest.skip(f"{error.name} is not installed")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """The same where a whole file of tests needs the package."""
    report = yield
    missing = re.search(r"No module named '(\w+)", str(report.longrepr)) if report.failed else None
    if missing and missing[1] in ORACLES and collector.config.getoption("--skip-missing"):
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {missing[1]} is not installed")
    return report


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


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The path of a library with torch.ops.torch_bnb_emulated and what belongs to it, loaded."""
    import emulation

    library = emulation.build(tmp_path_factory.mktemp("emulated"))
    torch.ops.load_library(library)
    return library


@pytest.fixture
def manager():
    return GlobalOptimManager.get_instance()
