"""open_clip's contrastive losses on kernels of this library, without matrices of pairs; as in version 3.3.

Same signatures, defaults and results. Losses are in fp32 (fp64 for fp64), whatever the dtype of the features.
With ``world_size`` > 1 nothing is gathered: blocks travel a ring (:mod:`genssl_fast.ops.ring`) of the default
group, and processes may hold different numbers of samples. open_clip is not imported.
There are no ``get_logits`` and ``get_ground_truth``, which would be matrices of pairs.
"""

import torch
from torch import Tensor, nn
from torch import distributed as dist

from genssl_fast._checks import check, check_choice, check_shape
from genssl_fast.ops import ring as rings
from genssl_fast.ops.contrast_checks import checked_ids, checked_matrix, checked_number, unit_rows
from genssl_fast.ops.contrastive import clip_loss, clip_rows, products_of_rows, siglip_loss, with_positive
from genssl_fast.ops.fixed_sums import times, total
from genssl_fast.ops.ring import Ring

__all__ = ["ClipLoss", "SigLipLoss"]


class ClipLoss(nn.Module):
    """``open_clip.ClipLoss``: each image is to find its text and each text its image.

    Arguments:
        local_loss: the value is that of this process's rows, not that of all; what
            ``DistributedDataParallel`` makes of the gradients is the same.
        gather_with_grad: features get the gradients of the losses of all processes. Without it they get those
            of this process's loss alone, which are not those of the loss of the whole batch.
        cache_labels: without effect; there are no labels.
        rank, world_size: of the default group of ``torch.distributed``.
        use_horovod: not supported.

    Example:
        >>> from genssl_fast.integrations.open_clip import ClipLoss
        >>> ClipLoss()(torch.eye(4), torch.eye(4), logit_scale=1.0, output_dict=True)
        {'contrastive_loss': tensor(0.7437)}
    """

    def __init__(
        self,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        use_horovod: bool = False,
    ):
        super().__init__()
        if use_horovod:
            raise NotImplementedError("use_horovod: processes exchange blocks by torch.distributed alone")
        self.local_loss, self.gather_with_grad, self.cache_labels = local_loss, gather_with_grad, cache_labels
        self.rank, self.world_size, self.use_horovod = rank, world_size, use_horovod

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss [] of features of length 1 [N, D], or it in a dictionary."""
        pair = image_features, text_features
        if self.world_size == 1:
            loss = clip_loss(*pair, logit_scale, logit_bias)
        elif self.local_loss:
            loss = self._local(*pair, logit_scale, logit_bias)
        else:
            _check_processes(self.rank, self.world_size)
            if not self.gather_with_grad:
                pair = (_GradientTimes.apply(features, 1 / self.world_size) for features in pair)
            loss = clip_loss(*pair, logit_scale, logit_bias, group=True)
        return {"contrastive_loss": loss} if output_dict else loss

    def _local(self, image, text, scale, bias) -> Tensor:
        """The mean of the losses of this process's rows."""
        scale, ring = _ring("ClipLoss", image, text, scale, self.rank, self.world_size)
        ids = checked_ids("ids", None, len(image), image.device, ring.offset("rows"))
        image, text = unit_rows("image", image, False), unit_rows("text", text, False)
        if self.gather_with_grad:
            of_images, of_texts = clip_rows(image, text, scale, ids, ring)
        else:
            of_images = _rows_alone(image, text.detach(), scale, ids, ring)
            of_texts = _rows_alone(text, image.detach(), scale, ids, ring)
        loss = total(of_images + of_texts) * (ring.size / ring.count / 2)
        return loss if bias is None else loss + 0 * checked_number("logit_bias", bias, image)


class SigLipLoss(nn.Module):
    """``open_clip.SigLipLoss``: every pair of an image and a text is classified by itself.

    Arguments:
        cache_labels: without effect; there are no labels.
        rank, world_size: of the default group of ``torch.distributed``.
        dist_impl: ``"bidir"``, ``"shift"``, ``"reduce"`` or ``"gather"``, all of which are the same loss; it
            is a ring in each case.

    Example:
        >>> from genssl_fast.integrations.open_clip import SigLipLoss
        >>> SigLipLoss()(torch.eye(4), torch.eye(4), logit_scale=10.0, logit_bias=-10.0)
        tensor(0.6933)
    """

    def __init__(
        self,
        cache_labels: bool = False,
        rank: int = 0,
        world_size: int = 1,
        dist_impl: str | None = None,
    ):
        super().__init__()
        self.cache_labels, self.rank, self.world_size = cache_labels, rank, world_size
        self.dist_impl = dist_impl or "bidir"
        check_choice("dist_impl", self.dist_impl, ("bidir", "shift", "reduce", "gather"))

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss [] of features of length 1 [N, D], or it in a dictionary."""
        bias = 0.0 if logit_bias is None else logit_bias
        if self.world_size == 1:
            loss = siglip_loss(image_features, text_features, logit_scale, bias)
        else:
            loss = self._local(image_features, text_features, logit_scale, bias)
        return {"contrastive_loss": loss} if output_dict else loss

    def _local(self, image, text, scale, bias) -> Tensor:
        """The losses of this process's images with all texts, over the number of its images."""
        scale, ring = _ring("SigLipLoss", image, text, scale, self.rank, self.world_size)
        bias = checked_number("logit_bias", bias, image)
        ids = checked_ids("ids", None, len(image), image.device, ring.offset("rows"))
        image, text = unit_rows("image", image, False), unit_rows("text", text, False)
        return rings.sigmoid_pairs(image, text, scale, bias, ids, ids, ring) * (ring.size / ring.count)


class _GradientTimes(torch.autograd.Function):
    """A tensor whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def _rows_alone(x: Tensor, y: Tensor, scale: Tensor, ids: Tensor, ring: Ring) -> Tensor:
    """Losses [N] of the rows of x, which are to find theirs of y."""
    log_sum, _ = rings.pair_logsumexp(x, y, scale, None, None, ids, ids, False, ring)
    return with_positive(log_sum - times(scale, products_of_rows(x, y)))


def _ring(loss: str, image, text, scale, rank: int, world_size: int) -> tuple[Tensor, Ring]:
    """The scale as a tensor, and the processes."""
    _check_processes(rank, world_size)
    checked_matrix("image_features", image)
    checked_matrix("text_features", text, image, "image_features")
    check_shape("text_features", text, image.shape, "that of image_features")
    scale = checked_number("logit_scale", scale, image)
    return scale, Ring(True, {"rows": (text,)}, (image, scale), {"loss": loss})


def _check_processes(rank: int, world_size: int) -> None:
    ready = dist.is_available() and dist.is_initialized()
    check(ready, "world_size", "1 where torch.distributed is not initialised", world_size)
    check(world_size == dist.get_world_size(), "world_size", f"{dist.get_world_size()} processes", world_size)
    check(rank == dist.get_rank(), "rank", f"that of this process, {dist.get_rank()}", rank)
