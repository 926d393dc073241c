"""Sinkhorn's codes and DINO's center over processes, uneven shards included, equal those of one process."""

import pytest
import torch
from torch import distributed as dist

import genssl_fast
from tests.processes import in_processes

SHARDS = {1: [9], 2: [5, 4], 4: [3, 0, 5, 1]}


def logits_of_all():
    return 3 * torch.randn(9, 7, generator=torch.Generator().manual_seed(0))


def of_shard(rank, shards):
    everyone, shard = dist.group.WORLD, logits_of_all().split(shards)[rank]
    codes = genssl_fast.sinkhorn(shard, epsilon=0.04, group=everyone)
    center = genssl_fast.update_center(torch.ones(7), shard, group=everyone)
    message = ""
    try:
        genssl_fast.sinkhorn(torch.zeros(2, 3 + rank), group=everyone)
    except ValueError as error:
        message = str(error)
    return codes, center, message


@pytest.mark.parametrize("processes", SHARDS)
def test_processes_equal_one(processes):
    everything = logits_of_all()
    codes, centers, messages = zip(*in_processes(processes, of_shard, SHARDS[processes]))
    expected = genssl_fast.sinkhorn(everything, epsilon=0.04)
    torch.testing.assert_close(torch.cat(codes), expected, rtol=1e-6, atol=1e-7)
    expected = 0.9 + 0.1 * everything.mean(0)
    for rank in range(processes):
        torch.testing.assert_close(centers[rank], expected, rtol=1e-6, atol=1e-7)
        disagreement = f"in every process of the group, got from 3 to {2 + processes}, {3 + rank} in this one"
        assert (disagreement in messages[rank]) == (processes > 1)
