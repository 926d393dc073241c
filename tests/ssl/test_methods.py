"""Every method: its formula, where gradients go, what collapses without its parts, and that it learns."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from genssl_fast.ssl import CLIP, CPC, METHODS, ConvBackbone, MLPHead, collapse_report, stripes
from tests.ssl.models import small_model, views_of


def train(model, views, steps, rate=1e-2):
    """Losses of steps on the same views."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, losses = torch.optim.Adam(parameters, rate), []
    for step in range(steps):
        loss = model.training_step(views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step((step + 1) / steps)
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss(name):
    model = small_model(name)
    losses = train(model, views_of(32, number=model.num_views, noise=1.0), 25)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("name", METHODS)
def test_all_that_is_trained_gets_gradients(name):
    model = small_model(name)
    model.training_step(views_of(16, number=model.num_views)).backward()
    for parameter_name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, parameter_name


@pytest.mark.parametrize("name", METHODS)
def test_a_step_under_autocast(name):
    """Embeddings come in 16 bits, queues and teachers stay in 32."""
    model = small_model(name)
    for seed in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.training_step(views_of(16, number=model.num_views, seed=seed))
        loss.backward()
        model.after_step(0.5)
        assert torch.isfinite(loss)
    assert all(tensor.dtype != torch.bfloat16 for tensor in model.state_dict().values())


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_nothing_is_refused(name):
    model = small_model(name)
    with pytest.raises(ValueError, match="at least"):
        model.training_step([view[:0] for view in views_of(4, number=model.num_views)])


@pytest.mark.parametrize("name", METHODS)
def test_embedding_is_that_of_evaluation(name):
    model = small_model(name)
    (x,) = views_of(16, number=1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    features = model.embed(x)
    assert model.training
    assert not features.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    torch.testing.assert_close(model.embed(x[:3]), features[:3])


@pytest.mark.parametrize("name", METHODS)
def test_state_comes_back(name):
    """Queues, centres and teachers included: a copy goes on as the original does."""
    model, copy = small_model(name), small_model(name)
    views = views_of(16, number=model.num_views)
    train(model, views, 3)
    copy.load_state_dict(model.state_dict())
    copy.progress = model.progress
    assert torch.equal(model.training_step(views), copy.training_step(views))
    for each in (model, copy):
        each.after_step(0.5)
    state = copy.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


class Recorder(nn.Module):
    """Keeps what went through a network, and gives it a gradient to look at."""

    def __init__(self, network):
        super().__init__()
        self.network, self.outputs = network, []

    def forward(self, x):
        out = self.network(x)
        if out.requires_grad:
            out.retain_grad()
        self.outputs.append(out)
        return out


class Cut(Recorder):
    """A network that gradients do not pass."""

    def forward(self, x):
        return super().forward(x.detach())


def test_simsiam_stops_the_gradient_of_its_target():
    """With the predictor taken out of the graph, nothing reaches the embeddings."""
    model = small_model("simsiam")
    model.projector, model.predictor = Recorder(model.projector), Cut(model.predictor)
    model.training_step(views_of(16)).backward()
    assert model.projector.outputs[0].grad is None
    assert model.predictor.outputs[0].grad is not None


@pytest.mark.parametrize("name", ["byol", "moco", "dino"])
def test_teachers_give_constants(name):
    model = small_model(name)
    model.teacher = Recorder(model.teacher)
    model.training_step(views_of(16)).backward()
    assert not model.teacher.outputs[0].requires_grad


def test_swav_assigns_without_gradients():
    model = small_model("swav")
    scores = torch.randn(16, 8, requires_grad=True)
    assert not model._assign(scores).requires_grad


def embeddings_of(model, views):
    return model.projector(model.backbone(torch.cat(views))).chunk(2)


def test_simclr_finds_the_other_view_among_all():
    model, views = small_model("simclr"), views_of(16)
    loss = model.training_step(views)
    z = F.normalize(torch.cat(embeddings_of(model, views)), dim=1)
    logits = (z @ z.T / model.temperature).fill_diagonal_(-math.inf)
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.arange(32).roll(16)))


def test_barlow_twins_makes_the_correlations_of_views_the_identity():
    model, views = small_model("barlow_twins", weight=0.01), views_of(16)
    loss = model.training_step(views)
    first, second = (
        (z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in embeddings_of(model, views)
    )
    off = (first.T @ second / 16 - torch.eye(32)).square()
    torch.testing.assert_close(loss, off.trace() + 0.01 * (off.sum() - off.trace()), rtol=1e-4, atol=1e-4)


def test_vicreg_adds_invariance_variance_and_covariance():
    model, views = small_model("vicreg"), views_of(16)
    loss = model.training_step(views)
    pair = embeddings_of(model, views)
    expected = 25 * F.mse_loss(*pair)
    for z in pair:
        covariance = torch.cov(z.T)
        expected = expected + 25 * F.relu(1 - (covariance.diagonal() + 1e-4).sqrt()).mean() / 2
        expected = expected + (covariance.square().sum() - covariance.diagonal().square().sum()) / 32
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_byol_is_two_minus_two_cosines_both_ways():
    model, views = small_model("byol"), views_of(16)
    loss = model.training_step(views)
    first, second = embeddings_of(model, views)
    predicted = model.predictor(torch.cat([first, second])).chunk(2)
    target = model.teacher(torch.cat(views)).chunk(2)

    def distance(p, z):
        unit = F.normalize(p, dim=1) - F.normalize(z, dim=1)
        return unit.square().sum(1).mean()

    expected = distance(predicted[0], target[1]) + distance(predicted[1], target[0])
    torch.testing.assert_close(loss, expected)


def test_simsiam_is_the_mean_of_negative_cosines():
    model, views = small_model("simsiam"), views_of(16)
    loss = model.training_step(views)
    first, second = embeddings_of(model, views)
    predicted = model.predictor(torch.cat([first, second])).chunk(2)
    expected = (
        -(F.cosine_similarity(predicted[0], second) + F.cosine_similarity(predicted[1], first)).mean() / 2
    )
    torch.testing.assert_close(loss, expected)


def test_moco_finds_the_key_among_the_queue():
    model, views = small_model("moco"), views_of(16)
    queue = model.queue.rows.clone()
    loss = model.training_step(views)
    queries = [F.normalize(z, dim=1) for z in embeddings_of(model, views)]
    keys = [F.normalize(z, dim=1) for z in model.teacher(torch.cat(views)).chunk(2)]
    losses = []
    for query, key in zip(queries, keys[::-1]):
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / model.temperature
        losses.append(F.cross_entropy(logits, torch.zeros(16, dtype=torch.int64)))
    torch.testing.assert_close(loss, sum(losses) / 2)


def test_swav_balances_its_prototypes():
    model = small_model("swav", iterations=200)
    q = model._assign(F.normalize(torch.randn(64, 16), dim=1) @ model.prototypes.weight.T)
    torch.testing.assert_close(q.sum(1), torch.ones(64), rtol=0, atol=1e-4)
    torch.testing.assert_close(q.sum(0), torch.full((8,), 64 / 8), rtol=0, atol=1e-3)


def test_swav_swaps_predictions():
    model, views = small_model("swav"), views_of(16, number=3)
    loss = model.training_step(views)
    z = [
        F.normalize(model.projector(model.backbone(torch.cat(views)))[16 * i : 16 * i + 16]) for i in range(3)
    ]
    scores = [each @ model.prototypes.weight.T for each in z]
    terms = [
        F.cross_entropy(scores[other] / model.temperature, model._assign(scores[number]))
        for number in range(2) for other in range(3) if other != number
    ]  # fmt: skip
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_prototypes_keep_unit_norm(name):
    model = small_model(name)
    train(model, views_of(16), 3)
    weight = model.prototypes.weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(len(weight)))


@pytest.mark.parametrize("name", ["swav", "dino"])
def test_prototypes_are_frozen_at_first(name):
    model = small_model(name, frozen=0.5)
    model.training_step(views_of(16)).backward()
    assert model.prototypes.weight.grad is None
    model.after_step(0.5)
    model.training_step(views_of(16)).backward()
    assert model.prototypes.weight.grad is not None


def test_dino_distils_centred_outputs_of_the_other_view():
    model, views = small_model("dino"), views_of(16, number=3)
    model.center += torch.randn(16)
    loss = model.training_step(views)
    students = model.prototypes(model.projector(model.backbone(torch.cat(views)))).chunk(3)
    teachers = model.teacher(torch.cat(views[:2])).chunk(2)
    terms = [
        F.cross_entropy(students[other] / 0.1, ((teachers[number] - model.center) / 0.04).softmax(1))
        for number in range(2) for other in range(3) if other != number
    ]  # fmt: skip
    torch.testing.assert_close(loss, torch.stack(terms).mean())


def test_dino_centre_follows_the_teachers_mean():
    model, views = small_model("dino", center_decay=0.75), views_of(16)
    model.center += 1.0
    model.training_step(views)
    outputs = model._outputs.mean(0)
    model.after_step()
    torch.testing.assert_close(model.center, 0.75 * torch.ones(16) + 0.25 * outputs)


def test_dino_warms_the_teachers_temperature():
    model = small_model("dino", warmup=0.5, warmup_temperature=0.02, teacher_temperature=0.06)
    found = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        model.after_step(progress)
        found.append(model._teacher_temperature())
    assert found == pytest.approx([0.02, 0.04, 0.06, 0.06])


def test_cpc_foretells_by_its_formula():
    """-log of the softmax of z(t+k)·W c(t) among all samples and all later elements, pair by pair."""
    model, (x,) = small_model("cpc", distances=2), views_of(3, number=1)
    loss = model.training_step([x])
    sequences = stripes(x, 4)
    z = model.backbone(sequences.flatten(0, 1)).unflatten(0, sequences.shape[:2])
    c, _ = model.recurrent(z)
    length, means = z.shape[1], []
    for distance, predictor in enumerate(model.predictors, start=1):
        candidates = torch.stack([z[b, t] for b in range(3) for t in range(distance, length)])
        terms = []
        for b in range(3):
            for t in range(length - distance):
                scores = candidates @ (predictor.weight @ c[b, t])
                terms.append(scores.logsumexp(0) - z[b, t + distance] @ (predictor.weight @ c[b, t]))
        means.append(torch.stack(terms).mean())
    torch.testing.assert_close(loss, torch.stack(means).mean())


def test_cpc_takes_sequences_as_they_are():
    model = CPC(nn.Sequential(nn.Linear(5, 8), nn.ReLU()), features=8, distances=2)
    sequences = torch.randn(4, 6, 5)
    assert model.training_step([sequences]).isfinite()
    assert model.embed(sequences).shape == (4, 128)
    with pytest.raises(ValueError, match=r"^views: expected sequences of more than 2 elements"):
        model.training_step([sequences[:, :2]])


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_clip_brings_pairs_together(loss):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIP(nn.Linear(6, 16), nn.EmbeddingBag(50, 16), loss=loss, features=16, text_features=16)
        images, texts = torch.randn(12, 6), torch.arange(12).view(12, 1)
    losses = train(model, [images, texts], 60)
    assert losses[-1] < 0.5 * losses[0]
    image, text = model.embed_pairs(images, texts)
    assert (image @ text.T).argmax(1).tolist() == list(range(12))


def test_clip_keeps_its_scale_in_bounds():
    model = CLIP(nn.Linear(6, 16), nn.Linear(6, 16), features=16, text_features=16)
    nn.init.constant_(model.log_scale, 9.0)
    model.after_step()
    assert float(model.log_scale.detach().exp()) == pytest.approx(100, rel=1e-5)


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_without_its_parts_it_collapses(name):
    """Without a predictor, or with a gradient through the target; whole, it does not."""
    spread = {}
    for variant in ("whole", "no predictor", "gradient through the target"):
        model = small_model(name, **{"decay": 0.9} if name == "byol" else {})
        if name == "simsiam":  # outputs that are normalized over the batch hide a collapse to a point
            model.projector = MLPHead(8, 64, 64)
        if variant == "no predictor":
            model.predictor = nn.Identity()
        elif variant != "whole":
            make_target_learn(model)
        for seed in range(5):
            train(model, views_of(16, seed=seed, noise=1.0), 25)
        spread[variant] = collapse_report(model.embeddings).spread
    assert spread["whole"] > 0.5, spread
    assert spread["no predictor"] < 0.1, spread
    assert spread["gradient through the target"] < 0.1, spread


def make_target_learn(model):
    if hasattr(model, "teacher"):
        model.teacher = Through(model)
    else:
        model._target = lambda z: z


class Through(nn.Module):
    """The student itself in place of its teacher."""

    def __init__(self, model):
        super().__init__()
        self.model = [model]

    def forward(self, x):
        return self.model[0].projector(self.model[0].backbone(x))

    def update(self, *students, progress):
        pass


@pytest.mark.parametrize("name", METHODS)
def test_views_are_counted(name):
    model = small_model(name)
    views = views_of(16, number=4)
    if name not in ("swav", "dino"):
        with pytest.raises(ValueError, match=f"^views: expected {model.num_views} views"):
            model.training_step(views)
    if model.num_views == 2:
        with pytest.raises(ValueError, match=r"^views: expected batches of one length, got"):
            model.training_step([views[0], views[1][:3]])


def test_backbones_of_ones_own_say_how_wide_they_are():
    network = nn.Sequential(nn.Flatten(), nn.Linear(256, 12))
    model = METHODS["simclr"](network, features=12)
    assert model.training_step(views_of(16)).isfinite()
    assert model.embed(views_of(16)[0]).shape == (16, 12)
    with pytest.raises(ValueError, match=r"^features: expected how many features the backbone gives"):
        METHODS["simclr"](network)


def test_convolutions_are_channels_last():
    backbone = ConvBackbone(3, (4, 8))
    assert backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert backbone(torch.randn(2, 3, 10, 6)).shape == (2, 8)


def test_standardized_images_have_no_brightness_and_no_contrast():
    backbone = ConvBackbone(1, (4, 8), standardize=True)
    (x,) = views_of(4, number=1)
    torch.testing.assert_close(backbone(3 * x + 2), backbone(x), rtol=1e-3, atol=1e-4)
