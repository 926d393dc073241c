"""Small models of every method, and views to train them on."""

import torch

from genssl_fast.ssl import METHODS, ConvBackbone

OPTIONS = {
    "simclr": {"hidden": 32, "out": 16},
    "moco": {"hidden": 32, "out": 16, "queue_size": 64},
    "byol": {"hidden": 64, "out": 64},
    "simsiam": {"hidden": 64, "out": 64, "bottleneck": 16},
    "barlow_twins": {"hidden": 32, "out": 32},
    "vicreg": {"hidden": 32, "out": 32},
    "swav": {"hidden": 32, "out": 16, "prototypes": 8},
    "dino": {"hidden": 32, "bottleneck": 16, "outputs": 16},
    "cpc": {"context": 16, "stripe": 4},
}


def small_model(name, **options):
    """A model of a method, with weights of its own seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return METHODS[name](ConvBackbone(1, (4, 8)), **OPTIONS[name] | options).train()


def views_of(count=16, *, number=2, seed=0, noise=0.3):
    """Views [count, 1, 16, 16] of patterns that noise does not hide."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(count, 1, 16, 16, generator=generator)
    return [patterns + noise * torch.randn(patterns.shape, generator=generator) for _ in range(number)]
