"""What flows and their plans are asked for."""

import math

from torch import Tensor

from genssl_fast._checks import check_count

__all__ = ["FlowMethods"]


class FlowMethods:
    """The calls of a density that is given by an invertible map from data to noise.

    A subclass has the ``shape`` of a sample and computes with ``_map(x, context, inverse)``,
    ``_density(x, context)`` and ``_draw(n, seed, first_sample, context, with_log_prob)``.
    """

    shape: tuple[int, ...]

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to noise.

        Arguments:
            x: data [B, *shape].
            context: [B, context_features], or [context_features] for all.

        Returns:
            noise like ``x``, and the log-determinant [B] of its derivative, in fp32 (fp64 for fp64).
        """
        return self._map(x, context, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Noise to data, the inverse of :meth:`transform`, and the log-determinant [B] of its derivative."""
        return self._map(z, context, inverse=True)

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density [B] of data ``x`` [B, *shape], in nats."""
        return self._density(x, context)

    def bits_per_dim(self, x: Tensor, num_levels: int, context: Tensor | None = None) -> Tensor:
        """Negative log2-probability per entry [B] of data of ``num_levels`` levels, dequantised to [0, 1)."""
        check_count("num_levels", num_levels, 1)
        nats = -self.log_prob(x, context) / math.prod(self.shape)
        return nats / math.log(2) + math.log2(num_levels)

    def sample(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """Samples [n, *shape].

        Arguments:
            n: how many.
            seed: of the noise; None draws one from PyTorch's default generator.
            first_sample: number of the first; the noise of a sample depends on seed and number alone.
            context: [n, context_features], or [context_features] for all.
        """
        return self._draw(n, seed, first_sample, context, with_log_prob=False)[0]

    def sample_and_log_prob(
        self,
        n: int,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples [n, *shape] and their log-densities [n], for the price of the samples."""
        return self._draw(n, seed, first_sample, context, with_log_prob=True)
