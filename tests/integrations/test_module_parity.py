"""Our modules with the weights of nflows', normflows' and FrEIA's: the same values and log-determinants."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import genssl_fast
from genssl_fast.nn import ActNorm, AffineCoupling, Compose, Inverse, InvertibleLinear, Permutation, Planar
from genssl_fast.ops.affine_coupling import affine_coupling, affine_parameters
from tests.integrations.parity import agree, randomize, within_error


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def both_directions_agree(ours, theirs, x, tolerance=1e-11):
    """Forward and inverse of modules that both return (value, log_abs_det)."""
    y, log_abs_det = theirs(x)
    agree(ours(x), (y, log_abs_det.expand(len(x))), tolerance)
    back, log_abs_det = theirs.inverse(y)
    agree(ours.inverse(y), (back, log_abs_det.expand(len(x))), tolerance)
    for values, direction in ((x, "__call__"), (y, "inverse")):
        single_precision_agrees(ours, theirs, values.detach(), direction)


def single_precision_agrees(ours, theirs, x, direction):
    """The same with numbers of fp32, by the error of theirs; batches of 1 are ours alone."""
    ours, theirs, x = copy.deepcopy(ours).float(), copy.deepcopy(theirs).float(), x.float()
    expected = getattr(theirs, direction)(x)
    exact = getattr(copy.deepcopy(theirs).double(), direction)(x.double())
    one_by_one = zip(*(getattr(ours, direction)(row) for row in x.split(1)))
    for results in (getattr(ours, direction)(x), map(torch.cat, one_by_one)):
        for found, true, other in zip(results, exact, expected):
            within_error(found, true.expand(found.shape), other)


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 4, 4)])
def test_actnorm_of_nflows(shape):
    transforms = pytest.importorskip("nflows.transforms")
    theirs = transforms.ActNorm(3).double()
    theirs.train()(2 + 3 * data(*shape))
    ours = ActNorm(3).double().eval()
    ours.load_state_dict(theirs.state_dict())
    both_directions_agree(ours, theirs.eval(), data(*shape))


def test_actnorm_of_normflows():
    flows = pytest.importorskip("normflows").flows
    theirs = randomize(flows.ActNorm((3, 1, 1)))
    theirs.data_dep_init_done = torch.tensor(1.0)
    ours = ActNorm(3).double().eval()
    ours.load_state_dict(
        {"log_scale": theirs.s.flatten(), "shift": theirs.t.flatten(), "initialized": torch.tensor(True)}
    )
    both_directions_agree(ours, theirs, data(2, 3, 4, 4))


def ours_of_nflows_lu(theirs):
    ours = InvertibleLinear(theirs.features, bias=True).double()
    lower, upper = theirs._create_lower_upper()
    ours.load_state_dict(
        {
            "lower": lower, "upper": upper, "log_diagonal": theirs.upper_diag.log(), "bias": theirs.bias,
            "sign": torch.ones(theirs.features), "permutation": torch.arange(theirs.features),
        }
    )  # fmt: skip
    return ours


@pytest.mark.filterwarnings("ignore:torch.triangular_solve")
def test_lu_linear_of_nflows():
    transforms = pytest.importorskip("nflows.transforms")
    theirs = randomize(transforms.LULinear(4))
    both_directions_agree(ours_of_nflows_lu(theirs), theirs, data(6, 4))


@pytest.mark.filterwarnings("ignore:torch.triangular_solve")
def test_convolution_of_nflows():
    transforms = pytest.importorskip("nflows.transforms")
    theirs = randomize(transforms.OneByOneConvolution(4))
    ours = Compose([Permutation(theirs.permutation._permutation), ours_of_nflows_lu(theirs)])
    both_directions_agree(ours, theirs, data(2, 4, 3, 3))


@pytest.mark.filterwarnings("ignore:torch.lu")
def test_convolution_of_normflows():
    """Theirs applies the inverse matrix from latent to data."""
    flows = pytest.importorskip("normflows").flows
    theirs = flows.Invertible1x1Conv(4, use_lu=True).double()
    ours = InvertibleLinear(4).double()
    ours.load_state_dict(
        {
            "lower": theirs.L, "upper": theirs.U, "log_diagonal": theirs.log_S, "sign": theirs.sign_S,
            "permutation": theirs.P.argmax(1),
        }
    )  # fmt: skip
    both_directions_agree(Inverse(ours), theirs, data(2, 4, 3, 3))


def test_planar_of_normflows():
    flows = pytest.importorskip("normflows").flows
    theirs = randomize(flows.Planar((4,)))
    ours = Planar(4).double()
    ours.load_state_dict({"parameter": torch.cat([p.flatten() for p in (theirs.u, theirs.w, theirs.b)])})
    agree(ours(data(7, 4)), theirs(data(7, 4)))


@pytest.mark.parametrize("reverse", [False, True])
def test_all_in_one_block_of_freia(reverse):
    """FrEIA: x₂ e^{c tanh(a/10)} + b/10, then a global affine map and a permutation."""
    modules = pytest.importorskip("FrEIA.modules")
    torch.manual_seed(0)
    block = randomize(modules.AllInOneBlock([(6,)], subnet_constructor=lambda i, o: nn.Linear(i, o)))
    order = torch.tensor([2, 0, 5, 1, 4, 3])
    block.w_perm.data = functional.one_hot(order, 6).double()
    block.w_perm_inv.data = block.w_perm.data.T.contiguous()
    x = data(5, 6)
    (expected,), expected_log_abs_det = block([x], rev=reverse, jac=True)

    scale = block.global_scale_activation(block.global_scale)[0]
    normalize = ActNorm(6).double().eval()
    normalize.load_state_dict(
        {"log_scale": scale.log(), "shift": block.global_offset[0], "initialized": torch.tensor(True)}
    )
    # Their global scale is counted once for every feature's pixels, of which a vector has one.
    rest = Compose([normalize, Permutation(order)])

    def couple(x, inverse):
        shift, raw = affine_parameters(0.1 * block.subnet(x[:, :3]), "cat_scale_first")
        return affine_coupling(
            x, shift, block.clamp * raw, inverse=inverse, clamp="tanh", limit=block.clamp, split=3
        )

    if reverse:
        y, first = rest.inverse(x)
        y, second = couple(y, True)
    else:
        y, first = couple(x, False)
        y, second = rest(y)
    agree((y, first + second), (expected, expected_log_abs_det))


def test_coupling_of_freia():
    """RNVP's soft clamp 0.636 c arctan."""
    modules = pytest.importorskip("FrEIA.modules")
    torch.manual_seed(0)
    block = randomize(modules.AffineCouplingOneSided([(6,)], subnet_constructor=nn.Linear, clamp=1.5))
    x = data(5, 6)
    for reverse in (False, True):
        (expected,), log_abs_det = block([x], rev=reverse)
        log_scale, shift = block.subnet(x[:, :3]).chunk(2, 1)
        agree(
            affine_coupling(x, shift, log_scale, inverse=reverse, clamp="atan", limit=1.5, split=3),
            (expected, log_abs_det),
        )


def test_maf_of_nflows_as_our_module():
    transforms = pytest.importorskip("nflows.transforms")
    theirs = randomize(
        transforms.MaskedAffineAutoregressiveTransform(5, 8, use_residual_blocks=False, num_blocks=1)
    )
    transform = genssl_fast.ops.transforms.AffineTransform("softplus", layout="interleaved_scale_first")
    ours = genssl_fast.nn.MaskedAutoregressive(5, transform, hidden=(8, 8)).double()
    net = theirs.autoregressive_net
    for layer, masked in zip(ours.layers, (net.initial_layer, net.blocks[0].linear, net.final_layer)):
        layer.load_state_dict({"weight": masked.weight, "bias": masked.bias})
    both_directions_agree(ours, theirs, data(6, 5), 1e-10)


def test_real_nvp_of_nflows_as_our_module():
    transforms = pytest.importorskip("nflows.transforms")

    class Conditioner(nn.Linear):
        def forward(self, x, context=None):
            return super().forward(x)

    theirs = randomize(transforms.AffineCouplingTransform([1, 0, 1, 0], Conditioner))
    ours = AffineCoupling([True, False, True, False], nn.Linear, clamp="sigmoid").double()
    ours.network.load_state_dict(theirs.transform_net.state_dict())
    both_directions_agree(ours, theirs, data(6, 4))
