"""Benchmarks of vector quantisation and k-means."""

import functools

import torch

import genssl_fast
from bench import ceilings
from bench.baselines import compiled, lazily, onednn_linear
from bench.case import OURS, Bar, Family, Workload
from genssl_fast import reference

cases = Family("contrast")

ROWS, CODES, DIM = 65536, 1024, 64


def draw(device, rows=ROWS, codes=CODES, dim=DIM):
    """x [N, D] and a codebook [K, D] of normal numbers."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, dim, generator=generator).to(device) for n in (rows, codes))


def by_cdist(x, codebook):
    distances, indices = torch.cdist(x, codebook).min(-1)
    return distances.square(), indices


def by_product(x, codebook):
    """One product with the norms of the codes added in it; those of x on what is left."""
    scores = torch.addmm(codebook.square().sum(-1), x, codebook.mT, alpha=-2)
    lowest, indices = scores.min(-1)
    return lowest + x.square().sum(-1), indices


def by_onednn(x, codebook):
    scores = onednn_linear(x, -2 * codebook, codebook.square().sum(-1))
    lowest, indices = scores.min(-1)
    return lowest + x.square().sum(-1), indices


def peer_quantizer(x, codebook):
    """vector-quantize-pytorch without training; it gives codes and indices."""
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(codebook.shape[1], codebook.shape[0]).to(x.device).eval()
    quantizer.codebook = codebook
    return lambda: quantizer(x[None])[:2]


PRODUCTS = ("cdist", "cdist compiled", "product", "product compiled")
PEER = "vector-quantize-pytorch"


@cases.case(
    "nearest_code", "65536×64, 1024 codes",
    cpu_bars=(Bar(2.3, (*PRODUCTS, "oneDNN", "oneDNN compiled", PEER)),),
)  # fmt: skip
def nearest_code(device):
    x, codebook = draw(device)
    forms = {"cdist": by_cdist, "product": by_product}
    if device == "cpu":
        forms["oneDNN"] = by_onednn
    competitors = {}
    for name, form in forms.items():
        form_compiled = compiled(form)
        competitors[name] = functools.partial(form, x, codebook)
        competitors[f"{name} compiled"] = functools.partial(form_compiled, x, codebook)
    flops = 2 * ROWS * CODES * DIM

    @functools.cache  # exact, and slow
    def found(dtype):
        return (reference.contrast.nearest_code(x.to(dtype), codebook.to(dtype))[1],)

    return Workload(
        providers={
            OURS: lambda: (genssl_fast.nearest_code(x, codebook).distances,),
            **competitors,
            PEER: lazily(functools.partial(peer_quantizer, x, codebook)),
        },
        reference=found,
        flops=flops,
        ceilings=ceilings.micro_kernel(flops, DIM, device),
        own_values=(PEER,),
    )
