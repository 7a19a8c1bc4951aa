"""CachedPixels against a plain tensor of the same rows, and the memory that a large cache takes."""

import copy
import gc
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.context import set_spawning_popen
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sureclr.data.cached_pixels import CachedPixels
from sureclr.data.image_set import ImageSet, convert, digest_of_pixels
from sureclr.data.pictures import Pictures
from sureclr.errors import UserError

ROWS = torch.tensor([5, 1, 1, 6, 0])
IMAGES = torch.randint(
    0, 256, (7, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
PAIRS = {  # the cached pixels and the plain tensor that they stand for
    "all rows": (CachedPixels(IMAGES, None, ""), IMAGES),
    "chosen rows": (CachedPixels(IMAGES, None, "").chosen(ROWS), IMAGES[ROWS]),
    "chosen twice": (
        CachedPixels(IMAGES, None, "").chosen(slice(1, 7)).chosen([4, 0, 2]),
        IMAGES[[5, 1, 3]],
    ),
}
INDICES: list[Any] = [
    *(0, -1, slice(1, 3), slice(None, None, 2), [2, 0], torch.tensor([1, 1]), np.array([2, 0])),
    *(None, ..., (1, 0), (slice(None), 0, 0, 0), (slice(1, 3), 1), ([0, 1], [2, 0]), (..., 0)),
    *((slice(0, 2), [0, 1], [1, 2]), torch.tensor(1), ()),
]
OPERATIONS: list[Callable[[Tensor], Any]] = [
    lambda x: x.float() / 255,
    lambda x: 255 - x,
    lambda x: x.flip(2),
    lambda x: x.flatten(1),
    lambda x: torch.cat([x, x[:1]]),
    lambda x: torch.stack(list(x)),
    lambda x: torch.stack([part.sum() for part in x.split(2)]),
    lambda x: torch.stack([part.sum() for part in x.split(1, dim=1)]),
    lambda x: torch.where(x > 9, x, 0),
    lambda x: torch.zeros(x.shape).copy_(x),
    lambda x: x[torch.arange(len(x)) % 2 == 0],
    lambda x: x.detach().cpu().contiguous(),
    lambda x: torch.from_numpy(np.asarray(x).copy()),
    lambda x: torch.tensor(x.tolist()),
    lambda x: copy.deepcopy(x),
    lambda x: pickle.loads(pickle.dumps(x)),
    lambda x: x.moved(torch.device("cpu")) if isinstance(x, CachedPixels) else x,
    lambda x: x[x > 99],
    lambda x: x.as_subclass(torch.nn.Buffer).as_subclass(Tensor),
    lambda x: torch.stack([part.sum() for part in x.split(split_size=2)]),
]


@pytest.mark.parametrize("pair", PAIRS)
def test_cached_pixels_do_what_a_plain_tensor_does(pair: str) -> None:
    cached, plain = PAIRS[pair]
    assert cached.shape == plain.shape and cached.nbytes == plain.nbytes and cached.dtype
    assert len(cached) == len(plain) and cached.device == plain.device
    for index in INDICES:
        assert type(cached[index]) is Tensor and torch.equal(cached[index], plain[index]), index
    for number, operation in enumerate(OPERATIONS):
        found, expected = operation(cached), operation(plain)
        assert torch.equal(found, expected) and found.dtype == expected.dtype, number
    assert "1" not in repr(cached).partition(" of ")[2]  # no pixels


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.fill_(0),
        lambda x: x.__setitem__(1, 0),
        lambda x: x.__setitem__(slice(0, 1), 0),
        lambda x: torch.add(x, 1, out=x),
    ],
)
def test_pixels_that_lie_apart_are_not_changed_in_a_lost_copy(change: Any) -> None:
    cached = CachedPixels(IMAGES.clone(), ROWS, "")
    with pytest.raises(UserError, match="cannot be changed in place"):
        change(cached)
    whole = CachedPixels(IMAGES.clone(), None, "")
    change(whole)
    assert not torch.equal(whole, IMAGES)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.fill_(0),
        lambda x: x.__setitem__(1, 0),
        lambda x: torch.add(x, 1, out=x),
        lambda x: x[2].zero_(),
        lambda x: x.chosen(slice(1, 3)).fill_(0),
    ],
)
def test_pixels_that_were_changed_are_not_taken_for_those_of_their_contents(change: Any) -> None:
    split, contents = np.array(["train"] * 7), [f"{row}" for row in range(7)]
    cached = CachedPixels(IMAGES.clone(), None, "as they are")
    labels = torch.zeros(7, dtype=torch.int64)
    images = ImageSet("x", cached, labels, ("a",), split, list("abcdefg"), contents=contents)
    others = [images.select([6, 2]), images.select(range(2, 5)), images]
    before = [digest_of_pixels(one) for one in others]
    assert all(digest.endswith("-contents") for digest in before)
    change(images.images)
    for one, digest in zip([*others, images.select([6, 2])], [*before, before[0]], strict=True):
        plain = replace(one, images=one.images[:].clone())
        assert digest_of_pixels(one) == digest_of_pixels(plain) != digest


def test_an_array_of_cached_pixels_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        CachedPixels(IMAGES.clone(), None, "").numpy()[0] = 0


def test_the_shape_of_cached_pixels_cannot_be_changed_in_place() -> None:
    cached = CachedPixels(IMAGES.clone(), None, "")
    for change in (Tensor.squeeze_, lambda x: x.transpose_(0, 1), lambda x: x.resize_(2, 3)):
        with pytest.raises(UserError, match="the shape of the cache"):
            change(cached)
    assert torch.equal(cached, IMAGES)


def test_a_split_into_no_images_is_refused_like_that_of_a_plain_tensor() -> None:
    for images in (IMAGES, CachedPixels(IMAGES, None, "")):
        with pytest.raises(RuntimeError, match="split"):
            images.split(-1)


def test_cached_pixels_move_into_shared_memory() -> None:
    """Torch's own way ends the process with a segmentation fault: there is no memory to move."""
    cached = CachedPixels(IMAGES.clone(), ROWS, "").share_memory_()
    assert cached.whole.is_shared() and torch.equal(cached, IMAGES[ROWS])


def test_chosen_rows_reach_a_new_process_as_they_are() -> None:
    """A process that is started inherits open files by number: none may be of a lost copy."""

    class Started:
        DupFd = staticmethod(str)

        def duplicate_for_child(self, number: int) -> int:
            os.fstat(number)
            open_files.append(number)
            return number

    open_files: list[int] = []
    cached = CachedPixels(IMAGES.clone(), ROWS, "")
    set_spawning_popen(Started())
    try:
        sent = ForkingPickler.dumps(cached)
        gc.collect()
        for number in open_files:
            os.fstat(number)  # an OSError says that the file is closed
        assert torch.equal(pickle.loads(sent), IMAGES[ROWS])
        ForkingPickler.dumps(cached.chosen(slice(None)).whole)
        assert len(open_files) == 1  # torch's way is the one that was looked at
    finally:
        set_spawning_popen(None)


def test_a_set_of_cached_pixels_is_converted_like_one_of_plain_pixels() -> None:
    """Also where whole pictures stay: their pixels are those of the cache itself, not a copy."""
    split = np.array(["train", "test", "train", "train", "test", "train", "train"])
    plain = ImageSet("x", IMAGES, torch.zeros(7, dtype=torch.int64), ("a",), split, list("abcdefg"))
    cached = replace(plain, images=CachedPixels(IMAGES, None, ""))
    for one, other in ((plain, cached), (plain.train, cached.train)):
        assert torch.equal(one.images, other.images)
        for size, channels in ((None, None), (2, 1), (3, None), (4, 1)):
            a, b = convert(one, size, channels), convert(other, size, channels)
            assert torch.equal(a.images, b.images) and a.pictures is not None
            assert isinstance(b.pictures, Pictures)
            for row in range(len(a)):
                assert torch.equal(a.pictures[row], b.pictures[row])
    small = convert(cached.train, 2).pictures
    assert small is not None and small.values.data_ptr() == IMAGES.data_ptr()
    assert isinstance(cached.train.images, CachedPixels)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory is read in /proc")
def test_the_pixels_of_a_large_cache_are_not_in_memory_before_the_first_step(
    tmp_path: Path,
) -> None:
    """20,000 images of 64 pixels (234 MiB), in a process of its own; whole copies would show."""
    script = Path(__file__).with_name("flat_memory.py")
    environment = {**os.environ, "SURECLR_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stderr
    # It grows by 19 to 30 MiB (one run of five: more than 40); a copy of the training rows is 187
    assert float(found.stdout) < 90, f"memory grew by {found.stdout} MiB"
