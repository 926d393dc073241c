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


# Two updates: then these clusters are found, and scikit-learn would stop before the others.
POINTS, CLUSTERS, FEATURES, UPDATES = 20_000, 100, 32, 2


def lloyd(x, centers, nearest):
    """Updates of the centers; `nearest` finds the nearest ones."""
    for _ in range(UPDATES):
        indices = nearest(x, centers)
        counts = x.new_zeros(len(centers)).index_add_(0, indices, x.new_ones(()).expand(len(x)))
        sums = torch.zeros_like(centers).index_add_(0, indices, x)
        centers = torch.where(counts[:, None] > 0, sums / counts[:, None], centers)
    return (centers,)


@cases.case("kmeans", f"20000×32, 100 clusters, {UPDATES} updates")
def kmeans(device):
    noise, places = draw(device, POINTS, CLUSTERS, FEATURES)
    x = noise + 4 * places[torch.arange(POINTS, device=device) % CLUSTERS]
    start = x[:CLUSTERS]

    def scikit_learn():
        from sklearn.cluster import KMeans

        settings = {"n_init": 1, "max_iter": UPDATES, "tol": 0, "algorithm": "lloyd"}
        peer = KMeans(CLUSTERS, init=start.cpu().numpy(), **settings)
        points = x.cpu().numpy()
        return lambda: (torch.from_numpy(peer.fit(points).cluster_centers_),)

    def product(x, centers):
        return by_product(x, centers)[1]

    @functools.cache
    def reference_centers(dtype):
        return lloyd(
            x.to(dtype), start.to(dtype), lambda *args: reference.contrast.nearest_code(*args)[0]
        )  # fmt: skip

    options = {"init": start, "iterations": UPDATES, "tolerance": 0}
    return Workload(
        providers={
            OURS: lambda: genssl_fast.kmeans(x, CLUSTERS, **options).centers,
            "eager": lambda: lloyd(x, start, product),
            "scikit-learn": lazily(scikit_learn),
        },
        reference=reference_centers,
        flops=2 * (UPDATES + 1) * POINTS * CLUSTERS * FEATURES,
        ceilings=ceilings.micro_kernel(2 * (UPDATES + 1) * POINTS * CLUSTERS * FEATURES, FEATURES, device),
        whole_loop=True,
    )
