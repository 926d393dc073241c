"""Pictures of embeddings."""

from pathlib import Path

import numpy as np
from torch import Tensor

from genssl_fast._checks import check
from genssl_fast._files import replacing

__all__ = ["project", "save_embedding"]


def project(features: Tensor, projection: str) -> np.ndarray:
    """Features [N, F] as points [N, 2]: principal components, or t-SNE."""
    least = 3 if projection == "pca" else 5
    check(len(features) >= least, "picture", f"at least {least} samples", len(features))
    points = features.double().numpy()
    if projection == "pca":
        from genssl_fast.metrics import principal_components

        count = min(2, points.shape[1])
        points = (points - points.mean(0)) @ principal_components(points, count).T
        return np.pad(points, ((0, 0), (0, 2 - count)))
    from sklearn.manifold import TSNE

    return TSNE(init="pca", random_state=0, perplexity=min(30, (len(points) - 1) / 3)).fit_transform(points)


def save_embedding(path: Path, features: Tensor, labels: Tensor | None, projection: str) -> None:
    """Draws features [N, F] as points of the plane, in the colours of their labels [N]."""
    from matplotlib.figure import Figure

    points = project(features, projection)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(aspect="equal" if projection == "pca" else "auto", xticks=[], yticks=[])
    classes = [None] if labels is None else labels.unique().tolist()
    colours = "tab10" if len(classes) <= 10 else "tab20"
    for number, label in enumerate(classes):
        chosen = points if label is None else points[labels.numpy() == label]
        colour = _colour(colours, number)
        axes.scatter(*chosen.T, s=8, linewidths=0, color=colour, label=None if label is None else str(label))
    if 1 < len(classes) <= 20:
        axes.legend(loc="best", markerscale=2, frameon=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=150)
    except OSError as error:
        raise OSError(f"picture: expected a path that can be written, got {path} ({error})") from error


def _colour(colours: str, number: int):
    from matplotlib import colormaps

    palette = colormaps[colours].colors
    return palette[number % len(palette)]
