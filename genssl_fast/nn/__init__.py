"""Building blocks of networks that call the operations."""

from genssl_fast.nn.film_mlp import FilmMLP

__all__ = ["FilmMLP"]
