"""Augmentations: what they keep, what they change, and what they depend on."""

import pytest
import torch
from torch.nn import functional as F

from genssl_fast.ssl import Augmentation, MultiCrop

NOTHING = dict(crop=(1.0, 1.0), shift=0.0, contrast=(1.0, 1.0), brightness=0.0, noise=0.0)
IMAGES = torch.rand(64, 2, 12, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def view(seed=0, x=IMAGES, **options):
    return Augmentation(**NOTHING | options)(x, generator=generator(seed))


def test_nothing_changes_nothing():
    assert torch.equal(view(), IMAGES)


def test_views_depend_on_the_generator_alone():
    options = dict(crop=(0.5, 1.0), shift=0.2, rotation=20.0, flip=0.5, invert=0.5, blur=0.5, noise=0.1)
    assert torch.equal(view(1, **options), view(1, **options))
    assert not torch.equal(view(1, **options), view(2, **options))


def test_images_are_not_written_to():
    x = IMAGES.clone()
    view(x=x, noise=0.5, brightness=0.3, invert=0.5)
    assert torch.equal(x, IMAGES)


def test_flips_and_inversions_are_exact_and_happen_half_the_time():
    for options, changed in ((dict(flip=0.5), IMAGES.flip(3)), (dict(invert=0.5), -IMAGES)):
        result = view(**options)
        same = (result - IMAGES).abs().amax((1, 2, 3)) < 1e-5
        other = (result - changed).abs().amax((1, 2, 3)) < 1e-5
        assert (same ^ other).all()
        assert 16 < same.sum() < 48


def test_a_shift_moves_and_the_border_goes_on():
    ramp = torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)
    moved = view(x=ramp, shift=0.25)
    step = (moved[..., 1:] - moved[..., :-1]) / (2 / 15)
    assert ((step > 0.99) & (step < 1.01)).sum() >= 11 * 16
    assert (moved.diff(dim=2).abs() < 1e-5).all()


def test_a_wrapped_shift_keeps_every_pixel():
    """By whole pixels; between them, pixels are mixed."""
    x = torch.eye(16).view(1, 1, 16, 16)
    moved = view(x=x, shift=0.5, wrap=True)
    assert float(moved.sum()) == pytest.approx(16, rel=0.15)


def test_a_crop_is_seen_through_its_window():
    """Half the side, in the centre, is the middle of the image at twice the size."""
    x = torch.randn(1, 1, 16, 16, generator=generator())
    expected = F.interpolate(x[..., 3:13, 3:13], scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]
    torch.testing.assert_close(view(x=x, crop=(0.5, 0.5)), expected)


def test_contrast_and_brightness_stay_in_their_ranges():
    x = torch.ones(1000, 1, 2, 2)
    factors = view(x=x, contrast=(0.5, 1.5))
    assert 0.5 <= factors.min() < 0.55
    assert 1.45 < factors.max() <= 1.5
    added = view(x=0 * x, brightness=0.3)
    assert -0.3 <= added.min() < -0.25
    assert 0.25 < added.max() <= 0.3


def test_noise_has_its_strength():
    noise = view(x=torch.zeros(2000, 1, 8, 8), noise=0.4)
    strengths = noise.flatten(1).std(1)
    assert strengths.max() < 0.6
    assert float(noise.square().mean()) == pytest.approx(0.4**2 / 3, rel=0.05)


def test_the_blur_is_binomial():
    x = torch.randn(3, 2, 9, 7, generator=generator())
    row = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = torch.outer(row, row).expand(2, 1, 3, 3)
    expected = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=2)
    torch.testing.assert_close(view(x=x, blur=1.0), expected)


def test_views_of_many_sizes():
    crops = MultiCrop(Augmentation(**NOTHING), local_views=3, local_size=8, local_crop=(0.5, 0.5))
    views = crops(IMAGES, generator=generator())
    assert [tuple(view.shape) for view in views] == [(64, 2, 12, 16)] * 2 + [(64, 2, 8, 8)] * 3
    assert torch.equal(views[0], IMAGES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(crop=(0.5, 0.2)), r"^crop: expected two positive numbers in ascending order, got \[0.5, 0.2\]"),
        (dict(crop=(2.0,)), r"^crop: expected two positive numbers in ascending order, got \[2.0\]"),
        (dict(flip=2.0), "^flip: expected a probability, got 2.0"),
        (dict(noise=-1.0), "^noise: expected at least 0, got -1.0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"^x: expected images \[B, C, H, W\], got \[3, 4\]"):
        Augmentation()(torch.zeros(3, 4))
