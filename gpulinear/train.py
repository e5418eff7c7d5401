"""The main job on real data: train a classifier of ``Linear`` layers on scikit-learn's handwritten digits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import gemm
from .device import DeviceSpec, why_no_gpu
from .errors import ArgumentError, BackendError
from .launch import launches
from .layer import Linear
from .views import dtype_name, numpy_dtype

BACKENDS = ("auto", "cuda", "reference", "emulator")
_INSTALL = "pip install 'gpulinear[train]'"
TEST_SHARE = 5  # every fifth image is kept for the test


@dataclass(frozen=True)
class Settings:
    """What a run depends on; the same settings on the same backend give the same bits."""

    epochs: int = 25
    steps: int | None = None  # stop after this many mini-batches
    hidden: int = 256
    batch: int = 64
    dtype: str = "float32"
    seed: int = 0
    learning_rate: float = 0.1
    momentum: float = 0.9
    backend: str = "auto"
    arch: str | None = None  # whose kernels the emulator runs


@dataclass
class Result:
    """What a run found.

    ``kernels`` counts the launches by kernel, none on the reference; ``epochs`` holds (mean loss, train accuracy, test
    accuracy) of each epoch.
    """

    backend: str
    kernels: dict[str, int] = field(default_factory=dict)
    epochs: list[tuple[float, float, float]] = field(default_factory=list)
    images_per_second: float = 0.0
    weights: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    test_images: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty((0, 8, 8)))
    test_labels: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty(0, np.int64))
    predictions: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def test_accuracy(self) -> float:
        """Share of test images that are classified right, after the last step."""
        return float((self.predictions == self.test_labels).mean())


def gpu_usable() -> bool:
    """Whether CuPy is installed and sees a device with a working driver."""
    return why_no_gpu() is None


def choose_backend(name: str, arch: str | None = None) -> str:
    """Resolve "auto" to cuda or reference.

    ArgumentError for an unknown name, or an arch with another backend than the emulator; BackendError where the named
    backend cannot run here.
    """
    if name not in BACKENDS:
        raise ArgumentError(f"backend must be one of {', '.join(BACKENDS)}, got {name!r}")
    if arch is not None:
        if name != "emulator":
            raise ArgumentError(f"arch chooses what the emulator stands for; backend {name} takes none, got {arch!r}")
        DeviceSpec.preset(arch)  # raises BackendError for an unknown arch
    if name in ("reference", "emulator"):
        return name
    why = why_no_gpu()
    if name == "auto":
        return "reference" if why else "cuda"
    if why:
        raise BackendError(f"backend cuda needs CuPy and a GPU with a working driver, but {why}; or use reference")
    return name


def load_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """1,797 images (n, 64) scaled to [0, 1] in float64, and their labels (n,)."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise BackendError(
            f"training reads scikit-learn's digits, which fail to import ({error}); {_INSTALL}"
        ) from error
    data = load()
    return data.data / 16.0, data.target


class Network:
    """64 -> hidden -> 10 with a gelu between, trained by SGD with momentum on the softmax cross-entropy."""

    def __init__(self, settings: Settings, xp: Any) -> None:
        self.xp, self.settings = xp, settings
        dtype = settings.dtype
        self.layers = [
            Linear(64, settings.hidden, activation="gelu", dtype=dtype, xp=xp, seed=settings.seed),
            Linear(settings.hidden, 10, dtype=dtype, xp=xp, seed=settings.seed + 1),
        ]
        # Parameters and velocities are kept in float32 or wider; 16-bit layers get rounded copies.
        self.master = "float64" if dtype == "float64" else "float32"
        self.params = [p.astype(self.master) for layer in self.layers for p in (layer.weight, layer.bias)]
        self.velocity = [xp.zeros_like(p) for p in self.params]

    def logits(self, x: Any) -> Any:
        """Scores (n, 10) of images (n, 64)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def step(self, x: Any, labels: Any, rate: float) -> tuple[float, int]:
        """One mini-batch at a learning rate: its mean loss, and how many images were right before the update."""
        xp = self.xp
        contexts = []
        for layer in self.layers:
            x, context = layer.forward(x)
            contexts.append(context)
        scores = x.astype(self.master)
        scores = scores - scores.max(axis=1, keepdims=True)
        exps = xp.exp(scores)
        total = exps.sum(axis=1, keepdims=True)
        rows = xp.arange(len(labels))
        loss = float((xp.log(total[:, 0]) - scores[rows, labels]).mean())
        right = int((scores.argmax(axis=1) == labels).sum())
        grad = exps / total
        grad[rows, labels] -= 1
        dy = (grad / len(labels)).astype(x.dtype)
        for layer, context in zip(reversed(self.layers), reversed(contexts), strict=True):
            dy = layer.backward(dy, context)
        self._update(rate)
        return loss, right

    def _update(self, rate: float) -> None:
        grads = [g for layer in self.layers for g in (layer.dw, layer.db)]
        for param, velocity, grad in zip(self.params, self.velocity, grads, strict=True):
            velocity *= self.settings.momentum
            velocity += grad.astype(self.master)
            param -= rate * velocity
        for index, layer in enumerate(self.layers):
            layer.weight = self.params[2 * index].astype(layer.weight.dtype)
            layer.bias = self.params[2 * index + 1].astype(layer.bias.dtype)


def train(settings: Settings, progress: Callable[[int, int], None] | None = None) -> Result:
    """Train and test.

    Args:
        settings: see ``Settings``.
        progress: called after each mini-batch with (done, total).

    Raises:
        ArgumentError, DTypeError: a setting outside its rule. BackendError: the chosen backend or scikit-learn is missing.
    """
    backend = choose_backend(settings.backend, settings.arch)
    if backend == "cuda":
        import cupy as xp
    else:
        xp = np
    on_host = nullcontext() if backend == "cuda" else gemm.host_backend(backend, settings.arch or gemm.DEFAULT_ARCH)
    with on_host, launches() as kernels:
        images, labels = load_digits()
        # One shuffle for every run: the set is ordered by writer, and the test must not depend on the seed.
        test = np.random.default_rng(TEST_SHARE).permutation(len(images)) % TEST_SHARE == 0
        dtype = numpy_dtype(dtype_name(settings.dtype, "--dtype"))
        x_train, x_test = (xp.asarray(images[mask].astype(dtype)) for mask in (~test, test))
        y_train, y_test = (xp.asarray(labels[mask]) for mask in (~test, test))
        network = Network(settings, xp)
        result = Result(backend, kernels)
        shuffle = np.random.default_rng(settings.seed)
        per_epoch = -(-len(x_train) // settings.batch)
        limit = min(settings.epochs * per_epoch, settings.steps or settings.epochs * per_epoch)
        done, seconds, seen = 0, 0.0, 0
        while done < limit:
            order = xp.asarray(shuffle.permutation(len(x_train)))
            losses, right, count = [], 0, 0
            begin = time.perf_counter()
            for start in range(0, len(x_train), settings.batch):
                chosen = order[start : start + settings.batch]
                rate = settings.learning_rate * (1 - done / limit)  # down to zero: the end is less noisy
                loss, hits = network.step(x_train[chosen], y_train[chosen], rate)
                losses.append(loss)
                right += hits
                count += len(chosen)
                done += 1
                if progress is not None:
                    progress(done, limit)
                if done == limit:
                    break
            seconds += time.perf_counter() - begin
            seen += count
            predictions = _to_host(network.logits(x_test).astype(network.master).argmax(axis=1))
            accuracy = float((predictions == _to_host(y_test)).mean())
            result.epochs.append((float(np.mean(losses)), right / count, accuracy))
        result.predictions = predictions
        result.test_labels = _to_host(y_test)
        result.test_images = images[test].reshape(-1, 8, 8)
        result.images_per_second = seen / seconds if seconds else 0.0
        for index, layer in enumerate(network.layers):
            result.weights[f"weight{index}"] = _to_host(layer.weight)
            result.weights[f"bias{index}"] = _to_host(layer.bias)
    return result


def _to_host(array: Any) -> np.ndarray[Any, Any]:
    host = array.get() if hasattr(array, "get") else array
    return np.asarray(host)


def check_outputs(save: Path | None, plot_to: Path | None) -> None:
    """Refuse, before the training, what would fail after it.

    ArgumentError for a path that cannot be written or a picture format that does not exist; BackendError where matplotlib
    is missing.
    """
    if plot_to is not None:
        formats = _pyplot().FigureCanvasBase.get_supported_filetypes()
        if plot_to.suffix.lower()[1:] not in formats:
            raise ArgumentError(f"--plot must end in one of {', '.join(sorted(formats))}, got {plot_to.name!r}")
    for option, path in (("--save", save), ("--plot", plot_to)):
        if path is None:
            continue
        with _writing(option, path):
            new = not path.exists()
            open(path, "ab").close()
            if new:
                path.unlink()


@contextmanager
def _writing(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"{option} must name a file that can be written, got {path} ({error.strerror or error})"
        ) from error


def save_weights(result: Result, path: Path) -> None:
    """Write the weights as an .npz; bfloat16 (which the format does not know) as float32, which holds it exactly."""
    exact = {n: w if w.dtype.kind == "f" else w.astype(np.float32) for n, w in result.weights.items()}
    with _writing("--save", path), open(path, "wb") as file:
        np.savez(file, **exact)  # type: ignore[arg-type]


def _pyplot() -> Any:
    """matplotlib.pyplot, drawing into files."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise BackendError(f"--plot draws with matplotlib, which fails to import ({error}); {_INSTALL}") from error
    return pyplot


def plot(result: Result, path: Path) -> None:
    """Draw loss and accuracy over the epochs, and test images with their predictions, wrong ones first and in red."""
    plt = _pyplot()

    blue, orange, red = "#2f6db3", "#d9822b", "#c0392b"
    figure = plt.figure(figsize=(11, 5), layout="constrained")
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.1, 1))
    left, right = halves
    loss_axis, accuracy_axis = left.subplots(2, 1, sharex=True)
    epochs = np.arange(1, len(result.epochs) + 1)
    losses, train_accuracy, test_accuracy = (np.array(column) for column in zip(*result.epochs, strict=True))
    loss_axis.semilogy(epochs, losses, color=blue, marker="o", markersize=3)
    loss_axis.set_ylabel("training loss")
    accuracy_axis.plot(epochs, 100 * train_accuracy, color=blue, label="training")
    accuracy_axis.plot(epochs, 100 * test_accuracy, color=orange, label="test")
    accuracy_axis.set(ylabel="accuracy in %", xlabel="epoch", ylim=(max(0.0, 100 * test_accuracy.min() - 3), 101))
    accuracy_axis.legend(frameon=False, loc="lower right")
    for axis in (loss_axis, accuracy_axis):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    left.suptitle(f"digits: {100 * result.test_accuracy:.1f} % of {len(result.test_labels)} test images right")
    wrong = result.predictions != result.test_labels
    order = np.argsort(~wrong, kind="stable")[:25]
    right.suptitle("predictions (wrong ones first, in red: predicted / true)")
    axes = right.subplots(5, 5)
    for axis in axes.flat:
        axis.axis("off")
    for axis, index in zip(axes.flat, order, strict=False):
        axis.imshow(result.test_images[index], cmap="gray_r", interpolation="nearest")
        guess, truth = result.predictions[index], result.test_labels[index]
        title = f"{guess}" if guess == truth else f"{guess} / {truth}"
        axis.set_title(title, fontsize=9, color="black" if guess == truth else red)
    try:
        with _writing("--plot", path):
            figure.savefig(path, dpi=120)
    finally:
        plt.close(figure)
