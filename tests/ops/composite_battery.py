"""The battery for composites of PyTorch: Inductor would compile PyTorch's own operations, slowly."""

import torch

from tests.battery import Battery, as_tuple, make_inputs


class CompositeBattery(Battery):
    """Inherit instead of Battery where the operation is a composite of PyTorch's."""

    def test_inductor(self, case):
        tensors = make_inputs(case, torch.float32, 3)
        torch._dynamo.reset()
        compiled = torch.compile(case.function, backend="aot_eager", fullgraph=True)
        for found, expected in zip(as_tuple(compiled(*tensors)), as_tuple(case.function(*tensors))):
            assert torch.equal(found, expected)
