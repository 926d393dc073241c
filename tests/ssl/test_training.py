"""Models and their training: checkpoints, resumption, recipes, and the report of a collapse."""

import dataclasses
import inspect

import pytest
import torch

from genssl_fast.checkpoint import CheckpointError
from genssl_fast.data import Scale, load_nuisance_digits
from genssl_fast.ssl import (
    METHODS,
    RECIPES,
    Augmentation,
    CollapseWarning,
    ConvBackbone,
    MultiCrop,
    load_recipe,
)
from genssl_fast.ssl_model import SSLModel, SSLModelConfig
from genssl_fast.ssl_training import SSLTrainer, SSLTrainingConfig
from genssl_fast.training import Trainer
from tests.ssl.models import OPTIONS

DATA = torch.rand(40, 1, 12, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
SMALL = {"widths": [4, 8]}  # as JSON holds them


def config(name, **changes):
    crops = {"local_views": 1, "local_size": 8} if name in ("swav", "dino") else {}
    return SSLModelConfig((1, 12, 12), name, OPTIONS[name], SMALL, crops=crops, scale=Scale(0, 16), **changes)


def trained(name, steps, **changes):
    trainer = SSLTrainer(
        config(name), SSLTrainingConfig(**dict(steps=6, batch=8, warmup=2, seed=3) | changes)
    )
    return trainer, [trainer.train_step(DATA) for _ in range(steps)]


@pytest.mark.parametrize("name", METHODS)
def test_resumed_run_ends_with_the_same_bits(name, tmp_path):
    """Queues, centres, averaged weights and schedules go on."""
    whole, losses = trained(name, 6)
    trained(name, 2)[0].save(tmp_path / "state", data="digits")
    resumed, facts = Trainer.load(tmp_path / "state")
    assert facts == {"data": "digits"}
    assert [resumed.train_step(DATA) for _ in range(4)] == losses[2:]
    expected = whole.model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_model_comes_back_with_its_state(name, tmp_path):
    trainer, _ = trained(name, 2)
    trainer.save_model(tmp_path / "model.safetensors")
    model = SSLModel.load(tmp_path / "model.safetensors")
    assert model.config == trainer.model.config
    state = trainer.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    x = trainer.model.config.scale.restore(DATA)
    torch.testing.assert_close(model.embed(x, batch=7), trainer.model.embed(x))


def test_views_depend_on_seed_and_step_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    trained("simclr", 1)
    assert torch.equal(torch.rand(1), expected)
    model = SSLModel(config("simclr"))
    assert torch.equal(model.loss(DATA, seed=1, step=2), model.loss(DATA, seed=1, step=2))
    assert not torch.equal(model.loss(DATA, seed=1, step=2), model.loss(DATA, seed=1, step=3))


def test_no_sample_is_twice_in_a_batch():
    trainer = SSLTrainer(config("simclr"), SSLTrainingConfig(batch=30))
    seen = set()
    for trainer.step in range(5):
        chosen = trainer._batch(40, torch.device("cpu")).tolist()
        assert len(set(chosen)) == 30
        seen |= set(chosen)
    assert seen == set(range(40))


def test_batches_that_samples_do_not_fill_are_refused():
    trainer = SSLTrainer(config("simclr"), SSLTrainingConfig(batch=41))
    with pytest.raises(ValueError, match=r"^batch: expected at most 40, the number of samples, got 41"):
        trainer.prepare(DATA)


def test_preparing_changes_nothing():
    trainer = SSLTrainer(config("moco"), SSLTrainingConfig(batch=8))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.prepare(DATA)
    assert all(torch.equal(value, before[key]) for key, value in trainer.model.state_dict().items())


def test_a_queue_that_no_batch_fits_in_shows_before_training():
    options = OPTIONS["moco"] | {"queue_size": 15}
    trainer = SSLTrainer(dataclasses.replace(config("moco"), options=options), SSLTrainingConfig(batch=8))
    with pytest.raises(ValueError, match=r"^queue: expected at least 16 rows"):
        trainer.prepare(DATA)


def test_only_matrices_decay():
    groups = SSLTrainer(config("byol"), SSLTrainingConfig(weight_decay=0.5)).optimizer.param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {parameter.ndim > 1 for parameter in groups[0]["params"]} == {True}
    assert {parameter.ndim > 1 for parameter in groups[1]["params"]} == {False}
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


def test_collapse_is_reported_once():
    trainer, _ = trained("vicreg", 3)
    trainer.model.method.embeddings = torch.ones(8, 32)
    with pytest.warns(CollapseWarning, match=r"^embeddings of vicreg have collapsed to a point.*at step 3$"):
        assert trainer.details["spread"] < 1e-6
    trainer.step += 1
    assert trainer.details["spread"] < 1e-6  # a second warning would be an error


def test_nothing_is_reported_before_the_first_step():
    assert trained("vicreg", 0)[0].details == {}


def test_other_shapes_are_refused():
    model = SSLModel(config("simclr"))
    with pytest.raises(
        ValueError, match=r"^x: expected \[N, 1, 12, 12\], samples like those it was trained on"
    ):
        model.embed(torch.zeros(3, 1, 8, 8))
    with pytest.raises(
        ValueError, match=r"^shape: expected that of images, \[C, H, W\] or \[H, W\], got \[30\]"
    ):
        SSLModelConfig((30,))
    with pytest.raises(ValueError, match=r"^method: expected one of 'simclr'"):
        SSLModelConfig((1, 8, 8), "simcse")


def test_images_without_channels_have_one():
    model = SSLModel(dataclasses.replace(config("simclr"), shape=(12, 12)))
    assert model.loss(DATA[:, 0], seed=0, step=0).isfinite()
    assert model.embed(DATA[:, 0]).shape == (40, 8)


def test_other_checkpoints_are_refused(tmp_path):
    trainer, _ = trained("simclr", 1)
    trainer.save(tmp_path / "state")
    with pytest.raises(CheckpointError, match=r"expected a ssl_model, got 'ssl_training_state'"):
        SSLModel.load(tmp_path / "state")


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch", 1), ("weight_decay", -1.0)])
def test_bad_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {value!r}"):
        SSLTrainingConfig(**{name: value})


def test_there_is_a_recipe_for_every_method():
    assert set(RECIPES) == set(METHODS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_say_what_differs_from_the_defaults(name):
    recipe = load_recipe(name)
    assert recipe.method == name
    defaults = {
        "options": inspect.signature(METHODS[name]).parameters,
        "backbone": inspect.signature(ConvBackbone).parameters,
        "augmentation": inspect.signature(Augmentation).parameters,
        "crops": inspect.signature(MultiCrop).parameters,
        "training": inspect.signature(SSLTrainingConfig).parameters,
    }
    for table, parameters in defaults.items():
        for key, value in getattr(recipe, table).items():
            default = parameters[key].default
            assert value != (list(default) if isinstance(default, tuple) else default), (table, key)
    data = load_nuisance_digits()[0]
    model, training = recipe._asdict(), recipe.training | {"steps": 1, "batch": 4}
    del model["training"]
    trainer = SSLTrainer(SSLModelConfig(data.samples.shape[1:], **model), SSLTrainingConfig(**training))
    trainer.prepare(data.samples)
    assert trainer.train_step(data.samples).isfinite()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("method = ", r"^recipe: expected TOML, got .*recipe\.toml"),
        ('method = "simclr"\n[optimizer]', "^recipe: expected method, options, .*, got optimizer in"),
        ("[options]", "^recipe: expected a method, got none in"),
        ('method = "simclr"\noptions = 3', r"^recipe: expected a table \[options\], got 3 in"),
    ],
)
def test_bad_recipes_are_refused(tmp_path, content, message):
    (tmp_path / "recipe.toml").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_recipe(tmp_path / "recipe.toml")


def test_unknown_recipes_are_named():
    with pytest.raises(
        ValueError, match=r"^recipe: expected one of barlow_twins, .* or a .toml file, got nothing"
    ):
        load_recipe("nothing")
