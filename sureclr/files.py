"""The one way in which SureCLR writes files: complete or not at all, and never through a link.

Also what goes with it: JSON that every reader accepts, and checksums.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sureclr.schema import to_json

if TYPE_CHECKING:
    from torch import Tensor

HASHED_BYTES = 1 << 24  # copied at a time where a tensor is not on the CPU or not contiguous


@contextmanager
def writing_atomically(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the name `path` at the end of the block.

    Readers see the old content or the new one, never a part. The draft lies beside the target and
    is removed if the block fails. If `path` is a symbolic link, the link is replaced; the file that
    it points to does not change.

    Args:
        path: the file to write. Its folder must exist.

    Yields:
        The open draft, in binary mode.

    Raises:
        OSError: the disk is full, or the folder is missing or not writable.
    """
    draft = draft_path(path)
    draft.unlink(missing_ok=True)  # of a dead process with the same number, or a link
    try:
        with draft.open("xb") as file:  # "x" fails at a link instead of following it
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content: readers see the old bytes or the new ones, never a part.

    Args:
        path: the file to write. Its folder must exist; a symbolic link is replaced, not followed.
        data: the new content.

    Raises:
        OSError: the disk is full, or the folder is missing or not writable.
    """
    with writing_atomically(path) as file:
        file.write(data)


def draft_path(path: Path) -> Path:
    """Return the name under which this thread writes a file before it takes the name `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in a folder that is itself a draft, and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until a rename in this folder is on the disk, where the system can do that."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all its content. A missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def json_bytes(value: object) -> bytes:
    """Return the value as indented ASCII JSON that any reader accepts; see `schema.to_json`."""
    return json.dumps(to_json(value), indent=1, allow_nan=False).encode()


def digest_of_bytes(*parts: bytes) -> str:
    """Return the sha256 of the parts, one after the other, as 64 hexadecimal digits."""
    total = sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()


def digest_of_tensors(*tensors: "Tensor") -> str:
    """Return the sha256 of the tensors' types, shapes and values as 64 hexadecimal digits.

    Equal tensors have equal digests on every device and in every memory layout.
    """
    total = sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        for rows in _blocks(tensor):
            total.update(rows)
    return total.hexdigest()


def _blocks(tensor: "Tensor") -> Iterator[Any]:
    """The tensor's bytes in the order of its axes, some rows at a time."""
    import torch

    rows = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    row_bytes = rows[:1].numel() * rows.element_size()
    for block in rows.split(max(1, HASHED_BYTES // max(1, row_bytes))):
        yield block.cpu().contiguous().flatten().view(torch.uint8).numpy()
