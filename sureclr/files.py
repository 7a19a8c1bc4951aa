"""The one way in which SureCLR writes files: complete or not at all, and never through a link.

Also what goes with it: reading that no pipe can hold up, JSON that every reader accepts, and
checksums.
"""

import errno
import json
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sureclr.errors import UserError
from sureclr.schema import to_json
from sureclr.stopping import drafts

if TYPE_CHECKING:
    from pyarrow import Table
    from torch import Tensor

HASHED_BYTES = 1 << 24  # copied at a time where a tensor is not on the CPU or not contiguous
LARGEST_JSON = 1 << 24  # bytes; parsed, the worst of such files takes about 400 MB
SEAL = "sha256"  # key of the digest of a JSON object
OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DRAFT = re.compile(r"\.(draft-\d+|.+\.\d+-\d+)")  # the names of `draft_path`, and of checkpoints


class WriteError(UserError, OSError):
    """A file could not be written; the sentence names it, the bytes needed and the bytes free.

    It is an `OSError` too, with the number and the text of the system's own error.

    Attributes:
        failure: the sentence without what to do.
    """

    def __init__(self, path: Path, error: OSError, needed: int) -> None:
        """Describe the failure.

        Args:
            path: the file or folder that could not be written.
            error: what the system raised.
            needed: its size in bytes, or as many of them as are known.
        """
        super().__init__(error.errno, error.strerror, str(path))
        self.errno, self.strerror, self.filename = error.errno, error.strerror, str(path)
        reason = error.strerror or str(error)
        if error.errno in OF_SPACE:
            free = free_bytes(path.parent)
            space = "" if free is None else f" and {free:,} are free"
            reason += f": at least {needed:,} bytes are needed{space}"
        self.failure = f"{path} could not be written ({reason})"

    def __str__(self) -> str:
        """Return the sentence."""
        if self.errno in OF_SPACE:
            return f"{self.failure}; free some space there, and run the same command again."
        return f"{self.failure}; make its folder writable, or choose another place."


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of the disk that a folder is on; None if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


@contextmanager
def open_file(path: Path, largest: int | None = None) -> Iterator[IO[bytes]]:
    """Open a regular file for reading; a pipe or a device is refused, not waited for.

    Args:
        path: the file; a link to one is followed.
        largest: number of bytes that it may have; None: any number.

    Yields:
        The open file, in binary mode.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger than that.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(handle)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device and not a file", str(path))
        if largest is not None and status.st_size > largest:
            reason = f"it has {status.st_size:,} bytes, and more than {largest:,} are not read"
            raise OSError(errno.EFBIG, reason, str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def read_file(path: Path, largest: int | None = None) -> bytes:
    """Return the content of a regular file; see `open_file`."""
    with open_file(path, largest) as file:
        return file.read()


def read_parquet(path: Path) -> "Table":
    """Return a whole table; a page whose checksum is wrong is refused.

    One thread reads: where several read a damaged file, pyarrow 26 ends the process at its exit
    (SIGABRT, in one of three tries).

    Raises:
        OSError: the file cannot be read, is no regular file, or is damaged.
        pyarrow.ArrowException: it is no Parquet file.
    """
    from pyarrow import parquet

    with open_file(path) as file:
        whole = parquet.ParquetFile(file, page_checksum_verification=True, pre_buffer=False)
        return whole.read(use_threads=False)


def make_folder(path: Path) -> None:
    """Make a folder inside one of ours, if it is not there yet; a link is not followed.

    Raises:
        UserError: the path is a symbolic link.
        OSError: the path is a file, or the folder cannot be made.
    """
    if path.is_symlink():
        raise UserError(
            f"{path} is a link, and SureCLR writes and deletes files only in the run folder itself;"
            " replace the link by a folder."
        )
    path.mkdir(exist_ok=True)


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
        WriteError: the disk is full, or the folder is missing or not writable.
    """
    draft = draft_path(path)
    written = 0
    drafts.add(draft)
    try:
        draft.unlink(missing_ok=True)  # of a dead process with the same number, or a link
        with draft.open("xb") as file:  # "x" fails at a link instead of following it
            yield file
            written = file.tell()
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException as error:
        with suppress(OSError):
            written = max(written, draft.stat().st_size)
            draft.unlink()
        if isinstance(error, OSError) and not isinstance(error, FileExistsError | WriteError):
            raise WriteError(path, error, written) from error
        raise
    finally:
        drafts.discard(draft)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's content: readers see the old bytes or the new ones, never a part.

    Args:
        path: the file to write. Its folder must exist; a symbolic link is replaced, not followed.
        data: the new content.

    Raises:
        WriteError: the disk is full, or the folder is missing or not writable.
    """
    try:
        with writing_atomically(path) as file:
            file.write(data)
    except WriteError as error:
        raise WriteError(path, error, len(data)) from error.__cause__


def draft_path(path: Path) -> Path:
    """Return the name under which this thread writes a file before it takes the name `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in a folder that is itself a draft, and wait until it is on the disk."""
    with path.open("xb") as file:
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


def sealed(value: object) -> dict[str, Any]:
    """Return a JSON object with one more key, `sha256`, the digest of all others.

    Args:
        value: a mapping or a dataclass, as `schema.to_json` takes it.
    """
    content = dict(to_json(value))
    content.pop(SEAL, None)
    return {**content, SEAL: _seal(content)}


def unsealed(content: object, *, required: bool = True) -> dict[str, Any]:
    """Return what was given to `sealed`, after a check of its digest.

    Args:
        content: parsed JSON.
        required: whether it must have a digest, which files of older versions lack.

    Raises:
        ValueError: it is no object, has no digest, or does not match it.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    rest = dict(content)
    expected = rest.pop(SEAL, None)
    if (required or expected is not None) and expected != _seal(rest):
        raise ValueError("it does not match its sha256")
    return rest


def _seal(content: dict[str, Any]) -> str:
    return digest_of_bytes(json.dumps(content, sort_keys=True).encode())


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
