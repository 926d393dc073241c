"""Fixtures that every room shares."""

import os

import pytest
import torch

from tests.battery import Battery


def pytest_collection_modifyitems(config, items):
    empty = [item for item in items if has_no_cases(item)]
    config.hook.pytest_deselected(items=empty)
    items[:] = [item for item in items if item not in empty]
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU"))


def has_no_cases(item) -> bool:
    """A test of derivatives, for an operation that has none."""
    skip = item.get_closest_marker("skip")
    return skip is not None and skip.kwargs.get("reason", "").startswith("got empty parameter set")


def pytest_generate_tests(metafunc):
    """Spreads the cases that a Battery declares over its tests."""
    battery = metafunc.cls
    if battery is None or not issubclass(battery, Battery):
        return
    cases, names = battery.cases, metafunc.fixturenames
    differentiable = {name: case for name, case in cases.items() if case.differentiable}
    if "dtype" in names:
        chosen = differentiable if "differentiable_case" in names else cases
        pairs = [(name, case, dtype) for name, case in chosen.items() for dtype in case.dtypes]
        fixture = "differentiable_case" if "differentiable_case" in names else "case"
        ids = [f"{name}-{str(dtype).removeprefix('torch.')}" for name, _, dtype in pairs]
        metafunc.parametrize((fixture, "dtype"), [pair[1:] for pair in pairs], ids=ids)
    elif "differentiable_case" in names:
        metafunc.parametrize("differentiable_case", differentiable.values(), ids=differentiable.keys())
    elif "case" in names:
        metafunc.parametrize("case", cases.values(), ids=cases.keys())
    if "error" in names:
        metafunc.parametrize("error", battery.errors.values(), ids=battery.errors.keys())


@pytest.fixture
def poisoned_memory():
    """Fresh allocations hold NaN, in C++ too: reading what nothing wrote shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors gain nothing from threads; tests of threading set their own number."""
    torch.set_num_threads(int(os.environ.get("GENSSL_TEST_THREADS", "1")))
