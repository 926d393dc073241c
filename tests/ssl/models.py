"""Small models of every method, and views to train them on."""

import torch

from genssl_fast.ssl import METHODS, ConvBackbone

OPTIONS = {
    "moco": {"queue_size": 64},
    "swav": {"prototypes": 8},
    "dino": {"outputs": 16},
    "cpc": {"stripe": 4},
}


def small_model(name, **options):
    """A model of a method with its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ConvBackbone(1, (4, 8))
        return METHODS[name](backbone, **OPTIONS.get(name, {}) | options).train()


def views_of(count=16, *, number=2, seed=0, noise=0.3):
    """Views [count, 1, 16, 16] of patterns that noise does not hide."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(count, 1, 16, 16, generator=generator)
    return [
        patterns + noise * torch.randn(patterns.shape, generator=generator, dtype=patterns.dtype)
        for _ in range(number)
    ]
