"""open_clip's losses against ours in one process; several are in test_loss_groups."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from bench.peers import import_past_init
from genssl_fast.integrations import open_clip as ours
from tests.integrations.losses import drawn, drawn_examples, same_loss, seeds

try:
    theirs = import_past_init("open_clip.loss")
except ModuleNotFoundError:
    pytest.skip("open_clip is not installed", allow_module_level=True)

sizes = st.integers(1, 9)


def features(count, length, seed):
    return [functional.normalize(drawn(count, length, seed=seed + i)) for i in range(2)]


@drawn_examples
@given(
    count=sizes, length=sizes, seed=seeds(), scale=st.floats(0.1, 100), bias=st.none() | st.floats(-10, 10),
    output_dict=st.booleans(), cached=st.booleans(),
)  # fmt: skip
@pytest.mark.parametrize("name", ["ClipLoss", "SigLipLoss"])
def test_losses(name, count, length, seed, scale, bias, output_dict, cached):
    numbers = [torch.tensor(value, dtype=torch.float64) for value in (scale, bias) if value is not None]

    def call(module):
        loss = getattr(module, name)(cache_labels=cached)

        def run(image, text, scale, bias=None):
            found = loss(image, text, scale, bias, output_dict=output_dict)
            assert isinstance(found, dict) == output_dict
            return found["contrastive_loss"] if output_dict else found

        return run

    same_loss(call(ours), call(theirs), *features(count, length, seed), *numbers)


def test_errors():
    with pytest.raises(NotImplementedError, match="use_horovod"):
        ours.ClipLoss(use_horovod=True)
    with pytest.raises(ValueError, match="dist_impl"):
        ours.SigLipLoss(dist_impl="tree")
    for loss in (ours.ClipLoss(world_size=2), ours.ClipLoss(local_loss=True, world_size=2)):
        with pytest.raises(ValueError, match="world_size: expected 1"):
            loss(torch.eye(3), torch.eye(3), 1.0)
    with pytest.raises(ValueError, match="world_size: expected 1"):
        ours.SigLipLoss(world_size=2)(torch.eye(3), torch.eye(3), 1.0, 0.0)
