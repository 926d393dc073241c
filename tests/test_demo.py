"""The checkpoint that the demo draws from, and the plain loop that it is compared with."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch

from genssl_fast.checkpoint import load_checkpoint
from genssl_fast.data import load_digits
from genssl_fast.metrics import frechet_distance, principal_components
from genssl_fast.score_model import ScoreModel

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "checkpoints" / "digits_vp.safetensors"


@pytest.fixture(scope="module")
def model():
    return ScoreModel.load(CHECKPOINT)


@pytest.fixture(scope="module")
def plain_pytorch():
    path = ROOT / "examples" / "plain_pytorch.py"
    specification = importlib.util.spec_from_file_location("plain_pytorch", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_checkpoint_is_small_and_says_how_it_was_made():
    tensors, config = load_checkpoint(CHECKPOINT)
    assert CHECKPOINT.stat().st_size < 1_000_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert config["command"] in (CHECKPOINT.parent / "README.md").read_text()
    assert config["training"]["step"] == config["training"]["steps"]


def test_digits_are_good(model):
    training, held_out = (data.scale.restore(data.samples) for data in load_digits())
    components = principal_components(training, 20)
    distances = [
        frechet_distance(model.sample(4096, seed=seed), held_out, components=components) for seed in range(3)
    ]
    assert sorted(distances)[1] <= 26, distances


def test_plain_loop_draws_the_same_digits(model, plain_pytorch):
    prior = model.process.prior_sampling((64, 1, 8, 8), seed=0).flatten(1)
    plain = model.config.scale.restore(plain_pytorch.sample(model, prior, 50))
    compiled = model.sample(64, steps=50, seed=0).flatten(1)
    torch.testing.assert_close(plain, compiled, rtol=0, atol=2e-3)
    assert not math.isclose(plain.min(), plain.max())
