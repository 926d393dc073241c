"""Plans of convolutions against PyTorch's: values, bits, layers of some columns, bad input."""

import os
import subprocess
import sys

import pytest
import torch

from genssl_fast._library import instruction_set
from genssl_fast.ops.flow_layers import PartialLayer, PermutationLayer
from genssl_fast.ops.flow_plan import FlowPlan
from genssl_fast.reference.causal import ACTIVATIONS
from tests.ops.drawn_layers import (
    TRANSFORMS,
    Draw,
    assert_agrees,
    assert_same_bits_in_every_split,
    assert_same_bits_on_every_number_of_threads,
    batch_of,
    image_layers,
    moved,
)

needs_kernels = pytest.mark.skipif(instruction_set() is None, reason="compiled kernels are not built")
SHAPE = 4, 6, 9
COUNT = 4 * 6 * 9


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
class TestValue:
    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
    def test_transforms(self, transform, dtype, inverse):
        layers = moved([Draw().conv_coupling(SHAPE, transform)], dtype)
        assert_agrees(layers, batch_of(dtype, 5, COUNT)[0].clamp(-3, 3), None, inverse)

    @pytest.mark.parametrize("context", [0, 3])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_activations(self, activation, context, dtype, inverse):
        layer = Draw().conv_coupling(SHAPE, TRANSFORMS["zuko"], context=context, activation=activation)
        assert_agrees(moved([layer], dtype), *batch_of(dtype, 5, COUNT, context), inverse)

    @pytest.mark.parametrize("kernels", [(1,), (3,), (7, 1), (1, 5, 3, 1)], ids=str)
    @pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 1), (2, 2), (16, 16), (3, 40)], ids=str)
    def test_sizes(self, size, kernels, dtype, inverse):
        shape = 3, *size
        layers = moved([Draw().conv_coupling(shape, TRANSFORMS["zuko"], kernels)], dtype)
        x, _ = batch_of(dtype, 11, 3 * size[0] * size[1])
        assert_agrees(layers, x, None, inverse)

    @pytest.mark.parametrize("hidden", [1, 2, 3, 5, 7, 9, 12, 13, 16, 17, 31])
    def test_widths(self, hidden, dtype, inverse):
        layers = moved([Draw().conv_coupling((5, 4, 8), TRANSFORMS["zuko"], hidden=hidden)], dtype)
        assert_agrees(layers, batch_of(dtype, 3, 160)[0], None, inverse)

    @pytest.mark.parametrize("size", [0, 1, 2, 100])
    def test_every_kind_of_layer(self, size, dtype, inverse):
        x, context = batch_of(dtype, size, COUNT)
        if size:
            return assert_agrees(image_layers(SHAPE, dtype), x, context, inverse)
        plan = FlowPlan(image_layers(SHAPE, dtype))
        y, log_abs_det = (plan.inverse if inverse else plan.transform)(x, context)
        assert (y.shape, log_abs_det.shape) == (x.shape, (0,))


@needs_kernels
class TestBits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_do_not_depend_on_the_split(self, dtype):
        plan, (x, context) = FlowPlan(image_layers(SHAPE, dtype)), batch_of(dtype, 120, COUNT)
        splits = [(0, 1), (1, 2), (30, 3), (7, 50), (3, 110), (119, 1)]
        assert_same_bits_in_every_split(plan, x, context, splits)

    def test_do_not_depend_on_threads(self):
        plan, (x, context) = FlowPlan(image_layers(SHAPE, torch.float32)), batch_of(torch.float32, 60, COUNT)
        assert_same_bits_on_every_number_of_threads(plan, x, context)

    def test_fresh_memory_is_written(self, poisoned_memory):
        assert_agrees(image_layers(SHAPE, torch.float32), *batch_of(torch.float32, 50, COUNT), inverse=True)

    def test_one_image_does_not_reach_another(self):
        """A sample of NaN beside others, whose pixels are neighbours in memory."""
        plan, (x, context) = FlowPlan(image_layers(SHAPE, torch.float32)), batch_of(torch.float32, 9, COUNT)
        expected = plan.transform(x, context)[0]
        x[4] = torch.nan
        found = plan.transform(x, context)[0]
        others = torch.arange(9) != 4
        assert torch.equal(found[others], expected[others])

    @pytest.mark.exhaustive
    @pytest.mark.parametrize("isa", ["avx2", "baseline"])
    def test_other_instruction_sets(self, isa):
        environment = {**os.environ, "GENSSL_ISA": isa}
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
        subprocess.run([*command, "-k", "TestValue or split"], env=environment, check=True)


LAYERS = image_layers(SHAPE, torch.float32)


def changed(position, **fields):
    return lambda: FlowPlan(
        [*LAYERS[:position], LAYERS[position]._replace(**fields), *LAYERS[position + 1 :]]
    )


def changed_network(**fields):
    return changed(1, network=LAYERS[1].network._replace(**fields))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed_network(size=(5, 9)), r"layers\[1\].network: identity: expected channels of 45 columns"),
        (changed_network(size=(54,)), r"layers\[1\].network.size: expected \(H, W\)"),
        (changed_network(weights=()), r"network.weights: expected at least 1 layer"),
        (changed_network(biases=()), r"network.biases: expected 3 tensors"),
        (changed_network(activation="sine"), r"network.activation: expected one of 'relu'"),
        (
            changed_network(weights=(torch.zeros(6, 2),) * 3),
            r"weights\[0\]: expected kernels \[out, in, K, K\]",
        ),
        (
            changed_network(weights=(torch.zeros(6, 2, 4, 4),) * 3),
            r"weights\[0\]: expected K of \(1, 3, 5, 7\)",
        ),
        (changed_network(weights=(torch.zeros(6, 2, 3, 1),) * 3), r"weights\[0\]: expected shape"),
        (changed_network(context_weight=None), r"context_weight: expected one for 2 features"),
        (changed_network(context_weight=torch.zeros(2, 2)), r"context_weight: expected shape \[out, C\]"),
        (changed(5, size=(6, 8)), r"layers\[5\].size: expected 216 columns in all, got \(6, 8\)"),
        (changed(0, weight=torch.zeros(4, 3)), r"layers\[0\].weight: expected shape \[C, C\]"),
        (changed(0, weight=torch.zeros(4, 4)), r"layers\[0\].weight: expected an invertible matrix"),
        (changed(3, columns=torch.tensor([0, 0])), r"layers\[3\].columns: expected different columns"),
        (changed(3, columns=torch.tensor([0, 216])), r"layers\[3\].columns: expected different columns"),
        (changed(3, layers=()), r"layers\[3\].layers: expected at least one layer"),
        (
            changed(3, layers=(PermutationLayer(torch.arange(5)),)),
            r"layers\[3\].layers\[0\].index: expected every column of 0 to 107",
        ),
        (lambda: FlowPlan([PartialLayer(torch.arange(2), LAYERS)]), "flow: expected a layer of all columns"),
    ],
)
def test_errors_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parts_hold_layers_alone():
    with pytest.raises(TypeError, match=r"layers\[3\].layers\[0\]: expected a layer description, got ReLU"):
        changed(3, layers=(torch.nn.ReLU(),))()
