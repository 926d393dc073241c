"""FiLM-MLP: the battery, bits that do not depend on the batch, plans that notice new weights."""

import copy
import pickle

import pytest
import torch
from torch.autograd import forward_ad

import genssl_fast
from genssl_fast import FilmMLPPlan, FilmMLPWeights, reference
from genssl_fast._library import INSTRUCTION_SETS, instruction_set
from genssl_fast.ops.score import raw_film_mlp, sinusoidal_frequencies
from tests.battery import Battery, Case, assert_close_enough
from tests.ops.film_mlp_inputs import draw_weights
from tests.ops.instruction_sets import outputs_under

CPU = torch.device("cpu")
needs_kernels = pytest.mark.skipif(instruction_set() is None, reason="compiled kernels are not built")


def frequencies_of(weights, device=CPU):
    return sinusoidal_frequencies(weights.w_embed1.shape[1], "dit", 1e4, device)


def network_inputs(dim, hidden, blocks, embed, time_dim, classes=None, shared=False):
    """The maker of (x, t, labels, *weights) for a battery case."""

    def make(dtype, size, generator):
        weights = draw_weights(
            dim, hidden, blocks, embed, time_dim, classes, dtype=dtype, generator=generator
        )
        x = torch.randn(size, dim, generator=generator).to(dtype)
        t = (3 * torch.rand(() if shared else (size,), generator=generator)).to(dtype)
        labels = None
        if classes is not None:
            labels = torch.randint(0, classes, (size,), generator=generator)
        return x, t, labels, *weights

    return make


def run(x, t, labels, *weights):
    return genssl_fast.film_mlp(x, t, FilmMLPWeights(*weights), labels=labels)


def plain(x, t, labels, *weights):
    weights = FilmMLPWeights(*weights)
    return reference.score.film_mlp(x, t, frequencies_of(weights, x.device), False, *weights, labels)


def raw(x, t, labels, *weights):
    return raw_film_mlp, (x, t, frequencies_of(FilmMLPWeights(*weights)), False, *weights, labels)


WEIGHTS = tuple(range(3, 12))
SMALL = draw_weights(3, 4, 1, 2, 5, 2)
X = torch.zeros(2, 3)


class TestFilmMLP(Battery):
    cases = {
        "per sample": Case(run, plain, network_inputs(3, 5, 2, 4, 6), (0, 1, *WEIGHTS), raw),
        "shared time": Case(run, plain, network_inputs(2, 4, 1, 3, 3, shared=True), (0, 1, *WEIGHTS), raw),
        "labels": Case(run, plain, network_inputs(2, 3, 1, 3, 2, 3), (0, 1, *WEIGHTS, 12), raw),
    }
    errors = {
        "x": (
            lambda: genssl_fast.film_mlp(torch.zeros(3), 0.0, SMALL),
            ValueError,
            r"x: expected shape \[B, D\], got \[3\]",
        ),
        "width": (
            lambda: genssl_fast.film_mlp(torch.zeros(2, 4), 0.0, SMALL),
            ValueError,
            r"weights.w_in: expected shape \[H, D\] = \[4, 4\], got \[4, 3\]",
        ),
        "dtype": (
            lambda: genssl_fast.film_mlp(X.double(), 0.0, SMALL),
            TypeError,
            "weights.w_in: expected the dtype of x, torch.float64",
        ),
        "t": (
            lambda: genssl_fast.film_mlp(X, torch.zeros(3), SMALL),
            ValueError,
            r"t: expected shape \[\] or \[B\], got \[3\]",
        ),
        "labels": (
            lambda: genssl_fast.film_mlp(X, 0.0, SMALL, labels=torch.tensor([0, 2])),
            ValueError,
            "labels: expected 0 to 1, got 0 to 2",
        ),
        "no classes": (
            lambda: genssl_fast.film_mlp(X, 0.0, FilmMLPWeights(*SMALL[:9]), labels=X[:, 0].long()),
            ValueError,
            "labels: expected None for weights without class_embedding",
        ),
        "rank": (
            lambda: genssl_fast.film_mlp(X, 0.0, SMALL._replace(w=torch.zeros(4, 4))),
            ValueError,
            r"weights.w: expected shape \[L, H, H\], got \[4, 4\]",
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "widths", [(1, 1, 1, 1, 1), (7, 33, 0, 8, 5), (40, 100, 2, 65, 33), (2, 256, 1, 48, 64)]
)
def test_any_width(widths, dtype):
    x, t, labels, *weights = network_inputs(*widths, classes=3)(dtype, 29, torch.Generator().manual_seed(0))
    exact = plain(x.double(), t.double(), labels, *(w.double() for w in weights))
    in_torch, ours = plain(x, t, labels, *weights), run(x, t, labels, *weights)
    if dtype == torch.float64:  # both round: one chain of 256 terms against a sum in pieces
        torch.testing.assert_close(ours, exact, rtol=1e-13, atol=1e-13)
    else:
        assert_close_enough(ours, in_torch, exact, 2, f"widths {widths}")


def large_batch(shared):
    make = network_inputs(19, 70, 2, 40, 21, 5, shared)
    return make(torch.float32, 217, torch.Generator().manual_seed(1))


@needs_kernels
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "per sample"])
def test_bits_do_not_depend_on_the_batch(shared):
    x, t, labels, *weights = large_batch(shared)
    whole = run(x, t, labels, *weights)
    for first, count in [(0, 1), (3, 2), (100, 3), (11, 13), (5, 97), (120, 97), (216, 1)]:
        part = slice(first, first + count)
        time = t if shared else t[part]
        assert torch.equal(run(x[part], time, labels[part], *weights), whole[part]), (first, count)


@needs_kernels
def test_shared_time_has_the_bits_of_a_time_per_sample():
    x, t, labels, *weights = large_batch(True)
    expected = run(x, t.expand(len(x)).contiguous(), labels, *weights)
    assert torch.equal(run(x, t, labels, *weights), expected)
    assert torch.equal(run(x, float(t), labels, *weights), expected)


ISA_PROGRAM = """
import sys, torch
from tests.ops.test_film_mlp import large_batch, run
outputs = []
for shared in (True, False):
    x, t, labels, *weights = large_batch(shared)
    for dtype in (torch.float32, torch.float64):
        args = [v if v.dtype == torch.int64 else v.to(dtype) for v in (x, t, labels, *weights)]
        outputs.append(run(*args))
        one = [args[0][50:51], args[1] if shared else args[1][50:51], args[2][50:51], *args[3:]]
        assert torch.equal(run(*one)[0], outputs[-1][50])
torch.save(outputs, sys.argv[1])
"""


@needs_kernels
@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_every_instruction_set(isa, tmp_path):
    found = iter(outputs_under(isa, ISA_PROGRAM, tmp_path))
    for shared in (True, False):
        tensors = large_batch(shared)
        exact = plain(*(v if v.dtype == torch.int64 else v.double() for v in tensors))
        assert_close_enough(next(found), plain(*tensors), exact, 2, isa)
        torch.testing.assert_close(next(found), exact, rtol=1e-13, atol=1e-13)


@needs_kernels
class TestPlan:
    def test_has_the_bits_of_the_operation(self):
        for shared in (True, False):
            x, t, labels, *weights = large_batch(shared)
            plan = FilmMLPPlan(FilmMLPWeights(*weights))
            for _ in range(2):
                assert torch.equal(plan(x, t, labels=labels), run(x, t, labels, *weights))

    def test_notices_weights_changed_in_place(self):
        x, t, labels, *weights = large_batch(False)
        plan = FilmMLPPlan(FilmMLPWeights(*weights))
        before = plan(x, t, labels=labels)
        weights[2].mul_(1.5)
        after = plan(x, t, labels=labels)
        assert torch.equal(after, run(x, t, labels, *weights))
        assert not torch.equal(after, before)

    def test_notices_a_replaced_copy_at_the_same_address(self):
        x, t, labels, *weights = large_batch(True)
        weights[0] = torch.nn.Parameter(weights[0].t().contiguous().t())
        plan = FilmMLPPlan(FilmMLPWeights(*weights))
        for _ in range(3):
            plan(x, t, labels=labels)
            weights[0].data = torch.randn_like(weights[0])
            assert torch.equal(plan(x, t, labels=labels), run(x, t, labels, *weights))

    def test_notices_changed_frequencies(self):
        x, t, labels, *weights = large_batch(True)
        options = {"kind": "fourier", "frequencies": torch.rand(weights[5].shape[1] // 2)}
        plan = FilmMLPPlan(FilmMLPWeights(*weights), **options)
        plan(x, t, labels=labels)
        options["frequencies"].mul_(2)
        expected = genssl_fast.film_mlp(x, t, FilmMLPWeights(*weights), labels=labels, **options)
        assert torch.equal(plan(x, t, labels=labels), expected)

    def test_inference_tensors_are_read_anew(self):
        with torch.inference_mode():
            x, t, labels, *weights = (v.clone() for v in large_batch(True))
            plan = FilmMLPPlan(FilmMLPWeights(*weights))
            plan(x, t, labels=labels)
            weights[2].mul_(1.5)
            assert torch.equal(plan(x, t, labels=labels), run(x, t, labels, *weights))

    def test_copies_pack_for_themselves(self):
        x, t, labels, *weights = large_batch(True)
        plan = FilmMLPPlan(FilmMLPWeights(*weights))
        expected = plan(x, t, labels=labels)
        for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
            assert torch.equal(copied(x, t, labels=labels), expected)

    def test_refuses_tangents(self):
        x, t, labels, *weights = large_batch(True)
        plan = FilmMLPPlan(FilmMLPWeights(*weights))
        with forward_ad.dual_level(), pytest.raises(RuntimeError, match="has no derivative"):
            plan(forward_ad.make_dual(x, x), t, labels=labels)

    def test_refresh_sees_what_versions_do_not(self):
        x, t, labels, *weights = large_batch(True)
        plan = FilmMLPPlan(FilmMLPWeights(*weights))
        before = plan(x, t, labels=labels)
        weights[2].numpy()[...] *= 1.5
        assert torch.equal(plan(x, t, labels=labels), before)
        plan.refresh()
        assert torch.equal(plan(x, t, labels=labels), run(x, t, labels, *weights))

    def test_rejects_what_it_cannot_hold(self):
        with pytest.raises(ValueError, match="weights: expected dtype"):
            FilmMLPPlan(FilmMLPWeights(*(w.half() for w in SMALL)))
        with pytest.raises(ValueError, match=r"x: expected shape \[B, D\]"):
            FilmMLPPlan(SMALL)(torch.zeros(3), 0.0)
        network = genssl_fast.nn.FilmMLP(2, hidden=4)
        plan = FilmMLPPlan(network.weights())
        with pytest.raises(ValueError, match="t: expected a tensor on cpu"):
            plan(torch.zeros(1, 2), torch.zeros((), device="meta"))
        network.bfloat16()
        with pytest.raises(ValueError, match="x: expected dtype"):
            plan(torch.zeros(1, 2, dtype=torch.bfloat16), 0.0)
