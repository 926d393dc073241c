"""The queue: first in, first out, in place, past its end."""

import pytest
import torch
from torch.nn import functional as F

from genssl_fast.ssl import EmbeddingQueue
from tests.ssl.models import small_model, views_of


def unit_rows(count, seed=0):
    return F.normalize(torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_oldest_rows_make_way_past_the_end_too():
    queue, keys = EmbeddingQueue(5, 3), unit_rows(11)
    memory = queue.rows.data_ptr()
    for batch in keys.split(3):
        queue.push(batch)
    assert queue.rows.data_ptr() == memory
    assert int(queue.position) == 11 % 5
    # Key k went to row k mod 5, over key k - 5.
    expected = torch.stack([keys[10], keys[6], keys[7], keys[8], keys[9]])
    torch.testing.assert_close(queue.rows, expected)


def test_a_batch_may_fill_it():
    queue, keys = EmbeddingQueue(4, 3), unit_rows(4)
    queue.push(unit_rows(3, seed=1))
    queue.push(keys)
    torch.testing.assert_close(queue.rows[[3, 0, 1, 2]], keys)


def test_keys_are_normalized():
    queue = EmbeddingQueue(4, 3)
    queue.push(7 * unit_rows(2))
    torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(4))


def test_a_queue_shorter_than_a_batch_is_refused():
    with pytest.raises(ValueError, match=r"^queue: expected at least 5 rows, to hold a batch of keys, got 4"):
        EmbeddingQueue(4, 3).push(unit_rows(5))
    model = small_model("moco", queue_size=31)
    with pytest.raises(ValueError, match=r"^queue: expected at least 32 rows"):
        model.training_step(views_of(16))


def test_keys_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"^keys: expected shape"):
        EmbeddingQueue(4, 2).push(unit_rows(2))


def test_a_loss_sees_the_queue_before_its_own_keys():
    model = small_model("moco")
    before = model.queue.rows.clone()
    loss = model.training_step(views_of(16))
    assert torch.equal(model.queue.rows, before)
    loss.backward()
    model.after_step()
    assert not torch.equal(model.queue.rows[:32], before[:32])
    assert torch.equal(model.queue.rows[32:], before[32:])
    assert int(model.queue.position) == 32
