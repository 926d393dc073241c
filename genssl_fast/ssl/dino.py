"""DINO: a student foretells the sharpened, centred outputs of its averaged teacher."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from genssl_fast._checks import check
from genssl_fast.ops.soft_cross_entropy import dino_loss, update_center
from genssl_fast.ssl.heads import MLPHead, Prototypes
from genssl_fast.ssl.method import Method, check_views, encode_views
from genssl_fast.ssl.teacher import Teacher

__all__ = ["DINO"]


class DINO(Method):
    """Self-distillation: the teacher sees global views, the student foretells it from all others.

    Sharpening would make all outputs one, centring would make them even: together they do neither.

    Arguments:
        backbone: See :class:`Method`; it must take small views as well.
        hidden: Width of the head.
        bottleneck: D, of the embeddings before the outputs.
        outputs: K.
        student_temperature: Of the student's softmax.
        teacher_temperature: Of the teacher's, at the end of `warmup`.
        warmup_temperature: Of the teacher's, at the beginning.
        warmup: The part of training in which the teacher's temperature changes.
        center_decay: Of the running mean of the teacher's outputs.
        decay: Of the averaged weights at the beginning; it rises to 1 along half a cosine.
        frozen: The part of training, from its begin, in which the last layer stays as it is.
        last_norm: Whether embeddings are normalized over the batch, so that they cannot become one point
            before views agree on anything.
        features: See :class:`Method`.

    References:
        | Emerging Properties in Self-Supervised Vision Transformers (Caron et al., 2021)
        | https://arxiv.org/abs/2104.14294

    Example:
        >>> from genssl_fast.ssl import ConvBackbone
        >>> model = DINO(ConvBackbone(1, (8, 16)), outputs=10)
        >>> views = [torch.randn(4, 1, size, size) for size in (16, 16, 8)]  # two global views first
        >>> model.training_step(views).shape
        torch.Size([])
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        hidden: int = 256,
        bottleneck: int = 64,
        outputs: int = 256,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_temperature: float = 0.04,
        warmup: float = 0.3,
        center_decay: float = 0.9,
        decay: float = 0.99,
        frozen: float = 0.0,
        last_norm: bool = False,
        features: int | None = None,
    ):
        super().__init__(backbone, features=features)
        check(0 <= center_decay < 1, "center_decay", "a number in [0, 1)", center_decay)
        check(0 <= warmup <= 1, "warmup", "a number in [0, 1]", warmup)
        check(0 <= frozen <= 1, "frozen", "a number in [0, 1]", frozen)
        self.student_temperature, self.teacher_temperature = student_temperature, teacher_temperature
        self.warmup_temperature, self.warmup, self.center_decay = warmup_temperature, warmup, center_decay
        self.frozen = frozen
        self.projector = MLPHead(self.features, hidden, bottleneck, last_norm=last_norm)
        self.prototypes = Prototypes(bottleneck, outputs)
        self.teacher = Teacher(self.backbone, self.projector, self.prototypes, decay=decay)
        self.register_buffer("center", torch.zeros(outputs))
        self._outputs: Tensor | None = None

    def training_step(self, views: Sequence[Tensor]) -> Tensor:
        check_views(views, most=None)
        z = self.projector(encode_views(self.backbone, views))
        students = self.prototypes(z, frozen=self.progress < self.frozen).chunk(len(views))
        outputs = self.teacher(torch.cat(list(views[:2])))
        self.embeddings, self._outputs = z[: len(outputs)].detach(), outputs
        return dino_loss(
            students,
            outputs.chunk(2),
            student_temperature=self.student_temperature,
            teacher_temperature=self._teacher_temperature(),
            center=self.center,
        )

    def after_step(self, progress: float = 0.0) -> None:
        super().after_step(progress)
        self.prototypes.normalize_()
        self.teacher.update(self.backbone, self.projector, self.prototypes, progress=progress)
        if self._outputs is not None:
            update_center(self.center, self._outputs, momentum=self.center_decay)
            self._outputs = None

    def _teacher_temperature(self) -> float:
        done = min(self.progress / self.warmup, 1.0) if self.warmup else 1.0
        return self.warmup_temperature + done * (self.teacher_temperature - self.warmup_temperature)
