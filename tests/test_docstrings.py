"""Every example in a docstring and in the README runs and prints what it says.

An example finds what `import torch`, `import genssl_fast` and, for its own module, `from MODULE import *`
bring, and nothing else.
"""

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
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


def examples_in(name):
    """The doctests of a module, each in a fresh namespace."""
    module = importlib.import_module(name)
    public = {member: getattr(module, member) for member in getattr(module, "__all__", ())}
    finder = doctest.DocTestFinder(exclude_empty=True)
    names = {"torch": torch, "genssl_fast": genssl_fast} | public
    return finder.find(module, name, module, globs=names)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in examples_in(name):
        runner.run(test)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize("name", genssl_fast.__all__)
def test_public_functions_are_documented(name):
    member = getattr(genssl_fast, name)
    if not callable(member):
        return
    assert member.__doc__, f"{name} has no docstring"
    assert ">>>" in member.__doc__ or isinstance(member, type), f"{name} has no example"


def readme_blocks():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_importing_the_library_is_enough_for_every_name_in_examples():
    """In a process where no test and no other example has imported a part of it."""
    examples = [example.source for name in MODULES for test in examples_in(name) for example in test.examples]
    lines = "\n".join(examples + readme_blocks()).splitlines()
    code = "\n".join(line for line in lines if not re.match(r"\s*(from|import) ", line))
    names = sorted(set(re.findall(r"\bgenssl_fast(?:\.[A-Za-z]\w*)+", code)))
    assert "genssl_fast.flows.NICE" in names
    program = f"import genssl_fast\nfor name in {names}:\n    eval(name)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_readme_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert readme_blocks()
    for block in readme_blocks():
        exec(compile(block, "README.md", "exec"), {})
