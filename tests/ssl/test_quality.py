"""Features learned without labels are worth something: a short gate here, all of it in `make test-all`."""

import importlib.util
import time
from pathlib import Path

import pytest
from PIL import Image

from genssl_fast.ssl import METHODS

PATH = Path(__file__).parents[2] / "examples" / "ssl_quality.py"
# CPC sees stripes of an image one after the other, which is no match for views.
VIEWS = [name for name in METHODS if name not in ("simclr", "cpc")]


@pytest.fixture(scope="module")
def ssl_quality():
    specification = importlib.util.spec_from_file_location("ssl_quality", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_little_training_beats_none(ssl_quality):
    """A linear classifier of pixels gets 17.5 %, of an untrained backbone's features 32 %."""
    model = ssl_quality.train("vicreg", 0, steps=120, batch=64)
    assert ssl_quality.quality(model).linear > 0.42


def test_the_example_says_what_it_takes_and_draws(ssl_quality, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ssl_quality, "PICTURE", tmp_path / "{}.png")
    ssl_quality.main(["vicreg", "--steps", "1"])
    assert capsys.readouterr().out.count("linear") == 3
    assert Image.open(tmp_path / "vicreg.png").size[0] > 500
    with pytest.raises(SystemExit):
        ssl_quality.main(["simcse"])


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_simclr_in_ninety_seconds_of_two_cores(ssl_quality):
    results = []
    for seed in range(3):
        begin = time.process_time()
        model = ssl_quality.train("simclr", seed)
        assert time.process_time() - begin <= 180
        results.append(ssl_quality.quality(model))
    assert sum(found.neighbours >= 0.72 and found.linear >= 0.74 for found in results) >= 2, results


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", VIEWS)
def test_every_method_in_three_minutes_of_two_cores(ssl_quality, name):
    begin = time.process_time()
    model = ssl_quality.train(name, 0)
    assert time.process_time() - begin <= 360
    found = ssl_quality.quality(model)
    assert found.neighbours >= 0.65, found
