"""The CUDA C++ inverse of MADE transforms on a GPU: the error contract, bits, no synchronisation."""

import pytest
import torch

from tests.battery import assert_close_enough
from tests.ops.test_made import NFLOWS_AFFINE, SPLINE, TRANSFORMS, Network

pytestmark = pytest.mark.gpu

SIZES = [(1, [4]), (13, [21, 21, 21]), (64, [512]), (200, [1500])]


def draw(network, batch, dtype=torch.float32):
    tensors = network.inputs(dtype, batch, torch.Generator().manual_seed(batch))
    return [tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize("batch", [1, 9, 2000])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_within_error_contract(transform, size, batch):
    network = Network(*size, transform, activation="silu")
    tensors = draw(network, batch)
    exact = network.plain(*(tensor.double() for tensor in tensors))
    found, plain = network.inverse(*tensors), network.plain(*tensors)
    for name, *values in zip(("x", "log_abs_det"), found, plain, exact):
        assert_close_enough(*values, 2, name)


@pytest.mark.parametrize("transform", [NFLOWS_AFFINE, SPLINE], ids=["affine", "spline"])
def test_residual_in_fp64_equals_the_cpu(transform):
    network = Network(40, [64] * 3, transform, residual=True, activation="elu")
    tensors = draw(network, 33, torch.float64)
    found = [values.cpu() for values in network.inverse(*tensors)]
    expected = network.inverse(*(tensor.cpu() for tensor in tensors))
    torch.testing.assert_close(found, list(expected), rtol=1e-10, atol=1e-10)


def test_activations_beyond_shared_memory():
    network = Network(16, [9000], NFLOWS_AFFINE)
    tensors = draw(network, 5)
    exact = network.plain(*(tensor.double() for tensor in tensors))
    for name, *values in zip(("x", "log_abs_det"), network.inverse(*tensors), network.plain(*tensors), exact):
        assert_close_enough(*values, 2, name)


@pytest.mark.parametrize("transform", [NFLOWS_AFFINE, SPLINE], ids=["affine", "spline"])
def test_bits_do_not_depend_on_the_place_in_the_batch(transform):
    network = Network(45, [70, 90], transform)
    y, term, *weights = draw(network, 3000)
    whole = network.inverse(y, term, *weights)
    for begin, end in [(0, 1), (17, 18), (1000, 1512), (333, 2777)]:
        part = slice(begin, end)
        found = network.inverse(y[part], term[part], *weights)
        assert all(torch.equal(a, b[part]) for a, b in zip(found, whole)), (begin, end)


def test_cuda_graph_without_synchronisation():
    network = Network(30, [50, 50], NFLOWS_AFFINE)
    y, *others = draw(network, 100)
    network.degrees = tuple(degrees.cuda() for degrees in network.degrees)
    network.inverse(y, *others)
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = network.inverse(y, *others)
        y.mul_(0.5)
        graph.replay()
        expected = network.inverse(y, *others)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(captured, expected))
