"""Data sets: files of the true format with few images, written here and read back pixel by pixel;
and what comes without them.
"""

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import re
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import sureclr.compat  # noqa: F401
from sureclr.data import downloads, sources
from sureclr.data.image_set import ImageSet
from sureclr.data.sources import SOURCES, is_source, load_images, register_source
from sureclr.errors import UserError
from sureclr.registry import Registry

from torchvision import datasets  # isort: skip  needs sureclr.compat

RANDOM = np.random.default_rng(0)
FASHION_SHAPES: dict[str, tuple[int, ...]] = {
    "train-images-idx3-ubyte": (5, 28, 28),
    "train-labels-idx1-ubyte": (5,),
    "t10k-images-idx3-ubyte": (3, 28, 28),
    "t10k-labels-idx1-ubyte": (3,),
}


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No data set and no server but the test's own."""
    monkeypatch.setattr(sources, "DEBIAN_FASHION", tmp_path / "debian")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SURECLR_DATA", str(tmp_path / "data"))
    for reader in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        monkeypatch.setattr(
            reader, "url", f"http://127.0.0.1:9/{reader.filename}"
        )  # nobody listens there
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])


def noise(*shape: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, shape, dtype=np.uint8)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def publish(monkeypatch: pytest.MonkeyPatch, reader: Any, files: dict[str, bytes]) -> None:
    """Make torchvision take these files for the published ones."""
    for table in ("train_list", "test_list"):
        monkeypatch.setattr(
            reader, table, [[name, md5(files[name])] for name, _ in getattr(reader, table)]
        )
    if hasattr(reader, "meta"):
        monkeypatch.setattr(
            reader, "meta", {**reader.meta, "md5": md5(files[reader.meta["filename"]])}
        )


def archive(folder: str, files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def cifar10(
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[dict[str, bytes], dict[str, tuple[NDArray[np.uint8], list[int]]]]:
    """Files as Toronto's: pickles of {"data": (n, 3072), "labels"}; the pixels beside them, (n, 3,
    32, 32).
    """
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    truth = {name: (noise(4, 3, 32, 32), RANDOM.integers(0, 10, 4).tolist()) for name in names}
    files = {
        name: pickle.dumps({"data": pixels.reshape(4, 3072), "labels": labels})
        for name, (pixels, labels) in truth.items()
    }
    files["batches.meta"] = pickle.dumps({"label_names": [f"class {i}" for i in range(10)]})
    publish(monkeypatch, datasets.CIFAR10, files)
    return files, truth


def idx(array: NDArray[np.uint8]) -> bytes:
    return (
        b"\0\0\x08"
        + bytes([array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def fashion() -> dict[str, NDArray[np.uint8]]:
    return {
        name: noise(*shape) if len(shape) > 1 else noise(*shape) % 10
        for name, shape in FASHION_SHAPES.items()
    }


def check_fashion(truth: dict[str, NDArray[np.uint8]]) -> None:
    images = load_images("fashion-mnist")
    assert images.images[:, 0].tolist() == [
        *truth["train-images-idx3-ubyte"].tolist(),
        *truth["t10k-images-idx3-ubyte"].tolist(),
    ]
    assert images.labels.tolist() == [
        *truth["train-labels-idx1-ubyte"].tolist(),
        *truth["t10k-labels-idx1-ubyte"].tolist(),
    ]
    assert images.split.tolist() == ["train"] * 5 + ["test"] * 3
    assert images.classes[9] == "Ankle boot"


def test_digits_are_scikit_learns_and_the_last_797_are_the_test() -> None:
    from sklearn.datasets import load_digits

    theirs, images = load_digits(), load_images("digits")
    assert images.images.shape == (1797, 1, 8, 8) and images.images.max() == 255
    exact = theirs.images * 255 / 16
    assert np.abs(images.images[:, 0].numpy() - exact).max() <= 0.5  # rounded, not cut off
    assert np.array_equal(np.rint(images.images[:, 0].numpy() / 255 * 16), theirs.images)
    assert images.labels.tolist() == theirs.target.tolist() and images.classes == tuple(
        "0123456789"
    )
    assert len(images.train) == 1000 and len(images.test) == 797
    assert (
        images.test.labels.tolist() == theirs.target[1000:].tolist()
        and images.test.paths[0] == "test/00000"
    )


def test_size_and_channels_are_as_asked() -> None:
    assert load_images("digits", size=16, channels=3).images.shape == (1797, 3, 16, 16)
    assert load_images("digits", size=1).images.shape == (1797, 1, 1, 1)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"size": 0}, "size must be at least 1 pixel, or None; got 0"),
        ({"size": -3}, "got -3"),
        ({"channels": 33}, "channels must be 1 .grey., 3 .RGB., .* up to 32, or None; got 33"),
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, int], words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_images("digits", **wrong)


@pytest.mark.parametrize("where", ["data/FashionMNIST/raw", "debian"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_fashion_mnist_is_read_from_idx_files_plain_or_gzipped(
    tmp_path: Path, where: str, ending: str
) -> None:
    truth = fashion()
    pack: Callable[[bytes], bytes] = gzip.compress if ending else bytes
    write(tmp_path / where, {name + ending: pack(idx(array)) for name, array in truth.items()})
    check_fashion(truth)


def test_a_plain_file_wins_over_the_gzipped_one_and_the_data_folder_over_debians(
    tmp_path: Path,
) -> None:
    truth, other = fashion(), fashion()
    write(
        tmp_path / "debian",
        {f"{name}.gz": gzip.compress(idx(array)) for name, array in other.items()},
    )
    check_fashion(other)
    write(
        tmp_path / "data/FashionMNIST/raw",
        {f"{name}.gz": gzip.compress(idx(array)) for name, array in other.items()},
    )
    write(tmp_path / "data/FashionMNIST/raw", {name: idx(array) for name, array in truth.items()})
    check_fashion(truth)


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "the tail gone": lambda data: data[:-9],
    "most gone": lambda data: data[:30],
    "all gone": lambda data: b"",
    "another head": lambda data: b"x" + data[1:],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_damaged_idx_file_is_named_in_one_sentence(
    tmp_path: Path, damage: Callable[[bytes], bytes], ending: str
) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if ending else bytes
    files = {name + ending: pack(idx(array)) for name, array in fashion().items()}
    files[f"t10k-images-idx3-ubyte{ending}"] = damage(files[f"t10k-images-idx3-ubyte{ending}"])
    write(tmp_path / "debian", files)
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte.*cannot be read.*delete it"):
        load_images("fashion-mnist")


def test_images_and_labels_of_different_number_are_refused(tmp_path: Path) -> None:
    truth = fashion() | {"t10k-labels-idx1-ubyte": np.zeros(4, np.uint8)}
    write(tmp_path / "debian", {name: idx(array) for name, array in truth.items()})
    with pytest.raises(UserError, match="fashion-mnist"):
        load_images("fashion-mnist")


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_cifar10_is_read_pixel_by_pixel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cifar10: Any, form: str
) -> None:
    files, truth = cifar10
    packed = archive("cifar-10-batches-py", files)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(packed))
    if form == "folder":
        write(tmp_path / "data/cifar-10-batches-py", files)
    else:
        write(tmp_path / "data", {"cifar-10-python.tar.gz": packed})
    images = load_images("cifar10")
    order = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    assert np.array_equal(images.images.numpy(), np.concatenate([truth[name][0] for name in order]))
    assert images.labels.tolist() == [label for name in order for label in truth[name][1]]
    assert images.split.tolist() == ["train"] * 20 + ["test"] * 4 and images.classes[3] == "class 3"
    assert images.images.is_contiguous()


def test_cifar100_gives_its_fine_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pixels = {"train": noise(6, 3, 32, 32), "test": noise(2, 3, 32, 32)}
    fine = {"train": [99, 0, 1, 2, 3, 4], "test": [98, 7]}
    files = {
        name: pickle.dumps(
            {
                "data": array.reshape(-1, 3072),
                "fine_labels": fine[name],
                "coarse_labels": [19] * len(array),
            }
        )
        for name, array in pixels.items()
    }
    files["meta"] = pickle.dumps(
        {"fine_label_names": [f"fine {i}" for i in range(100)], "coarse_label_names": ["c"] * 20}
    )
    publish(monkeypatch, datasets.CIFAR100, files)
    write(tmp_path / "data/cifar-100-python", files)
    images = load_images("cifar100")
    assert np.array_equal(images.train.images.numpy(), pixels["train"]) and np.array_equal(
        images.test.images.numpy(), pixels["test"]
    )
    assert (
        images.labels.tolist() == fine["train"] + fine["test"] and images.classes[99] == "fine 99"
    )


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.place,)


def test_a_pickle_that_is_not_the_published_one_is_never_opened(
    tmp_path: Path, cifar10: Any
) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    write(tmp_path / "data/cifar-10-batches-py", cifar10[0] | {"data_batch_2": trap})
    with pytest.raises(UserError, match="not complete"):
        load_images("cifar10")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.fixture
def stl10(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, NDArray[np.uint8]]:
    """Files as Stanford's: each channel column by column, labels from 1; the pixels beside them,
    (n, 3, 96, 96).
    """
    truth = {
        "train": noise(6, 3, 96, 96),
        "unlabeled": noise(4, 3, 96, 96),
        "test": noise(2, 3, 96, 96),
    }
    files = {
        f"{part}_X.bin": array.transpose(0, 1, 3, 2).tobytes() for part, array in truth.items()
    }
    files |= {"train_y.bin": bytes([1, 2, 3, 10, 5, 6]), "test_y.bin": bytes([10, 1])}
    files["class_names.txt"] = "\n".join(f"class {i}" for i in range(10)).encode()
    files["fold_indices.txt"] = b"".join(
        b"%d %d %d \n" % (i % 6, (i + 1) % 6, (i + 2) % 6) for i in range(10)
    )
    publish(monkeypatch, datasets.STL10, files)
    write(tmp_path / "data/stl10_binary", files)
    return truth


def test_stl10_has_its_unlabelled_images_and_its_folds(stl10: dict[str, NDArray[np.uint8]]) -> None:
    images = load_images("stl10")
    assert np.array_equal(
        images.images.numpy(), np.concatenate([stl10["train"], stl10["unlabeled"], stl10["test"]])
    )
    assert (
        images.labels.tolist() == [0, 1, 2, 9, 4, 5, -1, -1, -1, -1, 9, 0]
        and images.classes[9] == "class 9"
    )
    assert images.split.tolist() == ["train"] * 6 + ["unlabelled"] * 4 + ["test"] * 2
    assert np.array_equal(
        images.pretraining.images.numpy(), np.concatenate([stl10["train"], stl10["unlabeled"]])
    )
    assert (
        images.folds is not None
        and images.folds.shape == (10, 3)
        and images.folds[9].tolist() == [3, 4, 5]
    )
    assert images.train.folds is not None and torch.equal(images.train.folds, images.folds)


def test_stl10_agrees_with_torchvisions_own_reader(tmp_path: Path, stl10: Any) -> None:
    theirs, images = datasets.STL10(tmp_path / "data", split="train", folds=4), load_images("stl10")
    assert images.folds is not None
    fold = images.select(images.folds[4])
    assert (
        np.array_equal(fold.images.numpy(), theirs.data)
        and fold.labels.tolist() == theirs.labels.tolist()
    )


ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "stl10": "stl10_binary.tar.gz",
    "fashion-mnist": "train-images-idx3-ubyte.gz",
}


@pytest.mark.parametrize(("name", "file"), ARCHIVES.items())
def test_offline_one_sentence_names_the_file_the_place_and_the_address(
    tmp_path: Path, capfd: Any, name: str, file: str
) -> None:
    with pytest.raises(UserError, match=r"^[^\n]+$") as caught:
        load_images(name)
    for part in (file, str(tmp_path / "data"), "http://127.0.0.1:9/", "SURECLR_DATA"):
        assert part in str(caught.value)
    assert capfd.readouterr().out == ""


def test_a_server_that_never_answers_counts_as_missing() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(OSError, match=r"timed out|no answer"),
    ):
        downloads.check_server(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.2)


def test_a_name_whose_look_up_never_ends_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: asleep.wait(2) and [])
    with pytest.raises(TimeoutError, match="no answer within 0.2 s"):
        downloads.check_server("http://nowhere.invalid/", seconds=0.2)
    asleep.set()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # torchvision asks for the file first to see where it is, and hangs up


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server of this process: its address and its folder."""
    folder = tmp_path / "server"
    folder.mkdir()
    with QuietServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as http_server:
        threading.Thread(target=http_server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}/", folder
        http_server.shutdown()


def test_missing_files_are_downloaded_checked_and_used_again(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: Any,
    server: tuple[str, Path],
    cifar10: Any,
) -> None:
    packed = archive("cifar-10-batches-py", cifar10[0])
    write(server[1], {"cifar-10-python.tar.gz": packed})
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(packed))
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server[0]}cifar-10-python.tar.gz")
    assert np.array_equal(load_images("cifar10").test.images.numpy(), cifar10[1]["test_batch"][0])
    printed = capfd.readouterr()
    assert printed.out == "" and f"downloading from {server[0]}" in printed.err
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/")
    assert len(load_images("cifar10")) == 24
    assert socket.getdefaulttimeout() is None


def test_what_a_reader_prints_goes_to_stderr(
    tmp_path: Path, capfd: Any, server: tuple[str, Path]
) -> None:
    with downloads.downloading("Chatter", "file", tmp_path, server[0]):
        print("100 %")  # older torchvision did
    printed = capfd.readouterr()
    assert printed.out == "" and "100 %" in printed.err


def test_a_download_that_is_not_the_published_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: tuple[str, Path], cifar10: Any
) -> None:
    write(server[1], {"cifar-10-python.tar.gz": archive("cifar-10-batches-py", cifar10[0])})
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{server[0]}cifar-10-python.tar.gz")
    with pytest.raises(UserError, match="corrupted"):
        load_images("cifar10")
    assert not (tmp_path / "data/cifar-10-batches-py").exists()


def test_fashion_mnist_is_downloaded_with_its_hash_check(
    monkeypatch: pytest.MonkeyPatch, server: tuple[str, Path]
) -> None:
    truth = fashion()
    files = {f"{name}.gz": gzip.compress(idx(array)) for name, array in truth.items()}
    write(server[1], files)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [server[0]])
    with pytest.raises(UserError, match="Fashion-MNIST is not complete"):
        load_images("fashion-mnist")
    monkeypatch.setattr(
        datasets.FashionMNIST, "resources", [(name, md5(data)) for name, data in files.items()]
    )
    check_fashion(truth)


@pytest.mark.parametrize("name", ["cifar10", "fashion-mnist"])
def test_a_data_folder_that_is_a_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        load_images(name)


def test_an_unknown_source_lists_the_nearest_and_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean cifar10") as caught:
        load_images("cifar-10")
    assert all(name in str(caught.value) for name in SOURCES)
    with pytest.raises(UserError, match=f"write folder:{tmp_path}"):
        load_images(str(tmp_path))
    with pytest.raises(UserError, match="unknown data source"):
        load_images("folder:PATH")


# --- Sources of other packages

MINE = """
import numpy as np, torch
from sureclr.data.image_set import ImageSet

def read_mine(root):
    pixels = torch.full((3, 1, 6, 6), 7, dtype=torch.uint8)
    return ImageSet("NAME", pixels, torch.full((3,), -1), (), np.full(3, "train"), [str(root)] * 3)
"""


@pytest.fixture
def clean_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of the test's own, so that no name stays behind."""
    fresh = Registry[sources.Source]("data source", "sureclr.sources")
    fresh.register("digits")(SOURCES["digits"])
    monkeypatch.setattr(sources, "SOURCES", fresh)


def read_three(root: Path) -> ImageSet:
    return ImageSet(
        "three",
        torch.arange(3 * 36, dtype=torch.uint8).view(3, 1, 6, 6),
        torch.tensor([0, 1, 0]),
        ("odd", "even"),
        np.array(["train", "train", "test"]),
        [f"{root}/{i}" for i in range(3)],
    )


@pytest.mark.usefixtures("clean_sources")
def test_a_registered_function_is_a_source(tmp_path: Path) -> None:
    assert not is_source("three")
    assert register_source("three", about="Three images.")(read_three) is read_three
    images = load_images("three", root=tmp_path)
    assert is_source("three") and sources.SOURCES["three"].about == "Three images."
    assert torch.equal(images.images, read_three(tmp_path).images)
    assert images.paths[2] == f"{tmp_path}/2" and images.classes == ("odd", "even")
    assert load_images("three").paths[0] == f"{tmp_path / 'data'}/0"  # of SURECLR_DATA
    assert load_images("three", size=12, channels=3).images.shape == (3, 3, 12, 12)


@pytest.mark.usefixtures("clean_sources")
def test_a_name_is_registered_once() -> None:
    with pytest.raises(UserError, match="already a data source named 'digits'"):
        register_source("digits", about="Other digits.")(read_three)
    with pytest.raises(UserError, match="cannot be named 'folder:mine'"):
        register_source("folder:mine", about="Never.")


def install(folder: Path, name: str, body: str, entry: str) -> None:
    """An installed package `name` with one entry point in the group of the sources."""
    (folder / f"{name}.py").write_text(body)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[sureclr.sources]\n{entry}\n")


@pytest.mark.usefixtures("clean_sources")
def test_an_installed_package_adds_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from sureclr.data.sources import register_source\n"
    body = MINE.replace("def read", '@register_source("mine", about="My images.")\ndef read')
    install(tmp_path, "sureclr_test_mine", head + body, "mine = sureclr_test_mine:read_mine")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_source("mine") and sources.SOURCES["mine"].about == "My images."
    assert load_images("mine").images.unique().tolist() == [7]
    assert list(sources.SOURCES) == ["digits", "mine"]


@pytest.mark.usefixtures("clean_sources")
def test_an_entry_point_that_is_no_source_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "sureclr_test_bare", MINE, "bare = sureclr_test_bare:read_mine")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r'must use @register_source\("bare", about=\.\.\.\)'):
        load_images("bare")


@pytest.mark.parametrize("name", [n for n in SOURCES if ":" not in n])
def test_every_source_says_what_it_is_in_a_sentence(name: str) -> None:
    assert is_source(name) and re.fullmatch(r"[A-Z].{20,}[.]", SOURCES[name].about)


def test_the_folder_is_listed_but_is_no_name() -> None:
    assert "folder:PATH" in SOURCES and not is_source("folder:PATH") and is_source("folder:a")
