"""A first-in, first-out queue of embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from genssl_fast._checks import check, check_count, check_shape

__all__ = ["EmbeddingQueue"]


class EmbeddingQueue(nn.Module):
    """The latest embeddings of unit norm, in a ring that is written in place.

    It begins with random directions. A loss must have had its backward pass before the next :meth:`push`.

    Arguments:
        size: K, how many embeddings.
        features: D.

    Attributes:
        rows: [K, D], in no particular order of age.
        position: int64 [], the row that is replaced next, the oldest.

    Example:
        >>> queue = EmbeddingQueue(4, 2)
        >>> queue.push(torch.eye(2).repeat(3, 1)[:3])
        >>> int(queue.position)
        3
    """

    def __init__(self, size: int, features: int):
        super().__init__()
        check_count("size", size, 1)
        check_count("features", features, 1)
        self.register_buffer("rows", F.normalize(torch.randn(size, features), dim=1))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))

    def check_fits(self, count: int) -> None:
        """Refuses a batch of more keys than there are rows."""
        size = len(self.rows)
        check(count <= size, "queue", f"at least {count} rows, to hold a batch of keys", size)

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Replaces the oldest rows by keys [B, D], which are normalized.

        Raises:
            ValueError: If B exceeds the size of the queue.
        """
        size, features = self.rows.shape
        check_shape("keys", keys, (len(keys), features), "[B, D]")
        self.check_fits(len(keys))
        # On the device, without reading the position.
        places = (self.position + torch.arange(len(keys), device=self.rows.device)) % size
        self.rows.index_copy_(0, places, F.normalize(keys, dim=1).to(self.rows.dtype))
        self.position.add_(len(keys)).remainder_(size)
