"""Networks and samplers that several test modules draw."""

import torch

from genssl_fast import CoefficientTable, FilmMLPWeights


def draw_weights(dim, hidden, blocks, embed, time_dim, classes=None, *, dtype=torch.float32, generator=None):
    """Normal weights that keep activations of size one."""
    shapes = [
        (hidden, dim), (hidden,), (blocks, hidden, hidden), (blocks, hidden),
        (blocks, 2 * hidden, embed), (embed, time_dim), (embed, embed), (dim, hidden), (dim,),
    ]  # fmt: skip
    shapes += [] if classes is None else [(classes, embed)]
    drawn = [torch.randn(shape, generator=generator) / max(shape[-1], 1) ** 0.5 for shape in shapes]
    return FilmMLPWeights(*(weight.to(dtype) for weight in drawn))


def sampler_table(rows=5):
    """Two states, three predictions, noise in every second row and clipping in most."""
    times = torch.linspace(1.0, 0.1, rows).tolist()
    return CoefficientTable.from_rows(
        [
            {
                "state": [0.9, 0.05],
                "prediction": [0.1, -0.03, 0.02],
                "output": -0.04,
                "noise": 0.1 * (row % 2),
                "denoise": (1.0, -0.5),
                "clip": 0.8 if row % 3 else float("inf"),
                "time": time,
            }
            for row, time in enumerate(times)
        ]
    )
