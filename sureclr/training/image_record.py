"""Which images a run was trained on: their names, and a digest of each.

A resumed run compares them with the images that it gets, and names what differs. A digest is of
what decides the pixels (`described_pixels`) where that is known, else of the pixels themselves, as
in all records of older versions. A run keeps the kind that it began with.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from sureclr.data.cached_pixels import images_at_once
from sureclr.data.image_set import OF_CONTENTS, ImageSet, described_pixels
from sureclr.files import digest_of_bytes, read_parquet, writing_atomically

DIGEST_BYTES = 16  # of an image
NAMED = 3  # images that a sentence names
COLUMNS = {False: "digest", True: "content"}  # of the saved record, by `of_contents`


@dataclass(frozen=True)
class ImageRecord:
    """The names and contents of n images, in their order.

    Attributes:
        paths: n names.
        digests: n times 16 bytes, one after the other: a hash of what decides the pixels of each
            image; or of the shape and the pixels of each image, or of each whole picture where
            views are cropped from these.
        of_contents: whether they are of the first kind.
    """

    paths: Sequence[str]
    digests: bytes
    of_contents: bool = False

    @staticmethod
    def of(images: ImageSet, like: str = "") -> "ImageRecord":
        """Hash the images: pixels take about a second for each gigabyte, their contents far less.

        Args:
            images: the training images.
            like: `digest` of an earlier record, with which this one will be compared; it decides
                the kind of the digests where the images allow it.
        """
        described = described_pixels(images)
        if described is None or (like and not like.endswith(OF_CONTENTS)):
            return ImageRecord(list(images.paths), b"".join(map(_hash, _pixels(images))))
        hashes = (blake2b(words.encode(), digest_size=DIGEST_BYTES).digest() for words in described)
        return ImageRecord(list(images.paths), b"".join(hashes), True)

    @property
    def digest(self) -> str:
        """The sha256 of names and digests, as 64 hexadecimal digits and the kind."""
        digest = digest_of_bytes(json.dumps(list(self.paths)).encode(), self.digests)
        return digest + OF_CONTENTS * self.of_contents

    def save(self, path: Path) -> None:
        """Write the columns `path` and `digest`, or `content`, as a Parquet file.

        Raises:
            WriteError: the file cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        names = [json.dumps(name) for name in self.paths]  # ASCII: a name need not be UTF-8
        kind = COLUMNS[self.of_contents]
        columns = {"path": pa.array(names, pa.string()), kind: pa.array(self._rows)}
        with writing_atomically(path) as file:
            parquet.write_table(pa.table(columns), file, write_page_checksum=True)

    @staticmethod
    def read(path: Path) -> "ImageRecord | None":
        """Read what `save` wrote; None if the file is missing or damaged."""
        import pyarrow as pa

        try:
            table = read_parquet(path)
            paths = [str(json.loads(name)) for name in table["path"].to_pylist()]
            of_contents = COLUMNS[True] in table.column_names
            digests = table[COLUMNS[of_contents]].to_pylist()
            return ImageRecord(paths, b"".join(digests), of_contents)
        except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, RecursionError):
            return None

    def differences(self, now: "ImageRecord") -> list[str]:
        """Return what differs in the images `now`, one sentence without a full stop for each kind.

        >>> ImageRecord(["a", "b"], bytes(32)).differences(ImageRecord(["a"], bytes(16)))
        ['1 training image was removed: b']
        """
        if self.digest == now.digest:
            return []
        old, new = (dict(zip(r.paths, r._rows, strict=True)) for r in (self, now))
        if self.of_contents != now.of_contents:  # an image has two digests, one of each kind
            new = {name: old.get(name, digest) for name, digest in new.items()}
        kinds = {
            "added": [name for name in new if name not in old],
            "removed": [name for name in old if name not in new],
            "replaced by other pixels": [n for n in new if n in old and new[n] != old[n]],
        }
        found = [_sentence(names, kind) for kind, names in kinds.items() if names]
        if self.of_contents != now.of_contents:
            found.append("the images come in another form, so their pixels cannot be compared")
        return found or ["the same training images come in another order"]

    @property
    def _rows(self) -> list[bytes]:
        """The digests one by one."""
        return [self.digests[i : i + DIGEST_BYTES] for i in range(0, len(self.digests), 16)]


def check_recorded_images(
    path: Path, recorded: str, count: int | None, now: ImageRecord
) -> list[str]:
    """Return how images differ from those of a checkpoint, as `ImageRecord.differences`.

    Args:
        path: of the saved `ImageRecord`.
        recorded: the digest in the checkpoint.
        count: the number of images in the checkpoint.
        now: the images of today.
    """
    if recorded == now.digest:
        return []
    before = ImageRecord.read(path)
    if before is not None and before.digest == recorded:
        return before.differences(now)
    known = "" if count is None else f": there were {count} and there are {len(now.paths)}"
    return [f"the training images are not those of the checkpoint{known}"]


def _pixels(images: ImageSet) -> Iterator[Tensor]:
    """Yield what views are cropped from, image by image, on the CPU."""
    if images.pictures is not None:
        for row in range(len(images)):
            yield images.pictures[row].cpu()
    else:
        pixels, count = images.images, images_at_once(images.images)
        for start in range(0, len(pixels), count):
            yield from pixels[start : start + count].cpu()


def _hash(pixels: Tensor) -> bytes:
    shape = str(tuple(pixels.shape)).encode()
    total = blake2b(shape, digest_size=DIGEST_BYTES)
    total.update(pixels.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.digest()


def _sentence(names: list[str], kind: str) -> str:
    """Say which images differ.

    >>> _sentence(["a", "b", "c", "d"], "added")
    '4 training images were added: a, b, c and 1 more'
    """
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    images = "1 training image was" if len(names) == 1 else f"{len(names)} training images were"
    return f"{images} {kind}: {', '.join(names[:NAMED])}{more}"
