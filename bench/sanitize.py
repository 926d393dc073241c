"""Small runs of every CUDA C++ kernel, for compute-sanitizer: `python -m bench.sanitize`."""

import torch

import genssl_fast
from bench.sampling import euler_maruyama_table
from bench.score import random_weights
from genssl_fast.flows import MAF


def main() -> None:
    table = euler_maruyama_table(3)
    for batch, dim, hidden in ((1, 2, 128), (37, 3, 32), (130, 64, 256)):
        weights = random_weights(dim, hidden, 2, 32, "cuda")
        x = genssl_fast.random_normal((batch, dim), seed=0, device="cuda")
        for t in (torch.tensor(0.5, device="cuda"), torch.rand(batch, device="cuda")):
            assert genssl_fast.film_mlp(x, t, weights).isfinite().all()
        assert genssl_fast.film_mlp_sample(x, weights, table, seed=0).isfinite().all()
        maf = MAF(dim, layers=2, hidden=(hidden, hidden)).cuda()
        assert maf.sample(batch, seed=0).isfinite().all()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
