"""Every example in a docstring and in the README runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import genssl_fast

ROOT = Path(__file__).parents[1]
COMPILED = ("genssl_fast.kernels", "genssl_fast._native", "genssl_fast._cpu", "genssl_fast._cuda")
MODULES = [
    module.name
    for module in pkgutil.walk_packages(genssl_fast.__path__, "genssl_fast.")
    if not module.name.startswith(COMPILED)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    names = {"torch": torch, "genssl_fast": genssl_fast}
    failures, _ = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert failures == 0


@pytest.mark.parametrize("name", genssl_fast.__all__)
def test_public_functions_are_documented(name):
    member = getattr(genssl_fast, name)
    if not callable(member):
        return
    assert member.__doc__, f"{name} has no docstring"
    assert ">>>" in member.__doc__ or isinstance(member, type), f"{name} has no example"


def test_readme_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
