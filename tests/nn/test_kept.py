"""Values kept between calls are never stale."""

import copy
import pickle

import torch

from genssl_fast.nn.kept import Kept, records_nothing


def test_keeps_while_nothing_changes():
    kept, weight = Kept(), torch.nn.Parameter(torch.ones(3))
    with torch.no_grad():
        first = kept([weight], lambda: weight.sum())
        assert kept([weight], lambda: weight.sum()) is first
        weight.add_(1)
        assert kept([weight], lambda: weight.sum()) == 6
        other = torch.nn.Parameter(torch.ones(3))
        assert kept([other], lambda: other.sum()) == 3


def test_keeps_nothing_where_operations_are_recorded():
    kept, weight = Kept(), torch.nn.Parameter(torch.ones(3))
    assert kept([weight], lambda: weight.sum()).requires_grad
    with torch.no_grad():
        assert not kept([weight], lambda: weight.sum()).requires_grad
        _, tangent = torch.func.jvp(lambda w: kept([w], lambda: w.sum()), (weight,), (torch.ones(3),))
    assert tangent == 3
    assert kept([weight], lambda: weight.sum()).requires_grad


def test_copies_start_empty():
    kept, weight = Kept(), torch.ones(3)
    with torch.no_grad():
        kept([weight], lambda: weight.sum())
        for other in (copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
            assert other([weight], lambda: "new") == "new"


def test_inference_tensors_have_no_version_and_are_not_kept():
    kept = Kept()
    with torch.inference_mode():
        weight = torch.ones(3)
        assert kept([weight], lambda: weight.sum()) == 3
        weight.add_(1)
        assert kept([weight], lambda: weight.sum()) == 6


def test_recording():
    assert not records_nothing()
    with torch.no_grad():
        assert records_nothing()
        assert not torch.func.vmap(lambda x: x * records_nothing())(torch.ones(2)).any()
