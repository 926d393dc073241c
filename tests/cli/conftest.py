"""A checkpoint to draw from, and the command line in this process."""

from dataclasses import dataclass

import pytest
import torch

from genssl_fast.cli import main
from genssl_fast.data import Scale
from genssl_fast.score_model import ScoreModel, ScoreModelConfig


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def same_threads():
    """`--threads` of a command holds for that command."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(capfd):
    """Runs `genssl-fast` with these arguments."""

    def run(*arguments):
        capfd.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as usage:
            code = usage.code
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """An untrained model whose samples nevertheless depend on their noise."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    config = ScoreModelConfig((1, 4, 4), hidden=40, blocks=2, embed=8, time_dim=8, scale=Scale(0, 16))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ScoreModel(config)
        torch.nn.init.normal_(model.network.w_out, std=0.1)
    model.save(path)
    return path


@pytest.fixture
def sample(run, checkpoint):
    """Runs `genssl-fast sample` with a few steps from the checkpoint."""

    def sample(out, *arguments, count=40):
        command = ("sample", "--checkpoint", checkpoint, "--steps", 5, "--count", count, "--out", out)
        return run(*command, *arguments)

    return sample
