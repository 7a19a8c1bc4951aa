"""Print by how many MiB memory grows from the load of a large cache to the first views.

The pixel file is sparse, so that it takes no room on the disk. Pages of the file itself, which the
system drops when memory is short, do not count.
"""

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch

from sureclr.config import PretrainConfig, ViewConfig
from sureclr.data.cache_manifest import Manifest, file_stamp, sampled_digest, write_manifest
from sureclr.data.decoding import Decoding, FileRef
from sureclr.data.folder_cache import Listing, cached_pictures
from sureclr.data.image_set import ImageSet, digest_of_pixels
from sureclr.data.views import two_views
from sureclr.training.building import pixel_statistics
from sureclr.training.image_record import ImageRecord

COUNT, SIDE = 20_000, 64
WANTED = Decoding(SIDE, 3, SIDE)


def anonymous() -> float:
    """The memory of this process in MiB, without the pages of files."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def sparse_cache() -> Listing:
    """Make a cache of black images."""
    names = [f"{i:05d}.png" for i in range(COUNT)]
    listing = Listing("/photos", names, [FileRef(name) for name in names], [(0,)] * COUNT)
    path = listing.cache_file(WANTED.size, WANTED.channels, WANTED.whole_side, WANTED.value_range)
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = [COUNT, 3, SIDE, SIDE]
    contents = [hashlib.sha256(name.encode()).hexdigest() for name in names]
    sides = [SIDE] * COUNT
    manifest = Manifest(
        *(listing.where, listing.digest, "pixels.bin", shape, ""),
        names=names,
        contents=contents,
        heights=sides,
        widths=sides,
    )
    with open(path.with_name("pixels.bin"), "w+b") as file:
        file.truncate(COUNT * 3 * SIDE * SIDE)
        sampled = sampled_digest([file])
    stamps = [list(file_stamp(path.with_name("pixels.bin")))]
    write_manifest(path, replace(manifest, stamps=stamps, sampled=sampled))
    return listing


def first_views(listing: Listing) -> None:
    """Do all that reads pixels before the first step."""
    cached = cached_pictures(listing, WANTED, 0)
    split = np.where(np.arange(COUNT) % 5 == 0, "test", "train")  # no rows are neighbours for long
    labels = torch.zeros(COUNT, dtype=torch.int64)
    names, contents = cached.manifest.names, cached.manifest.contents
    images = ImageSet("x", cached.squares, labels, ("a",), split, names, contents=contents)
    training = images.pretraining
    mean, _ = pixel_statistics(training, PretrainConfig("x"))
    record = ImageRecord.of(training)
    digest_of_pixels(images)
    views = two_views(training.for_views(range(0, 64, 4)), torch.arange(16), ViewConfig(), SIDE)
    assert len(record.paths) == 16_000 and not mean.any() and len(views) == 32


def main() -> None:
    listing = sparse_cache()
    torch.set_num_threads(1)
    before = peak = anonymous()
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(first_views, listing)
        while not work.done():
            peak = max(peak, anonymous())
            time.sleep(0.002)
        work.result()
    print(peak - before)


if __name__ == "__main__":
    main()
