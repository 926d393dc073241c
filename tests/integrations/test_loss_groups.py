"""Losses of lightly and open_clip against ours in two processes: values, and gradients.

open_clip with the whole loss in every process leaves a process the whole gradient of the scale; ours leaves
it that of its own rows, times the number of processes. So gradients of numbers are compared by their sums.
"""

import functools
import sys

import pytest
import torch
from torch import distributed as dist
from torch.nn import functional

from bench.peers import import_past_init
from genssl_fast.integrations import lightly, open_clip
from tests.integrations.losses import drawn, value_and_gradients
from tests.processes import in_processes

SIZE, COUNT, D = 2, 5, 4
CLIP = [(local, grad) for local in (False, True) for grad in (False, True)]
SIGLIP = ["bidir", "shift", "reduce", "gather"]


def concat_all_gather(x):
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def of_crops(module, iterations):
    loss = module.SwaVLoss(sinkhorn_iterations=iterations, sinkhorn_gather_distributed=True)
    return lambda first, second: loss([first, second], [])


def pairs_of_losses(rank) -> dict:
    """By name, ours and theirs, and the numbers that they take beside two views."""
    clip = import_past_init("open_clip.loss")
    ntx_ent = import_past_init("lightly.loss.ntx_ent_loss", "lightly.models.utils")
    dcl = import_past_init("lightly.loss.dcl_loss", "lightly.models.utils")
    sys.modules["lightly.models.utils"].concat_all_gather = concat_all_gather
    barlow = import_past_init("lightly.loss.barlow_twins_loss")
    vicreg = import_past_init("lightly.loss.vicreg_loss")
    swav = import_past_init("lightly.loss.swav_loss")
    where = {"rank": rank, "world_size": SIZE}

    def banked(module):
        torch.manual_seed(1)
        return module.NTXentLoss(0.2, (12, D), gather_distributed=True).double()

    found = {
        "nt_xent": ([m.NTXentLoss(0.2, gather_distributed=True) for m in (lightly, ntx_ent)], []),
        "dcl": ([m.DCLLoss(0.2, gather_distributed=True) for m in (lightly, dcl)], []),
        "memory bank": ([banked(m) for m in (lightly, ntx_ent)], []),
        "barlow_twins": ([m.BarlowTwinsLoss(0.3, gather_distributed=True) for m in (lightly, barlow)], []),
        "vicreg": ([m.VICRegLoss(gather_distributed=True) for m in (lightly, vicreg)], []),
    }
    for iterations in (0, 3):
        found[f"swav {iterations}"] = [of_crops(m, iterations) for m in (lightly, swav)], []
    for local, grad in CLIP:
        options = {"local_loss": local, "gather_with_grad": grad, **where}
        found[f"clip {local} {grad}"] = [m.ClipLoss(**options) for m in (open_clip, clip)], [3.0]
    for kind in SIGLIP:
        made = [m.SigLipLoss(dist_impl=kind, **where) for m in (open_clip, clip)]
        found[f"siglip {kind}"] = made, [3.0, -2.0]
    return found


def process(rank) -> dict:
    """Relative errors by name."""
    results = {}
    for name, (losses, numbers) in pairs_of_losses(rank).items():
        views = [functional.normalize(drawn(COUNT, D, seed=2 * rank + i)) for i in range(2)]
        inputs = views + [torch.tensor(number, dtype=torch.float64) for number in numbers]
        for step in range(2):
            mine, theirs = (value_and_gradients(loss, *inputs) for loss in losses)
            for gradients in (mine[3:], theirs[3:]):
                for gradient in gradients:
                    dist.all_reduce(gradient)
            for i, (found, expected) in enumerate(zip(mine, theirs)):
                error = (found - expected).abs().max() / expected.abs().max()
                results[name, step, i] = error.item()
    return results


@functools.cache
def outcomes() -> list[dict]:
    return in_processes(SIZE, process)


def test_values_and_gradients():
    try:
        pairs_of_losses(0)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    for rank, found in enumerate(outcomes()):
        assert len(found) == 2 * (7 * 3 + 4 * 4 + 4 * 5)
        for name, error in found.items():
            assert error <= 1e-12, (rank, name)


def ranks(rank) -> list[str]:
    messages = []
    for where in ({"rank": 1 - rank, "world_size": SIZE}, {"rank": rank, "world_size": 3}):
        with pytest.raises(ValueError) as raised:
            open_clip.ClipLoss(**where)(torch.eye(D), torch.eye(D), 1.0)
        messages.append(str(raised.value))
    return messages


def test_wrong_ranks():
    for rank, messages in enumerate(in_processes(SIZE, ranks)):
        assert f"rank: expected that of this process, {rank}" in messages[0]
        assert "world_size: expected 2 processes" in messages[1]
