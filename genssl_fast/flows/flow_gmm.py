"""Semi-supervised classification by a flow whose noise is a mixture, one component per class."""

from __future__ import annotations

import torch
from torch import Tensor

from genssl_fast._checks import check, check_count, check_dtype, check_shape, check_tensor, values_are_checked
from genssl_fast.flows.base import GaussianMixture
from genssl_fast.flows.flow import Flow

__all__ = ["FlowGMM"]


class FlowGMM(Flow):
    r"""A flow to a mixture of Gaussians, one per class: a density and a classifier in one.

    .. math::
        p(x, k) = \frac{1}{K} N(f(x); \mu_k, \sigma^2 I) \lvert \det \partial f / \partial x \rvert

    Labelled data raise :math:`p(x, y)`, unlabelled data :math:`p(x) = \sum_k p(x, k)`.

    Arguments:
        flow: from data to noise; its layers are used, its base is not.
        num_classes: K.
        means: [K, D], fixed; by default drawn from a standard normal, which puts them about
            :math:`\sqrt{2 D}` apart. They take the dtype and the device of the flow.
        scale: σ.

    Attributes:
        config: None, for a flow is no JSON. To come back, a model is made anew of
            ``type(flow)(**flow.config)`` and its ``state_dict``, which holds means and scale.

    Raises:
        ValueError: fewer than two classes, means of the wrong shape, labels that are no class (on a GPU
            under ``GENSSL_CHECK=1``).

    References:
        Izmailov et al., Semi-Supervised Learning with Normalizing Flows, https://arxiv.org/abs/1912.13025

    Example:
        >>> from genssl_fast.flows import FlowGMM, RealNVP
        >>> model = FlowGMM(RealNVP(2, layers=4, hidden=(32,)), num_classes=3)
        >>> model.loss(torch.randn(4, 2), torch.tensor([0, 2, -1, -1])).shape  # -1: no label
        torch.Size([])
        >>> model.classify(torch.randn(4, 2)).shape
        torch.Size([4])
    """

    def __init__(self, flow: Flow, num_classes: int, *, means: Tensor | None = None, scale: float = 1.0):
        if not isinstance(flow, Flow):
            raise TypeError(f"flow: expected a Flow, got {type(flow).__name__}")
        check_count("num_classes", num_classes, 2)
        features = torch.Size(flow.shape).numel()
        means = torch.randn(num_classes, features) if means is None else means
        check_shape("means", means, (num_classes, features), "[K, D]")
        like = next(flow.parameters(), means)
        base = GaussianMixture(flow.shape, means.to(like.device, like.dtype), scale)
        super().__init__(
            flow.shape, flow.layers, base=base, context_features=flow.context_features, flat=flow.flat
        )

    def class_log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density [B, K] of data ``x`` [B, *shape] and class."""
        z, log_abs_det = self.transform(x, context)
        return self.base.component_log_prob(z) + log_abs_det[:, None]

    def classify(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The most probable class [B] of data ``x`` [B, *shape]."""
        return self.base.component_log_prob(self.transform(x, context)[0]).argmax(1)

    def loss(self, x: Tensor, labels: Tensor, context: Tensor | None = None) -> Tensor:
        """Mean negative log-likelihood per entry of a sample.

        Arguments:
            x: data [B, *shape].
            labels: int64 [B], classes; -1 where there is none.
            context: see :meth:`transform`.
        """
        check_tensor("labels", labels)
        check_shape("labels", labels, x.shape[:1], "[B]")
        self._check_labels(labels, lowest=-1)
        joint = self.class_log_prob(x, context)
        of_label = joint.gather(1, labels.clamp(0, joint.shape[1] - 1)[:, None])[:, 0]
        log_prob = torch.where(labels < 0, joint.logsumexp(1), of_label)
        return -log_prob.mean() / torch.Size(self.shape).numel()

    @torch.no_grad()
    def sample_classes(
        self,
        labels: Tensor,
        *,
        seed: int | Tensor | None = None,
        first_sample: int = 0,
        context: Tensor | None = None,
    ) -> Tensor:
        """One sample [n, *shape] of every class in ``labels``, int64 [n]."""
        self._check_labels(labels, lowest=0)
        like = self.base.means
        z = self.base.sample(len(labels), seed=seed, first_sample=first_sample, like=like, labels=labels)
        return self.inverse(z, context)[0]

    def _check_labels(self, labels: Tensor, lowest: int) -> None:
        check_dtype("labels", labels, (torch.int64,))
        if values_are_checked(labels):
            highest = len(self.base.means) - 1
            wrong = labels[(labels < lowest) | (labels > highest)]
            check(len(wrong) == 0, "labels", f"numbers from {lowest} to {highest}", wrong[:1].tolist())
