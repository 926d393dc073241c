"""accelerate: the report, the way back, and what must survive."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn

from genssl_fast.accelerate import AccelerationReport, accelerate
from tests.integrations.parity import agree

pytest.importorskip("nflows")

from nflows import distributions, flows, transforms
from nflows.nn.nets import ResidualNet


def net(features_in, features_out):
    return ResidualNet(features_in, features_out, hidden_features=8)


def mixed_flow():
    """Layers that have a kernel, one that has none, and one without work."""
    torch.manual_seed(0)
    layers = [
        transforms.MaskedAffineAutoregressiveTransform(4, 8),
        transforms.RandomPermutation(4),
        transforms.PiecewiseCubicCouplingTransform([1, 0, 1, 0], net, tails="linear", tail_bound=3.0),
        transforms.InverseTransform(transforms.AffineCouplingTransform([0, 1, 0, 1], net)),
    ]
    return flows.Flow(transforms.CompositeTransform(layers), distributions.StandardNormal([4]))


class OwnCoupling(transforms.AffineCouplingTransform):
    def _scale_and_shift(self, transform_params):
        scale, shift = super()._scale_and_shift(transform_params)
        return scale.square(), shift


def test_report():
    flow = mixed_flow()
    report = accelerate(flow)
    assert isinstance(report, AccelerationReport)
    assert [entry.name for entry in report.replaced] == [
        "_transform._transforms.0",
        "_transform._transforms.3._transform",
    ]
    assert str(report) == "\n".join([
        "2 replaced, 1 skipped",
        "  replaced _transform._transforms.0: MaskedAffineAutoregressiveTransform",
        "  replaced _transform._transforms.3._transform: AffineCouplingTransform",
        "  skipped _transform._transforms.2: PiecewiseCubicCouplingTransform, no kernel for this class",
    ])  # fmt: skip


def test_undo_and_twice():
    flow = mixed_flow()
    x = torch.randn(5, 4)
    kinds, expected = [type(module) for module in flow.modules()], flow.log_prob(x)
    report = accelerate(flow)
    again = accelerate(flow)
    assert not again.replaced
    again.undo()
    agree(flow.log_prob(x), expected, 1e-4)
    for _ in range(2):
        report.undo()
        assert [type(module) for module in flow.modules()] == kinds
    assert torch.equal(flow.log_prob(x), expected)
    assert accelerate(flow).replaced


def test_parameters_hooks_state_and_optimizer_survive():
    flow = mixed_flow()
    optimizer = torch.optim.SGD(flow.parameters(), lr=0.1)
    identities, state = [id(p) for p in flow.parameters()], copy.deepcopy(flow.state_dict())
    calls = []
    flow._transform._transforms[0].register_forward_hook(lambda *args: calls.append(1))
    accelerate(flow)
    assert [id(p) for p in flow.parameters()] == identities
    loss = -flow.log_prob(torch.randn(6, 4)).mean()
    loss.backward()
    optimizer.step()
    assert calls == [1]
    assert any(not torch.equal(state[name], value) for name, value in flow.state_dict().items())
    flow.load_state_dict(state)
    assert isinstance(flow._transform._transforms[0], transforms.MaskedAffineAutoregressiveTransform)


def test_accelerated_models_are_copied_pickled_and_moved():
    layer = transforms.MaskedAffineAutoregressiveTransform(4, 8)
    accelerate(layer)
    x = torch.randn(5, 4)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(other.inverse(x)[0], layer.inverse(x)[0])
    agree(layer.double().inverse(x.double())[0], layer.float().inverse(x)[0], 1e-5)


def test_undo_keeps_hooks_that_came_later():
    layer, x = transforms.MaskedAffineAutoregressiveTransform(4, 8), torch.randn(5, 4)
    report = accelerate(layer)
    layer.register_forward_hook(lambda module, inputs, outputs: (2 * outputs[0], outputs[1]))
    layer.autoregressive_net.register_forward_hook(lambda module, inputs, output: 2 * output)
    expected = layer(x)[0], layer.inverse(x)[0]
    report.undo()
    assert type(layer) is transforms.MaskedAffineAutoregressiveTransform
    agree((layer(x)[0], layer.inverse(x)[0]), expected, 1e-5)


def test_copies_are_accelerated_on_their_own():
    layer, x = mixed_flow(), torch.randn(5, 4)
    expected = layer.log_prob(x)
    before = copy.deepcopy(layer)
    report = accelerate(layer)
    after = copy.deepcopy(layer)
    report.undo()
    assert type(before._transform._transforms[0]) is transforms.MaskedAffineAutoregressiveTransform
    assert type(after._transform._transforms[0]) is report.replaced[0].replacement
    assert len(accelerate(before).replaced) == 2
    assert not accelerate(after).replaced
    for copied in (before, after):
        agree(copied.log_prob(x), expected, 1e-4)


def test_replicas_as_data_parallel_makes_them():
    """Modules of another ``__dict__``, whose parameters are tensors."""
    layer, x = transforms.MaskedAffineAutoregressiveTransform(4, 8), torch.randn(5, 4)
    accelerate(layer)

    def replicate(module):
        replica = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            replica._modules[name] = child if child is None else replicate(child)
        for name, parameter in module._parameters.items():
            setattr(replica, name, parameter.detach().clone().requires_grad_())
        return replica

    replica = replicate(layer)
    assert not list(replica.parameters())
    assert torch.equal(replica.inverse(x)[0], layer.inverse(x)[0])
    assert torch.equal(replica(x)[0], layer(x)[0])


def test_classes_that_users_derived_are_left():
    report = accelerate(OwnCoupling([1, 0], net))
    assert not report.replaced
    assert "derived from AffineCouplingTransform" in report.skipped[0].reason


@pytest.mark.parametrize(
    "options", [{"num_bins": 65}, {"min_bin_width": 0.0}, {"min_derivative": 0.0}], ids=str
)
def test_splines_that_no_kernel_covers_are_left(options):
    layer = transforms.PiecewiseRationalQuadraticCouplingTransform([1, 0], net, tails="linear", **options)
    report = accelerate(layer)
    assert not report.replaced
    assert report.skipped[0].reason.startswith("its spline has")


def test_models_of_other_libraries():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    report = accelerate(model)
    assert (report.replaced, report.skipped) == ((), ())
    assert str(report) == "0 replaced, 0 skipped"
    with pytest.raises(TypeError, match="module: expected"):
        accelerate(transforms.AffineCouplingTransform)


def test_import_does_not_import_the_peers():
    code = (
        "import sys, torch, genssl_fast.integrations\n"
        "from genssl_fast.accelerate import accelerate\n"
        "accelerate(torch.nn.Linear(2, 2))\n"
        "found = {'nflows', 'normflows', 'zuko'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torch_compile():
    torch._dynamo.reset()
    layer = transforms.PiecewiseRationalQuadraticCouplingTransform(
        [1, 0, 1], net, tails="linear", tail_bound=3.0, num_bins=4
    )
    x = torch.randn(5, 3)
    expected = layer(x)
    accelerate(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    agree(compiled(x), expected, 1e-4)


def test_models_that_are_compiled_already():
    torch._dynamo.reset()
    flow, x = mixed_flow(), torch.rand(5, 4)
    compiled = torch.compile(flow._transform._transforms[0], backend="aot_eager")
    expected = compiled(x)
    report = accelerate(compiled)
    assert [entry.name for entry in report.replaced] == ["_orig_mod"]
    agree(compiled(x), expected, 1e-4)
    report.undo()
    agree(compiled(x), expected, 1e-6)


def test_compiled_inverse_is_one_graph():
    torch._dynamo.reset()
    layer, x = transforms.MaskedAffineAutoregressiveTransform(4, 8), torch.randn(5, 4)
    expected = layer.inverse(x)
    accelerate(layer)
    compiled = torch.compile(layer.inverse, backend="aot_eager", fullgraph=True)
    agree(compiled(x), expected, 1e-4)


def test_derivatives_by_torch_func():
    layer = transforms.PiecewiseRationalQuadraticCouplingTransform(
        [1, 0, 1], net, tails="linear", tail_bound=3.0, num_bins=4
    ).double()
    accelerate(layer)
    x = torch.randn(3, dtype=torch.float64)
    jacobian = torch.func.jacrev(lambda x: layer(x[None])[0][0])(x)
    agree(torch.linalg.slogdet(jacobian)[1], layer(x[None])[1][0], 1e-10)
