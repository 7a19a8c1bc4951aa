"""What a run is asked to classify: images, in parts that fit into memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sureclr.data.decoding import ENDINGS, Decoding, FileRef
from sureclr.data.embeddings import Embeddings
from sureclr.data.image_set import ImageSet
from sureclr.data.parallel_decoding import decode_files
from sureclr.data.sources import is_source
from sureclr.errors import UserError
from sureclr.evaluation.run_images import read_run_images
from sureclr.evaluation.session import Session
from sureclr.progress import Progress

IMAGES_AT_ONCE = 4096  # embedded and answered together
FILES_AT_ONCE = 1024  # of a list of files, decoded together

Part = tuple[ImageSet, Embeddings | None]  # some images, with their embeddings where they exist


@dataclass
class ClassifiedSource:
    """The images that are to be classified, in parts that fit into memory.

    Attributes:
        total: number of images, or of files.
        errors: path -> why it could not be read; filled while the parts are read.
        notes: what a reader should know of how they were read.
    """

    session: Session
    images: Any
    root: Path | None
    total: int
    errors: dict[str, str]
    notes: list[str]
    whole: ImageSet | None

    @staticmethod
    def of(session: Session, images: Any, root: Path | None) -> "ClassifiedSource":
        """Return what is to be classified, of a session and the arguments of `predict`.

        Raises:
            UserError: the images cannot be used.
        """
        files = _file_list(images)
        if files is not None:
            return ClassifiedSource(session, files, root, len(files), {}, [], None)
        if images is None:
            whole = session.catalogue
        else:
            run, progress = session.run, session.progress
            whole = read_run_images(run, images, root, progress, to_classify=True)
        errors: dict[str, str] = {}
        if whole.report is not None:
            copies = whole.report.duplicates.named.items()
            errors = {copy: f"left out as an exact copy of {original}" for copy, original in copies}
            errors |= whole.report.shown_refusals
        return ClassifiedSource(session, images, root, len(whole), errors, [whole.note], whole)

    def parts(self) -> Iterator[Part]:
        """Yield the images.

        Raises:
            UserError: none of the files can be read.
        """
        if self.whole is None:
            yield from self._parts_of_files()
            return
        table = self.session.inputs.table if self.images is None else None
        for start in range(0, len(self.whole), IMAGES_AT_ONCE):
            rows = torch.arange(start, min(start + IMAGES_AT_ONCE, len(self.whole))).numpy()
            yield self.whole.select(rows), None if table is None else table.select(rows)

    def _parts_of_files(self) -> Iterator[Part]:
        run, progress = self.session.run, _WithoutMessages(self.session.progress)
        for start in range(0, len(self.images), FILES_AT_ONCE):
            files = self.images[start : start + FILES_AT_ONCE]
            try:
                part = read_run_images(run, files, self.root, progress)
            except UserError:
                refs = [FileRef(file) for file in files]
                results = decode_files(refs, Decoding(run.size, run.channels), progress)
                verdicts = {
                    file: result
                    for file, result in zip(files, results, strict=True)
                    if isinstance(result, str)
                }
                if not verdicts:
                    raise  # the reason is another one
                self.errors.update(verdicts)
                good = [file for file in files if file not in verdicts]
                if not good:
                    continue
                part = read_run_images(run, good, self.root, progress)
            yield part, None
        if len(self.errors) == len(set(self.images)):
            name, reason = next(iter(self.errors.items()))
            raise UserError(
                f"none of the {len(self.images)} files can be read as an image: {name} ({reason});"
                " give image files, a folder or a data source."
            )


class _WithoutMessages:
    """Passes reports on to another progress, but no sentences: a list of files is many sources."""

    def __init__(self, progress: Progress) -> None:
        self.begin, self.update, self.finish = progress.begin, progress.update, progress.finish

    def message(self, text: str) -> None:
        """Do nothing."""


def _file_list(images: Any) -> list[str] | None:
    """Return the files if `images` is one image file or a list of files; else None."""
    one = isinstance(images, str | os.PathLike)
    many = [images] if one else images
    if not isinstance(many, list | tuple) or not many:
        return None
    if not all(isinstance(entry, str | os.PathLike) for entry in many):
        return None
    files = [os.fspath(entry) for entry in many]
    if any(os.path.isdir(file) or is_source(str(file)) for file in files):
        return None
    is_image = Path(files[0]).suffix.lower() in ENDINGS and os.path.isfile(files[0])
    return None if one and not is_image else files
