"""Recipes: what a model and its training are made with, in files."""

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from genssl_fast._checks import check

__all__ = ["RECIPES", "Recipe", "load_recipe"]

FOLDER = Path(__file__).with_name("recipes")
RECIPES = sorted(path.stem for path in FOLDER.glob("*.toml"))


class Recipe(NamedTuple):
    """What differs from the defaults.

    ``method`` is one of :data:`genssl_fast.ssl.METHODS`, ``options`` are its arguments, ``backbone`` those
    of :class:`ConvBackbone`, ``augmentation`` of :class:`Augmentation`, ``crops`` of :class:`MultiCrop` and
    ``training`` of :class:`genssl_fast.ssl_training.SSLTrainingConfig`.
    """

    method: str
    options: dict[str, Any] = {}
    backbone: dict[str, Any] = {}
    augmentation: dict[str, Any] = {}
    crops: dict[str, Any] = {}
    training: dict[str, Any] = {}


def load_recipe(source: str | Path) -> Recipe:
    """The recipe that is bundled under a name, or is in a `.toml` file.

    Raises:
        ValueError: If there is none, or it has entries that no recipe has.

    Example:
        >>> load_recipe("simclr").method
        'simclr'
    """
    path = FOLDER / f"{source}.toml" if str(source) in RECIPES else Path(source)
    expected = f"one of {', '.join(RECIPES)} or a .toml file"
    check(path.suffix == ".toml" and path.is_file(), "recipe", expected, source)
    try:
        content = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe: expected TOML, got {path} ({error})") from error
    unknown = sorted(content.keys() - set(Recipe._fields))
    check(not unknown, "recipe", f"{', '.join(Recipe._fields)}", f"{', '.join(unknown)} in {path}")
    check(isinstance(content.get("method"), str), "recipe", "a method", f"none in {path}")
    for name in Recipe._fields[1:]:
        got = content.get(name, {})
        check(isinstance(got, dict), "recipe", f"a table [{name}]", f"{got!r} in {path}")
    return Recipe(**content)
