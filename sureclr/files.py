"""The one way in which SureCLR writes files: complete or not at all, and never through a link.

A draft with a random name is written beside the target, synced to the disk, and takes the target's
name; then the folder is synced. While a process lives, it holds a lock on its drafts, so that those
of dead processes can be told apart and removed.

Also what goes with it: the lock of a folder, reading that no pipe can hold up, JSON that every
reader accepts, and checksums.
"""

import errno
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sureclr.errors import UserError
from sureclr.schema import to_json
from sureclr.stopping import drafts, signals_held

if TYPE_CHECKING:
    from pyarrow import Array, Field, RecordBatch, Schema, Table
    from pyarrow.parquet import ParquetFile
    from torch import Tensor

HASHED_BYTES = 1 << 24  # copied at a time where a tensor is not on the CPU or not contiguous
# What is read of a file that may come from a stranger. In bytes: JSON of ours, and lists of files
# or labels; of these also rows and cells
LARGEST_JSON = 1 << 24
LARGEST_TEXT = 1 << 26
LARGEST_HEADER = 1 << 22  # of safetensors: about 40,000 tensors
LARGEST_VALUE = 300_000_000  # that parsed JSON may take in memory
MOST_ROWS = 2_000_000
MOST_CELLS = 10_000_000
MOST_COLUMNS = 10_000
# A Parquet file may claim any number of rows in a few bytes: bytes of its rows that are always
# read, and for each byte of the file beyond them
TABLE_ROOM = 1 << 27
TABLE_RATIO = 16
ROWS_AT_ONCE = 1 << 14  # of a table that are read before their bytes are counted
GROUPS_AT_ONCE = 16  # of rows, which one reader reads
READ_BYTES = 1 << 20  # of a column of a table that are read at a time
WINDOWS = os.name == "nt"
FORMULA = re.compile(r"'*\s*[=+\-@]")  # how a cell begins that a spreadsheet would compute
SEAL = "sha256"  # key of the digest of a JSON object
OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OF_DRIVES = (  # a file may be whole although it cannot be read
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.EACCES, errno.EPERM, errno.ETIMEDOUT),
    *(errno.EHOSTDOWN, errno.ENETDOWN, errno.ENODEV, errno.ENXIO),
)
DRAFT_START = ".sureclr-draft-"  # 16 random hexadecimal digits follow
NEW_DRAFT = re.compile(re.escape(DRAFT_START) + "[0-9a-f]{16}")
DRAFT = re.compile(NEW_DRAFT.pattern + r"|\.(draft-\d+|.+\.\d+-\d+)")  # and of older versions
DRAFT_AGE = 86_400  # seconds after which a draft is dead, on a drive that has no locks
BLOCK = 4096  # bytes; disks give room to files in blocks of about so many
LONGEST_HOLDER = 1 << 12  # bytes of what a lock says of its holder
LONGEST_WORDS = 200  # characters of a command in it
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EBADF)


class WriteError(UserError, OSError):
    """A file could not be written; the sentence names it, the bytes needed and the bytes free.

    It is an `OSError` too, with the number and the text of the system's own error.

    Attributes:
        reason: why, in words, with the bytes needed and free where the disk is full.
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
            if free is not None and free >= needed:
                space += ", so that a quota or the number of files is used up"
            reason += f": at least {needed:,} bytes are needed{space}"
        self.reason, self.failure = reason, f"{path} could not be written ({reason})"

    def __str__(self) -> str:
        """Return the sentence."""
        if self.errno in OF_SPACE:
            return f"{self.failure}; free some space there, and run the same command again."
        return f"{self.failure}; make its folder writable, or choose another place."


def why(error: OSError) -> str:
    """Return the reason of an error in words, for a sentence that names the file itself."""
    return error.reason if isinstance(error, WriteError) else error.strerror or str(error)


def refuse_if_lost(error: OSError, path: Path) -> None:
    """Raise a `UserError` if an error says that a drive cannot be read, and not that a file is bad.

    Where a missing or damaged file has a substitute, an unreadable one must not be taken for it.
    """
    if error.errno in OF_DRIVES:
        raise UserError(
            f"{path} cannot be read ({why(error)}); bring its drive back or let this user read it,"
            " or move it away to go on without it."
        ) from error


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of the disk that a folder is on; None if the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def unwritable(folder: Path) -> str:
    """Return why no file can be made in a folder (or in the first above it that exists), or "".

    Only the lack of permission and a read-only disk count; a full disk is found when writing. The
    system is asked, and nothing is written.
    """
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir() or os.access(folder, os.W_OK | os.X_OK):
        return ""
    with suppress(OSError, AttributeError):  # Windows has no statvfs
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return os.strerror(errno.EROFS)
    return os.strerror(errno.EACCES)


@contextmanager
def open_file(path: Path, largest: int | None = None) -> Iterator[BufferedReader]:
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
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a read that failed names no file
            error.filename = str(path)
        raise
    finally:
        os.close(handle)


def read_file(path: Path, largest: int | None = None) -> bytes:
    """Return the content of a regular file; see `open_file`."""
    with open_file(path, largest) as file:
        return file.read()


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """Return the value in a JSON file; see `open_file` and `parsed_json`."""
    return parsed_json(read_file(path, largest))


def parsed_json(text: str | bytes, largest: int = LARGEST_VALUE) -> Any:
    """Return the value that JSON describes; see `check_json_size`.

    Raises:
        ValueError: it is no JSON, it is too large, its lists and objects lie too deep in each
            other, or a key comes twice in an object, of whose values one would be lost.
    """
    if isinstance(text, bytes):
        text = text.decode(json.detect_encoding(text))
    check_json_size(text, largest)
    try:
        return json.loads(text, object_pairs_hook=_with_single_keys)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None


def _with_single_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r:.80} comes twice")
    return values


def check_json_size(text: str, largest: int = LARGEST_VALUE) -> None:
    """Raise a ValueError if the value of JSON would take more than so many bytes of memory.

    It is estimated before anything is parsed: 16 MiB of empty lists would take 450 MB.
    """
    needed = 200 * text.count("{") + 72 * text.count("[") + 60 * (text.count(",") + text.count(":"))
    if needed > largest:
        raise ValueError(f"it would take more than {largest:,} bytes of memory")


def read_safetensors(path: Path) -> bytes:
    """Return the content of a safetensors file, after a look at the size that its header says.

    Raises:
        OSError: it cannot be read or is no regular file.
        ValueError: it has another size than its header says.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, LARGEST_HEADER):
            raise ValueError("its header is longer than headers are")
        try:
            header = dict(parsed_json(file.read(length)))
            ends = [t["data_offsets"][1] for name, t in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (TypeError, LookupError) as error:
            raise ValueError("its header has another form") from error
        if size != expected:
            raise ValueError(f"it has {size:,} bytes, and its header says {expected:,}")
        file.seek(0)
        return file.read()


def read_parquet(path: Path, wanted: "Callable[[Field], bool] | None" = None) -> "Table":
    """Return a whole table; a page whose checksum is wrong is refused.

    Args:
        path: of the file.
        wanted: whether a column is read; None: all are.

    Raises:
        OSError: as `read_parquet_batches`.
        pyarrow.ArrowException: it is no Parquet file.
    """
    from pyarrow import Table

    with open_file(path) as file:
        schema, _, found = read_parquet_batches(file, ROWS_AT_ONCE, wanted)
        batches = list(found)
        return Table.from_batches(batches, None if batches else schema).cast(schema)


def read_parquet_batches(
    file: IO[bytes], rows: int, wanted: "Callable[[Field], bool] | None" = None
) -> "tuple[Schema, int, Iterator[RecordBatch]]":
    """Read a table some rows at a time; a page whose checksum is wrong is refused.

    One thread reads: where several read a damaged file, pyarrow 26 ends the process at its exit
    (SIGABRT, in one of three tries).

    Args:
        file: an open Parquet file.
        rows: at most so many are read at a time.
        wanted: whether a column is read; None: all are.

    Returns:
        The schema; the number of rows that the footer claims; and an iterator over the rows, in
        which words are in dictionaries.

    Raises:
        OSError: the file cannot be read, is damaged, or its rows take far more memory than a file
            of this size needs (also while it is iterated over).
        pyarrow.ArrowException: it is no Parquet file.
    """
    size = os.fstat(file.fileno()).st_size
    schema = open_parquet(file, size).schema_arrow
    names = [column.name for column in schema if wanted is None or wanted(column)]
    if wanted is not None:
        schema = schema.empty_table().select(names).schema
    # Words stay in dictionaries until it is known what they take: a file may repeat one megabyte a
    # million times
    lazy = open_parquet(file, size, _words(schema), READ_BYTES)

    def batches() -> "Iterator[RecordBatch]":
        left, groups = table_bytes(size), range(lazy.num_row_groups)
        for first in groups[::GROUPS_AT_ONCE]:  # a reader keeps all words that it has seen
            some = groups[first : first + GROUPS_AT_ONCE]
            for batch in lazy.iter_batches(rows, some, names, use_threads=False):
                left -= sum(map(_plain_bytes, batch.columns))
                if left < 0:
                    raise too_large(size)
                yield batch

    return schema, lazy.metadata.num_rows, batches()


def open_parquet(
    file: Any, size: int, dictionaries: "Sequence[str]" = (), buffer: int = 0
) -> "ParquetFile":
    """Open a Parquet file, after a look at what its footer claims.

    Args:
        file: an open file.
        size: its number of bytes.
        dictionaries: columns whose values stay in dictionaries.
        buffer: bytes of a column that are read at a time; 0: the whole column of a row group.

    Raises:
        OSError: the footer or the pages are much larger than a file of this size needs.
        pyarrow.ArrowException: it is no Parquet file.
    """
    from pyarrow import parquet

    file.seek(max(0, size - 8))
    footer = int.from_bytes(file.read(4), "little")
    file.seek(0)
    if footer > LARGEST_JSON:
        reason = f"its footer has {footer:,} bytes, and more than {LARGEST_JSON:,} are not read"
        raise OSError(errno.EFBIG, reason)
    opened = parquet.ParquetFile(
        file,
        page_checksum_verification=True,
        pre_buffer=False,
        buffer_size=buffer,
        read_dictionary=list(dictionaries) or None,
    )
    about = opened.metadata
    if about.num_columns > MOST_COLUMNS:
        reason = (
            f"it has {about.num_columns:,} columns, and more than {MOST_COLUMNS:,} are not read"
        )
        raise OSError(errno.EFBIG, reason)
    groups = (about.row_group(i) for i in range(about.num_row_groups))
    if sum(group.total_byte_size for group in groups) > table_bytes(size):
        raise too_large(size)
    return opened


def table_bytes(size: int) -> int:
    """Return how many bytes the rows of a table may take whose file has this size."""
    return TABLE_ROOM + TABLE_RATIO * size


def too_large(size: int) -> OSError:
    """Return the error for a table whose rows take more than `table_bytes`."""
    reason = f"its rows take more than {table_bytes(size):,} bytes, and the file has {size:,}"
    return OSError(errno.EFBIG, reason)


def _words(schema: "Schema") -> list[str]:
    """The columns of words."""
    from pyarrow import types

    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return [column.name for column in schema if any(test(column.type) for test in tests)]


def _plain_bytes(column: "Array") -> int:
    """The bytes that a column takes without its dictionary."""
    from pyarrow import compute, types

    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = compute.binary_length(column.dictionary).cast("int64")
    return int(compute.sum(lengths.take(column.indices)).as_py() or 0) + 8 * len(column)


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
    it points to does not change. At the end, file and folder are on the disk.

    Args:
        path: the file to write. Its folder must exist.

    Yields:
        The open draft, in binary mode, for writing and reading.

    Raises:
        WriteError: the disk is full, or the folder is missing or not writable.
    """
    written = 0
    if not path.is_symlink() and (path.is_char_device() or path.is_block_device()):
        raise WriteError(path, OSError(errno.EINVAL, "it is a device"), 0)  # such as /dev/null
    with _draft(path, folder=False) as (draft, handle, held):
        try:
            with os.fdopen(handle, "w+b", closefd=False) as file:
                yield file
                written = file.tell()
                file.flush()
            os.fsync(handle)
            if WINDOWS:  # has no locks, and renames no open file
                held.close()
            draft.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            ours = (None, str(draft), str(path), str(path.parent))
            if isinstance(error, WriteError) or error.filename not in ours:
                raise  # of another file, which the block has read
            if error.errno in OF_SPACE:  # there was no room for one more block
                written = max(written, os.fstat(handle).st_size + BLOCK)
            with suppress(OSError):
                remove(draft)  # before the free bytes are counted
            raise WriteError(path, error, written) from error


@contextmanager
def writing_folder_atomically(path: Path) -> Iterator[Path]:
    """Make a folder that takes the name `path` at the end of the block, as `writing_atomically`.

    A folder that has the name already is moved to `replaced_path(path)` and then deleted; after a
    kill between the two, `restore_replaced` gives it its name back.

    Args:
        path: the folder to write. The one around it must exist.

    Yields:
        The draft of the folder; write into it with `write_synced`.

    Raises:
        OSError: the disk is full, or the folder around it is missing or not writable.
    """
    with _draft(path, folder=True) as (draft, *_):
        yield draft
        sync_folder(draft)
        replaced = replaced_path(path)
        with signals_held():
            if os.path.lexists(path):
                remove(replaced)
                path.rename(replaced)
            try:
                draft.rename(path)
            except OSError:
                restore_replaced(path.parent)
                raise
            remove(replaced)
        sync_folder(path.parent)


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


def write_synced(path: Path, *blocks: bytes) -> None:
    """Write a file in a folder that is itself a draft, and wait until it is on the disk."""
    with path.open("xb") as file:
        for block in blocks:
            file.write(block)
        file.flush()
        os.fsync(file.fileno())


def try_to_write(folder: Path, count: int) -> None:
    """Write a folder with a file of so many bytes, and delete it, to see that there is room for it.

    It tells before hours of work what a checkpoint would meet: a full disk, a quota, a drive that
    is read-only or lost, or one on which a folder cannot be renamed.

    Raises:
        WriteError: it cannot be written.
    """
    trial, block = folder / _draft_name(), os.urandom(min(count, 1 << 20))
    whole, rest = divmod(count, max(len(block), 1))
    try:
        with writing_folder_atomically(trial) as draft:
            write_synced(draft / "trial", *[block] * whole, block[:rest])
    except OSError as error:
        raise WriteError(folder, error, count) from error
    finally:
        with suppress(OSError):
            remove(trial)


def replaced_path(path: Path) -> Path:
    """Return the name that a folder has while another one takes its place."""
    return path.with_name(f".replaced-{path.name}")


def restore_replaced(folder: Path) -> None:
    """Give folders their names back that were moved aside to be replaced, and were not."""
    for path in folder.glob(".replaced-*"):
        final = folder / path.name.removeprefix(".replaced-")
        remove(path) if os.path.lexists(final) else path.rename(final)


def _draft_name() -> str:
    return DRAFT_START + secrets.token_hex(8)


@contextmanager
def _draft(path: Path, *, folder: bool) -> Iterator[tuple[Path, int, ExitStack]]:
    """Make a draft of a file or a folder beside it, and delete what is left of it at the end.

    Nothing that lies there already can take its place, because its name is random and new. The
    process holds a lock on it as long as it lives. The first draft in a folder removes those that
    dead processes left there.

    Yields:
        The draft; its handle, which of a file is open for writing; and what closes the handle.

    Raises:
        WriteError: it cannot be made.
    """
    draft = None
    with ExitStack() as held:
        try:
            with signals_held():
                try:
                    _tidy_once(path.parent)
                    draft, handle = _new_draft(path.parent, folder)
                except OSError as error:
                    raise WriteError(path, error, 0) from error
                drafts.add(draft)
                held.callback(os.close, handle)
            yield draft, handle, held
        finally:
            if draft is not None:
                with suppress(OSError):
                    remove(draft)
                drafts.discard(draft)


def _new_draft(parent: Path, folder: bool) -> tuple[Path, int]:
    while True:
        draft = parent / _draft_name()
        with suppress(FileExistsError):
            handle = _open_draft(draft, folder)
            # Between the two calls, another process may have taken it for one of a dead process
            if _flock(handle) is not False and os.fstat(handle).st_nlink > 0:
                return draft, handle
            os.close(handle)


def _open_draft(draft: Path, folder: bool) -> int:
    if folder:
        draft.mkdir()
        return os.open(os.devnull if WINDOWS else draft, os.O_RDONLY)
    # O_EXCL fails at a link instead of following it
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(draft, flags, 0o666)


def _flock(handle: int) -> bool | None:
    """Lock an open file; False: another process has locked it; None: the drive has no locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in NO_LOCKS else False
    return True


_tidied: set[tuple[int, Path]] = set()  # folders, each with the process that tidied it


def _tidy_once(folder: Path) -> None:
    """Remove the drafts of dead processes from a folder, once in the life of this process."""
    key = (os.getpid(), folder.absolute())
    if key not in _tidied:
        _tidied.add(key)
        remove_dead_drafts(folder)


def remove_dead_drafts(folder: Path, *, alone: bool = False) -> None:
    """Remove the drafts of processes that died while they wrote, never those of a living one.

    Args:
        folder: in which they lie; it need not exist.
        alone: whether the caller holds a lock that all who write here take. Then drafts of older
            versions are removed too, which have no lock of their own.
    """
    pattern = DRAFT if alone else NEW_DRAFT
    with suppress(OSError):  # what cannot be removed now does no harm
        with os.scandir(folder) as entries:
            found = [folder / entry.name for entry in entries if pattern.fullmatch(entry.name)]
        for draft in found:
            with suppress(OSError):
                _remove_dead(draft, alone)


def _remove_dead(draft: Path, alone: bool) -> None:
    status = draft.lstat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        if alone:  # a link or a pipe, which no process of ours has made
            remove(draft)
        return
    access = os.O_RDONLY if stat.S_ISDIR(status.st_mode) else os.O_RDWR
    handle = os.open(draft, access | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    try:
        locked = _flock(handle)
        old = alone or time.time() - status.st_mtime > DRAFT_AGE
        if locked or (locked is None and old):
            remove(draft)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until a rename in this folder is on the disk, where the system can do that."""
    if WINDOWS:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_LOCKS:  # some network drives sync no folders
            raise
    finally:
        os.close(handle)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Keep other writers out of a folder inside the block.

    The system releases the lock when the process ends, however it ends. On a drive that has no
    locks, a line on stderr says so.

    Args:
        folder: in which the file `lock` is made; it says who holds the lock.

    Raises:
        UserError: another process holds the lock, which the sentence describes; or the folder
            cannot be written.
    """
    with ExitStack() as stack:
        file = stack.enter_context(os.fdopen(_open_lock(folder), "r+b"))
        locked = _flock(file.fileno())
        if locked is False:
            holder = _holder(file.read(LONGEST_HOLDER))
            raise UserError(
                f"another process is writing to {folder}{holder}; wait for it, or give another"
                " out=."
            )
        if locked is None and not WINDOWS:
            print(
                f"the drive of {folder} has no locks: let only one process write there",
                file=sys.stderr,
            )
        ours = os.fstat(file.fileno()).st_nlink == 1  # else the content is another file's too
        if ours:
            _hold(file.fileno())
        try:
            yield
        finally:
            if ours:
                with suppress(OSError):
                    os.ftruncate(file.fileno(), 0)


def _open_lock(folder: Path) -> int:
    """Open the file that is locked, without following a link or waiting for a pipe."""
    path = folder / "lock"
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise UserError(
                f"{path} is a link, and writing through it could change a file outside the run;"
                " delete the link."
            ) from error
        raise UserError(
            f"the folder {folder} cannot be written ({error.strerror}); give another out=."
        ) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f"{path} is a pipe or a device and not a file; delete it.")
    return handle


def _hold(handle: int) -> None:
    """Write into the lock who holds it."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "doing": _doing()}
    with suppress(OSError):  # it only helps others: a full disk is no reason to stop
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(holder).encode(), 0)


def _doing() -> str:
    """Return the words of the command that runs here, or that it is a Python session."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.stem == "sureclr" or program.parts[-3:] == ("sureclr", "cli", "__main__.py"):
        return shlex.join(["sureclr", *sys.argv[1:]])[:LONGEST_WORDS]
    return "a Python session"


def _holder(data: bytes) -> str:
    """Who holds a lock, in words, or "" where the lock does not say."""
    try:
        holder = json.loads(data)
        pid, host, since = int(holder["pid"]), str(holder["host"]), str(holder["since"])
        doing = str(holder.get("doing", ""))
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    words = f", doing {doing[:LONGEST_WORDS]!r}" if doing else ""
    return f" (process {pid} on {host!r:.40}, since {since:.25}{words})"


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all its content. A missing one is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def as_cell(value: Any) -> Any:
    """Return what a CSV file has for a value: words that a program would compute get a `'`.

    A spreadsheet takes a cell that begins with =, +, - or @ for a formula, which a file's name
    would bring in. Numbers stay as they are, and `from_cell` takes the `'` away again.

    >>> as_cell("=1+1.png"), as_cell("-1"), as_cell(-0.5), as_cell("cat")
    ("'=1+1.png", '-1', -0.5, 'cat')
    """
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def from_cell(text: str) -> str:
    """Return the words of a cell that `as_cell` made, and other words as they are."""
    return text[1:] if text[:1] == "'" and FORMULA.match(text) else text


def json_bytes(value: object) -> bytes:
    """Return the value as indented ASCII JSON that any reader accepts; see `schema.to_json`."""
    return json.dumps(to_json(value), indent=1, allow_nan=False).encode()


def sealed(value: object, name: str = "") -> dict[str, Any]:
    """Return a JSON object with one more key, `sha256`, the digest of all others.

    Args:
        value: a mapping or a dataclass, as `schema.to_json` takes it.
        name: under which the object is kept, which the digest covers too.
    """
    content = dict(to_json(value))
    content.pop(SEAL, None)
    return {**content, SEAL: _seal(content, name)}


def unsealed(content: object, name: str = "", *, required: bool = True) -> dict[str, Any]:
    """Return what was given to `sealed`, after a check of its digest.

    Args:
        content: parsed JSON.
        name: under which the object was found.
        required: whether it must have a digest, which files of older versions lack.

    Raises:
        ValueError: it is no object, has no digest, or does not match it.
    """
    if not isinstance(content, dict):
        raise ValueError("it is no object")
    rest = dict(content)
    expected = rest.pop(SEAL, None)
    if (required or expected is not None) and expected != _seal(rest, name):
        raise ValueError("it does not match its sha256")
    return rest


def _seal(content: dict[str, Any], name: str) -> str:
    named = [name, content] if name else content
    return digest_of_bytes(json.dumps(named, sort_keys=True).encode())


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
