"""Self-supervised learning: a backbone, trained on data without labels."""

from genssl_fast.ssl.augment import Augmentation, MultiCrop
from genssl_fast.ssl.backbone import ConvBackbone
from genssl_fast.ssl.barlow_twins import BarlowTwins
from genssl_fast.ssl.byol import BYOL
from genssl_fast.ssl.clip import CLIP
from genssl_fast.ssl.collapse import CollapseReport, CollapseWarning, check_collapse, collapse_report
from genssl_fast.ssl.cpc import CPC, stripes
from genssl_fast.ssl.dino import DINO
from genssl_fast.ssl.heads import MLPHead, Prototypes
from genssl_fast.ssl.method import Method
from genssl_fast.ssl.moco import MoCo
from genssl_fast.ssl.probes import LinearProbe, fine_tune, knn_probe, linear_probe
from genssl_fast.ssl.queue import EmbeddingQueue
from genssl_fast.ssl.recipe import RECIPES, Recipe, load_recipe
from genssl_fast.ssl.simclr import SimCLR
from genssl_fast.ssl.simsiam import SimSiam
from genssl_fast.ssl.swav import SwAV
from genssl_fast.ssl.teacher import Teacher, cosine_schedule
from genssl_fast.ssl.vicreg import VICReg

__all__ = [
    "BYOL",
    "CLIP",
    "CPC",
    "DINO",
    "METHODS",
    "RECIPES",
    "Augmentation",
    "BarlowTwins",
    "CollapseReport",
    "CollapseWarning",
    "ConvBackbone",
    "EmbeddingQueue",
    "LinearProbe",
    "MLPHead",
    "Method",
    "MoCo",
    "MultiCrop",
    "Prototypes",
    "Recipe",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "Teacher",
    "VICReg",
    "check_collapse",
    "collapse_report",
    "cosine_schedule",
    "fine_tune",
    "knn_probe",
    "linear_probe",
    "load_recipe",
    "stripes",
]

# Those that one backbone and one set of images are enough for.
METHODS = {
    "simclr": SimCLR,
    "moco": MoCo,
    "byol": BYOL,
    "simsiam": SimSiam,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "swav": SwAV,
    "dino": DINO,
    "cpc": CPC,
}
