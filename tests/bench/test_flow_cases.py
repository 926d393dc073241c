"""The flow families' cases at small sizes: ours and the competitors that need no compiler agree."""

import pytest
import torch

from bench import causal, coupling, gate


def agrees(workload, *names):
    with torch.no_grad():
        verdict = gate.check_ours(workload)
        assert verdict.passed, verdict.complaint
        for name in ("eager", *names):
            assert gate.check_baseline(workload, name) == "", name


@pytest.mark.parametrize(("inverse", "gradients"), [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("peer", ["nflows", "zuko"])
def test_spline(peer, inverse, gradients):
    pytest.importorskip(peer)
    agrees(coupling.spline_workload("cpu", peer, (4096, 16), inverse=inverse, gradients=gradients), peer)


@pytest.mark.parametrize("build", [coupling.log_prob_workload, coupling.sample_workload])
def test_spline_flow(build):
    pytest.importorskip("nflows")
    pytest.importorskip("zuko")
    agrees(build("cpu", 7), "nflows", "zuko")


def test_training_steps_have_the_same_loss_again_and_again():
    pytest.importorskip("nflows")
    workload = coupling.spline_flow_training("cpu")
    agrees(workload, "nflows")
    agrees(workload, "nflows")


@pytest.mark.parametrize("inverse", [False, True])
def test_glow_step(inverse):
    pytest.importorskip("normflows")
    agrees(coupling.glow_workload("cpu", inverse=inverse), "normflows")


def test_masked_network_has_the_inverse_of_nflows():
    transforms = pytest.importorskip("nflows.transforms")
    torch.manual_seed(0)
    peer = transforms.MaskedAffineAutoregressiveTransform(6, 16, num_blocks=1, use_residual_blocks=False)
    made = peer.autoregressive_net
    layers = [made.initial_layer, made.blocks[0].linear, made.final_layer]
    weights = causal.MADEWeights(
        tuple(layer.weight.detach() for layer in layers), tuple(layer.bias.detach() for layer in layers)
    )
    degrees = causal.genssl_fast.made_degrees(6, (16, 16))
    transform = causal.AffineTransform("softplus", layout="interleaved_scale_first")
    y = torch.randn(5, 6)
    with torch.no_grad():
        expected = peer.inverse(y)
        plain = causal.PlainMADE(weights, degrees, transform).inverse(y)
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
