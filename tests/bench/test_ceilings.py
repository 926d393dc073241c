"""The measured ceilings do the work that they are credited with."""

import pytest
import torch

from bench import ceilings
from genssl_fast._library import native_module

pytestmark = pytest.mark.skipif(native_module is None, reason="the native module is not built")


@pytest.mark.parametrize("reads", range(5))
@pytest.mark.parametrize("writes", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 15, 1003, 200_000])
def test_stream_writes_the_sum_of_its_reads_and_nothing_else(reads, writes, count):
    sources = [torch.randn(count) for _ in range(reads)]
    targets = [torch.full((count + 16,), 7.0) for _ in range(writes)]
    native_module.stream(
        [tensor.data_ptr() for tensor in sources],
        [tensor.data_ptr() for tensor in targets],
        count,
    )
    expected = sum(sources, torch.zeros(count))
    for target in targets:
        torch.testing.assert_close(target[:count], expected)
        assert (target[count:] == 7).all()


@pytest.mark.parametrize(("reads", "writes"), [([0] * 5, [0]), ([0], []), ([0], [0] * 3)])
def test_stream_refuses_other_numbers_of_streams(reads, writes):
    with pytest.raises(ValueError, match="expected"):
        native_module.stream(reads, writes, 1)


def test_stream_ceiling_counts_bytes():
    x, y = torch.ones(8, 3), torch.ones(8, 3)
    ((name, ceiling),) = ceilings.stream([x, y], 2).items()
    assert name == "stream of 2 reads and 2 writes"
    assert ceiling.work == 4 * 24 * 4
    assert all(torch.equal(output, x + y) for output in ceiling.run())


def test_micro_kernel_ceiling_does_at_least_the_operations_asked_for():
    (ceiling,) = ceilings.micro_kernel(10_000_000, 64, "cpu").values()
    item = native_module.TileRate(64).flops
    assert 10_000_000 <= ceiling.work < 10_000_000 + item
    ceiling.run()


def test_micro_kernel_refuses_an_empty_product():
    with pytest.raises(ValueError, match="depth"):
        native_module.TileRate(0)
