"""Drives the CUDA kernels of the FiLM-MLP on the CPU, and their formulas in fp64."""

import ctypes
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

try:
    from tests.kernels.philox_numpy import normals
except ImportError:  # as a program of its own, under AddressSanitizer
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tests.kernels.philox_numpy import normals

ELEMENT_TYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}
H200_SHARED_BYTES = 227 * 1024


class Array(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("type", ctypes.c_int32)]


class Tensors(ctypes.Structure):
    _fields_ = [
        ("device", ctypes.c_int32),
        *((name, ctypes.c_int32) for name in ("dim", "hidden", "blocks", "embed", "time_dim")),
        ("num_classes", ctypes.c_int32),
        ("type", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in ("x", "w_in", "b_in", "w", "c", "w_film", "w_embed1", "w_embed2", "w_out")
        ),
        *((name, ctypes.c_void_p) for name in ("b_out", "class_embedding", "labels")),
        ("frequencies", Array),
        ("sin_first", ctypes.c_int32),
    ]


class FilmMLPArgs(ctypes.Structure):
    _fields_ = [
        ("tensors", Tensors),
        ("batch", ctypes.c_int64),
        ("times", Array),
        ("per_sample_time", ctypes.c_int32),
        ("output", ctypes.c_void_p),
    ]


class SampleArgs(ctypes.Structure):
    _fields_ = [
        ("tensors", Tensors),
        ("batch", ctypes.c_int64),
        ("coefficients", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("num_rows", "num_states", "num_predictions")),
        ("clip", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("seed", "step", "first_sample")),
        *((name, ctypes.c_void_p) for name in ("seed_tensor", "step_tensor", "noise", "output")),
    ]


def to_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    """Values in their storage type; bfloat16 as its bits."""
    if dtype != "bfloat16":
        return np.ascontiguousarray(values, dtype)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_storage(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype != "bfloat16":
        return values.astype(np.float64)
    return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


@dataclass
class Network:
    """A random network whose values are exact in ``dtype``."""

    dim: int
    hidden: int
    blocks: int
    embed: int
    time_dim: int
    num_classes: int = 0
    dtype: str = "float32"
    sin_first: bool = False
    seed: int = 0
    weights: dict = field(default_factory=dict)

    def __post_init__(self):
        random = np.random.default_rng(self.seed)
        d, h, n, e, t = self.dim, self.hidden, self.blocks, self.embed, self.time_dim
        shapes = {
            "w_in": (h, d), "b_in": (h,), "w": (n, h, h), "c": (n, h), "w_film": (n, 2 * h, e),
            "w_embed1": (e, t), "w_embed2": (e, e), "w_out": (d, h), "b_out": (d,),
        }  # fmt: skip
        if self.num_classes:
            shapes["class_embedding"] = (self.num_classes, e)
        for name, shape in shapes.items():
            scale = 0.5 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
            self.weights[name] = to_storage(random.normal(size=shape) * scale, self.dtype)
        self.frequencies = np.exp(-np.arange(t // 2) / max(t // 2, 1) * 4).astype(np.float32)

    def value(self, name: str) -> np.ndarray:
        return from_storage(self.weights[name], self.dtype)

    def forward(self, x: np.ndarray, t: np.ndarray, labels=None) -> np.ndarray:
        """The formula in fp64; x [B, D], t [B] or []."""
        angle = t.astype(np.float64)[..., None] * self.frequencies.astype(np.float64)
        halves = [np.sin(angle), np.cos(angle)] if self.sin_first else [np.cos(angle), np.sin(angle)]
        embedding = np.concatenate(halves, -1)
        padding = np.zeros((*embedding.shape[:-1], self.time_dim - embedding.shape[-1]))
        embedding = np.concatenate([embedding, padding], -1)
        e = silu(silu(embedding @ self.value("w_embed1").T) @ self.value("w_embed2").T)
        if labels is not None:
            e = e + self.value("class_embedding")[labels]
        h = x @ self.value("w_in").T + self.value("b_in")
        for w, c, film in zip(self.value("w"), self.value("c"), self.value("w_film")):
            scale, shift = np.split(e @ film.T, 2, -1)
            h = h + silu((1 + scale) * (h @ w.T + c) + shift)
        return h @ self.value("w_out").T + self.value("b_out")

    def tensors(self, x: np.ndarray, labels) -> Tensors:
        tensors = Tensors(
            0, self.dim, self.hidden, self.blocks, self.embed, self.time_dim, self.num_classes,
            ELEMENT_TYPES[self.dtype], sin_first=self.sin_first, x=x.ctypes.data,
        )  # fmt: skip
        for name, weight in self.weights.items():
            setattr(tensors, name, weight.ctypes.data)
        tensors.frequencies = Array(self.frequencies.ctypes.data, ELEMENT_TYPES["float32"])
        tensors.labels = None if labels is None else labels.ctypes.data
        return tensors


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


class Kernels:
    """The library built from the unchanged ``.cu`` files."""

    def __init__(self, path: Path):
        self.library = ctypes.CDLL(str(path))

    def configure(self, order: int = 0, multiprocessors: int = 4, shared: int = H200_SHARED_BYTES):
        self.library.configure(ctypes.c_uint64(order), ctypes.c_int(multiprocessors), ctypes.c_size_t(shared))

    def call(self, name: str, args: ctypes.Structure) -> None:
        message = ctypes.create_string_buffer(4096)
        error = getattr(self.library, name)(ctypes.byref(args), message, ctypes.c_size_t(4096))
        if error:
            raise RuntimeError(f"{name}: error {error}: {message.value.decode()}")

    def film_mlp(self, network: Network, x, t, labels=None) -> np.ndarray:
        """x [B, D] in storage, t [B] or [] in fp32, labels [B]; the result in storage."""
        output = np.full_like(x, np.nan if x.dtype != np.uint16 else 0xFFFF)
        t = np.asarray(t)
        times = Array(t.ctypes.data, ELEMENT_TYPES[str(t.dtype)])
        args = FilmMLPArgs(network.tensors(x, labels), len(x), times, t.ndim == 1, output.ctypes.data)
        self.call("run_film_mlp", args)
        return output

    def film_mlp_sample(
        self, network: Network, x, table, num_states, *, labels=None, clip=math.nan, seed=0, step=0,
        first_sample=0, noise=None, on_device=False,
    ) -> np.ndarray:  # fmt: skip
        """table [N, S + M + 6] in fp64. With ``on_device`` seed and step are read from memory."""
        output = np.full_like(x, np.nan if x.dtype != np.uint16 else 0xFFFF)
        args = SampleArgs(
            network.tensors(x, labels), len(x), table.ctypes.data, len(table), num_states,
            table.shape[1] - num_states - 6, clip, seed, step, first_sample,
            noise=None if noise is None else noise.ctypes.data, output=output.ctypes.data,
        )  # fmt: skip
        if on_device:
            numbers = np.array([seed, step], np.int64)
            args.seed = args.step = -1
            args.seed_tensor, args.step_tensor = numbers.ctypes.data, numbers.ctypes.data + 8
        self.call("run_film_mlp_sample", args)
        return output


def sample_reference(
    network: Network, x, table, num_states, *, labels=None, clip=math.nan, seed=0, step=0,
    first_sample=0, noise=None,
) -> np.ndarray:  # fmt: skip
    """The sampling loop in fp64 with the noise of the contract."""
    states, predictions = [], []
    for i, row in enumerate(table):
        a, b, (e, c, d0, d1, bound, time) = row[:num_states], row[num_states:-6], row[-6:]
        output = network.forward(x, np.float64(time), labels)
        bound = bound if math.isnan(clip) else clip
        predictions.insert(0, np.clip(d0 * x + d1 * output, -bound, bound))
        states.insert(0, x)
        z = noise[i] if noise is not None else 0.0
        if noise is None and c != 0:
            z = normals(seed, step + i, first_sample, x.shape)
        x = e * output + c * z
        x = x + sum(weight * state for weight, state in zip(a, states))
        x = x + sum(weight * prediction for weight, prediction in zip(b, predictions))
    return x


def main() -> None:
    """A few cases under AddressSanitizer, which ends the program at the first bad access."""
    kernels = Kernels(Path(sys.argv[1]))
    random = np.random.default_rng(0)
    table = np.array([[0.9, 0.05, 0.1, 0.02, 0.01, 0.1, 1.0, -0.1, 3.0, t] for t in (0.9, 0.5)])
    for dim, hidden, shared in [(3, 37, H200_SHARED_BYTES), (2, 48, 40000), (5, 33, 33500)]:
        kernels.configure(order=dim, shared=shared)
        network = Network(dim, hidden, 2, 19, 11, num_classes=3)
        x = random.normal(size=(11, dim)).astype(np.float32)
        labels = random.integers(0, 3, 11)
        for t in (np.float32(0.3), random.uniform(size=11).astype(np.float32)):
            got = kernels.film_mlp(network, x, np.asarray(t), labels)
            np.testing.assert_allclose(got, network.forward(x, np.asarray(t), labels), atol=1e-5)
        got = kernels.film_mlp_sample(network, x, table, 2, labels=labels, seed=5)
        expected = sample_reference(network, x, table, 2, labels=labels, seed=5)
        np.testing.assert_allclose(got, expected, atol=1e-5)


if __name__ == "__main__":
    main()
