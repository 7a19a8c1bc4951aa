"""Label files as people have them: which image has which label, one row an image.

    CSV, tabs, `;`, `|`   UTF-8, UTF-16, UTF-32, else Windows-1252; any header, or none
    JSON                  an object a line, a list of objects, or one object {image: label}
    Parquet               one row an image

The columns are found by their usual names, else by their content: the column whose entries are
images of the set names the images. `label_matching` then finds the images and the classes.
"""

import codecs
import csv
import io
import math
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from sureclr.data.decoding import ENDINGS
from sureclr.data.image_report import counted, inert
from sureclr.data.label_request import FORMS, LabelFile
from sureclr.errors import UserError, listed, unknown
from sureclr.files import (
    LARGEST_TEXT,
    MOST_CELLS,
    MOST_COLUMNS,
    MOST_ROWS,
    check_json_size,
    parsed_json,
    read_file,
    read_parquet,
)

# The usual names of the two columns, small letters and digits alone; an earlier one is preferred
IMAGE_NAMES = (
    *("path", "paths", "filepath", "filepaths", "imagepath", "imgpath", "relativepath", "relpath"),
    *("filename", "filenames", "fname", "imagefilename", "imagefile", "imgfile", "imagename"),
    *("imgname", "file", "files", "image", "images", "img", "picture", "photo", "uri", "url"),
    *("imageid", "imgid", "fileid", "isicid", "fullpath", "absolutepath", "name", "key", "id"),
)
LABEL_NAMES = (
    *("label", "labels", "classname", "labelname", "categoryname", "class", "classes", "category"),
    *("categories", "target", "targets", "species", "groundtruth", "truth", "gt", "annotation"),
    *("tag", "tags", "diagnosis", "dx", "breed", "y", "classid", "labelid", "categoryid", "type"),
)
INDEX_NAMES = ("", "index", "unnamed0", "indexlevel0")  # a column of row numbers
BYTE_ORDER_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
FALLBACKS = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}
# Cells that programs write where nothing is known; "none" and "na" are left, as they may be classes
MISSING = ("nan", "#n/a", "n/a", "<na>", "null", "#null!", "#value!", "#ref!")
SAMPLE = 500  # rows by which the column of the images is recognised

Known = Callable[[str], bool]  # whether a text names an image of the set


@dataclass(frozen=True, slots=True)
class LabelRow:
    """A row of a label file.

    Attributes:
        line: of the file, from 1, for messages.
        image: the text that names the image.
        votes: weight of each label; one label has weight 1, and none means that it is not labelled.
    """

    line: int
    image: str
    votes: dict[str, float]


@dataclass(frozen=True)
class LabelRows:
    """What a label file says, before its images and classes are found.

    Attributes:
        rows: in the order of the file.
        encoding: Python's name of the encoding that the text was read in.
        notes: sentences about how the file was understood, where that is not plain.
    """

    rows: list[LabelRow]
    encoding: str
    notes: list[str]


@dataclass
class _Grid:
    """The cells of a file.

    Attributes:
        names: of the columns, where the format has them.
        rows: number of the line, and the cells.
        guessed: whether this way to split the lines makes sense only if images are then named.
        again: yields all rows where `rows` are only the first; else None.
    """

    names: list[str] | None
    rows: list[tuple[int, list[Any]]]
    guessed: bool = False
    again: Callable[[], Iterator[tuple[int, list[Any]]]] | None = None


@dataclass
class _Layout:
    """Which cells mean what.

    Attributes:
        image: the column that names the images.
        labels: the column of the labels, or one column for each class.
        names: of all columns; empty where the file has no header.
        start: rows above the first image: 1 for a header inside the grid.
        width: number of columns.
        certain: 2 if both columns have usual names or were asked for, 1 if one has.
        matched: rows of a sample that name an image.
        notes: sentences for the user.
    """

    image: int
    labels: list[int]
    names: list[str]
    start: int
    width: int
    certain: int
    matched: int
    notes: list[str] = field(default_factory=list)


def read_label_rows(file: LabelFile, known: Known, classes: Sequence[str] = ()) -> LabelRows:
    """Read a label file.

    Args:
        file: its path, and the columns where the user chose them.
        known: whether a text names an image of the set; it settles which column names images.
        classes: of the image set. Columns with these names may hold counts or probabilities.

    Raises:
        UserError: the file cannot be read, or it is not clear which column is which.
    """
    data = _bytes(file.path)
    if data[:4] == b"PAR1":
        return _table_rows(file, _parquet_grid(file), known, classes, "utf-8")
    text, encoding = _decoded(data, file.path)
    if not text.strip():
        raise UserError(f"{file.path} is empty; {FORMS}.")
    if file.path.suffix.lower() in (".json", ".jsonl", ".ndjson") or text.lstrip()[:1] in "[{":
        grid = _json_grid(text, file.path)
    else:
        grid = _best_grid(text, file, known, classes)
    return _table_rows(file, grid, known, classes, encoding)


# --- Bytes and text -------------------------------------------------------------------


def _bytes(path: Path) -> bytes:
    try:
        data = read_file(path, LARGEST_TEXT)
    except FileNotFoundError as error:
        raise UserError(f"there is no file of labels {inert(path)}; {FORMS}.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"the labels {inert(path)} cannot be read ({reason}); {FORMS}.") from error
    if data[:4] == b"PK\x03\x04" or data[:4] == b"\xd0\xcf\x11\xe0":
        raise UserError(
            f"{inert(path)} is a workbook or an archive and not a text file; open it in the program"
            " that made it, and save the table as CSV."
        )
    return data


def _decoded(data: bytes, path: Path) -> tuple[str, str]:
    """The text, and the encoding it was read in: by its mark, else UTF-8, else Windows-1252."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{inert(path)} begins as {encoding.removesuffix('-sig').upper()} text does and"
                    " is damaged further on; save it again."
                ) from error
    encodings = ["utf-8", *FALLBACKS]
    even, odd = data[:1000:2].count(0), data[1:1000:2].count(0)
    if max(even, odd) > len(data[:1000]) / 8:  # UTF-16 without a mark: plain letters have a 0
        encodings = ["utf-16-be" if even > odd else "utf-16-le"]
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text, encoding
    raise UserError(f"{inert(path)} is not a text file (it has null bytes); {FORMS}.")


# --- Formats --------------------------------------------------------------------------


def _best_grid(text: str, file: LabelFile, known: Known, classes: Sequence[str]) -> _Grid:
    """The cells, split where that makes most sense of them.

    A delimiter makes sense where the header then has usual names, or where a column then names
    images of the set; the first of equals is taken.
    """
    reasons: list[tuple[int, UserError]] = []
    best: tuple[tuple[int, int, int], _Grid] | None = None
    for number, grid in enumerate(_split_in_all_ways(text, file.path, reasons)):
        try:
            layout = _layout(grid, file, known, classes)
        except UserError as error:
            reasons.append((max(len(cells) for _, cells in grid.rows), error))
            continue
        if grid.guessed and not layout.matched:
            continue
        score = (layout.certain, layout.matched, -number)
        if best is None or score > best[0]:
            best = score, grid
    if best is None:
        raise max(reasons, key=lambda reason: reason[0])[1]
    return best[1] if best[1].again is None else _Grid(None, list(best[1].again()))


def _split_in_all_ways(
    text: str, path: Path, reasons: list[tuple[int, UserError]]
) -> Iterator[_Grid]:
    """Yield the cells by each delimiter, read with quotes where that is possible."""
    first, _, rest = text.partition("\n")
    above, delimiters = 0, ",\t;|"
    if declared := re.fullmatch(r'"?sep=(.)"?\r?', first):  # Excel writes it
        text, above, delimiters = rest, 1, declared[1]
    lines = max(text.count("\n"), text.count("\r"))
    for delimiter in delimiters:
        _check_amount(path, lines, lines + text.count(delimiter))
        for quoted in (True, False):
            again = partial(_csv_rows, text, delimiter, above, quoted=quoted)
            try:
                rows = _first_rows(again())
            except (csv.Error, ValueError) as error:  # ValueError: sep= names a strange delimiter
                if quoted:
                    words = f"{inert(path)} is not CSV ({error}); {FORMS}."
                    reasons.append((0, UserError(words)))
                continue
            if rows or not quoted:
                yield _Grid(None, rows, not quoted, again)
                break
    # `path label`, as lists of images are
    if all(len(line.rsplit(maxsplit=1)) in (0, 2) for line in text.splitlines()):
        again = partial(_pairs, text, above)
        yield _Grid(None, _first_rows(again()), True, again)


def _check_amount(path: Path, rows: int, cells: int) -> None:
    """Raise a `UserError` for a file of more rows and cells than fit into memory."""
    if rows > MOST_ROWS or cells > MOST_CELLS:
        raise UserError(
            f"{inert(path)} has about {rows:,} rows and {cells:,} cells, and at most {MOST_ROWS:,}"
            f" rows and {MOST_CELLS:,} cells are read; write the images and their labels alone"
            " into another file."
        )


def _first_rows(rows: Iterator[tuple[int, list[Any]]]) -> list[tuple[int, list[Any]]]:
    """The rows by which the columns are recognised; the others are read, and not kept."""
    first = list(islice(rows, SAMPLE + 1))
    deque(rows, maxlen=0)
    return first


def _pairs(text: str, above: int) -> Iterator[tuple[int, list[Any]]]:
    """Yield line and cells where a row is a path, a blank and a label."""
    for line, words in enumerate(text.splitlines(), above + 1):
        if words.strip():
            yield line, list(words.rsplit(maxsplit=1))


def _csv_rows(
    text: str, delimiter: str, above: int, *, quoted: bool
) -> Iterator[tuple[int, list[Any]]]:
    """Yield line and cells of every row that is not empty."""
    blank_before_quote = re.search(re.escape(delimiter) + r' +"', text) is not None
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quotechar='"' if quoted else None,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
        skipinitialspace=quoted and blank_before_quote,
        strict=True,
    )
    for cells in reader:
        if any(cell.strip() for cell in cells):
            yield reader.line_num + above, list(cells)


def _json_grid(text: str, path: Path) -> _Grid:
    """Objects as rows; their keys are the names of the columns."""
    _check_amount(path, text.count("\n"), 0)
    try:
        check_json_size(text)
    except ValueError as error:
        raise UserError(
            f"the labels {inert(path)} cannot be read ({error}); save them as CSV."
        ) from error
    try:
        content: Any = parsed_json(text)
        numbered = list(enumerate(content, 1)) if isinstance(content, list) else []
        if isinstance(content, dict):
            inside = [v for v in content.values() if isinstance(v, list)]
            if len(inside) == 1 and inside[0] and all(isinstance(v, dict) for v in inside[0]):
                numbered = list(enumerate(inside[0], 1))  # {"images": [{...}, ...]}
            elif content and all(isinstance(v, dict) for v in content.values()):
                numbered = list(enumerate(_records(content), 1))
            elif _is_record(content):
                numbered = [(1, content)]
            else:  # {"cat.jpg": "cat", ...}
                numbered = [(i, list(item)) for i, item in enumerate(content.items(), 1)]
                return _Grid(["path", "label"], numbered)
    except ValueError:  # not one value; then it should be one value a line
        numbered = []
        for line, words in enumerate(text.split("\n"), 1):
            try:
                if words.strip():
                    numbered.append((line, parsed_json(words)))
            except ValueError as error:
                raise UserError(
                    f"{inert(path)}, line {line}: not JSON ({error}); {FORMS}."
                ) from error
    if numbered and all(isinstance(value, list) for _, value in numbered):
        return _Grid(None, numbered)
    if not numbered or not all(isinstance(value, dict) for _, value in numbered):
        raise UserError(
            f"{inert(path)} must be a list of objects such as"
            ' {"path": "a.jpg", "label": "cat"}, or one object a line.'
        )
    names = list(dict.fromkeys(name for _, value in numbered for name in value))
    _check_amount(path, len(numbered), len(numbered) * len(names))
    return _Grid(names, [(line, [value.get(n) for n in names]) for line, value in numbered])


def _records(content: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Objects of an object, by column as pandas writes them, else by image or number, as rows.

    An object {image: {class: weight}} becomes rows of an image and its weights.
    """
    if _is_record(content):  # {"path": {"0": "cat.jpg"}, "label": {"0": "cat"}}
        keys = dict.fromkeys(key for column in content.values() for key in column)
        return [{n: column.get(key) for n, column in content.items()} for key in keys]
    names = {_plain(name) for row in content.values() for name in row}
    if names & set(IMAGE_NAMES):  # {"0": {"path": "cat.jpg", "label": "cat"}}
        return list(content.values())
    if names & set(LABEL_NAMES):  # {"cat.jpg": {"label": "cat"}}
        return [{"path": key, **row} for key, row in content.items()]
    return [{"path": key, "label": row} for key, row in content.items()]


def _is_record(content: dict[str, Any]) -> bool:
    names = {_plain(name) for name in content}
    return bool(names & set(IMAGE_NAMES) and names & set(LABEL_NAMES)) and len(content) < 20


def _parquet_grid(file: LabelFile) -> _Grid:
    """The columns of a Parquet file that hold words or numbers; pictures in it are not read."""
    import pyarrow as pa
    from pyarrow import types

    def is_plain(column: Any) -> bool:
        kind = column.type
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_list(kind) or types.is_large_list(kind):
            kind = kind.value_type
            return bool(types.is_string(kind) or types.is_integer(kind))
        tests = ("string", "large_string", "integer", "floating", "boolean", "null")
        return any(getattr(types, f"is_{test}")(kind) for test in tests)

    try:
        table = read_parquet(file.path, is_plain)
        _check_amount(file.path, len(table), len(table) * table.num_columns)
        names, columns = table.column_names, [column.to_pylist() for column in table.columns]
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(
            f"the labels {inert(file.path)} cannot be read ({reason:.120}); write them again."
        ) from error
    return _Grid(names, [(i, list(cells)) for i, cells in enumerate(zip(*columns, strict=True), 1)])


# --- Columns --------------------------------------------------------------------------


def _plain(name: object) -> str:
    """A name of a column in small letters and digits alone."""
    return re.sub(r"[^a-z0-9]", "", str(name).casefold())


def _usual(names: Sequence[str], usual: Sequence[str]) -> list[int]:
    """The columns with a usual name, the most preferred first."""
    found = [(usual.index(_plain(n)), i) for i, n in enumerate(names) if _plain(n) in usual]
    return [i for _, i in sorted(found)]


def _layout(grid: _Grid, file: LabelFile, known: Known, classes: Sequence[str]) -> _Layout:
    """Find out which column is which.

    Raises:
        UserError: that cannot be found out; the sentence asks for the missing choice.
    """
    if not grid.rows:
        raise UserError(f"{inert(file.path)} has no rows; {FORMS}.")
    first = [_text(cell) for cell in grid.rows[0][1]]
    names = grid.names if grid.names is not None else first
    if len(names) > MOST_COLUMNS:
        raise UserError(
            f"{inert(file.path)} has {len(names):,} columns, and at most {MOST_COLUMNS:,} are read;"
            " write the images and their labels alone into another file."
        )
    images, labels = _usual(names, IMAGE_NAMES), _usual(names, LABEL_NAMES)
    has_header = grid.names is not None or _is_header(grid, file, images, labels, known)
    if not has_header:
        names, images, labels = [], [], []
    start = int(has_header and grid.names is None)
    rows = [cells for _, cells in grid.rows[start : start + SAMPLE]]
    width = len(names) or Counter(map(len, rows)).most_common(1)[0][0]
    if not width:
        raise UserError(f"{inert(file.path)} has rows without any cell; {FORMS}.")
    layout = _Layout(0, [], list(names), start, width, 0, 0)
    if file.image_column is not None:
        layout.image = _chosen("image", file.image_column, layout, file.path)
    else:
        candidates = images or [i for i in range(width) if i not in labels] or list(range(width))
        counts = [_matches(rows, i, known) for i in candidates]
        layout.image = candidates[counts.index(max(counts))]
    layout.matched = _matches(rows, layout.image, known)
    layout.certain = int(file.image_column is not None or layout.image in images)
    layout.labels = _label_columns(layout, rows, file, labels, classes)
    if start and not images and not labels and file.image_column is file.label_column is None:
        layout.notes.append(
            f"{inert(file.path)}: line {grid.rows[0][0]} ({inert(', '.join(first)):.60}) is taken"
            " for a header."
        )
    return layout


def _is_header(
    grid: _Grid, file: LabelFile, images: list[int], labels: list[int], known: Known
) -> bool:
    """Whether the first row of a text file names the columns."""
    first = [_text(cell) for cell in grid.rows[0][1]]
    chosen = [c for c in (file.image_column, *(file.label_column or "").split(",")) if c]
    if any(name in first and not name.isdecimal() for name in chosen):
        return True
    if images and labels and set(images) | set(labels) != {images[0]}:
        return True
    if any(Path(cell).suffix.lower() in ENDINGS or known(cell) for cell in first if cell.strip()):
        return False
    if images or labels:
        return True
    later = [cells for _, cells in grid.rows[1:SAMPLE]]
    return any(known(_text(cell)) for cells in later for cell in cells)


def _matches(rows: list[list[Any]], column: int, known: Known) -> int:
    return sum(column < len(cells) and known(_text(cells[column])) for cells in rows)


def _chosen(what: str, wanted: str, layout: _Layout, path: Path) -> int:
    """The column that the user named, by its name or by its number from 1."""
    names = layout.names
    if wanted in names:
        return names.index(wanted)
    alike = [i for i, name in enumerate(names) if _plain(name) == _plain(wanted)]
    if len(alike) == 1 and _plain(wanted):
        return alike[0]
    if wanted.isdecimal() and 1 <= int(wanted) <= layout.width:
        return int(wanted) - 1
    if wanted.isdecimal() or not names:
        raise UserError(
            f"{inert(path)} has {layout.width} columns{'' if names else ' and no header'}, so"
            f" {what}_column={inert(wanted)} is none of them; use a number from 1 to"
            f" {layout.width}."
        )
    raise unknown(f"column of {inert(path)}", wanted, map(inert, names))


def _label_columns(
    layout: _Layout,
    rows: list[list[Any]],
    file: LabelFile,
    labels: list[int],
    classes: Sequence[str],
) -> list[int]:
    """The column of the labels, or one column for each class."""
    names, path = layout.names, inert(file.path)
    if file.label_column is not None:
        layout.certain += 1
        if file.label_column in names or "," not in file.label_column:
            return [_chosen("label", file.label_column, layout, file.path)]
        wanted = [word.strip() for word in file.label_column.split(",")]
        return [_chosen("label", word, layout, file.path) for word in wanted]
    labels = [i for i in labels if i != layout.image]
    if labels:
        layout.certain += 1
        same = [i for i in labels if _plain(names[i]) == _plain(names[labels[0]])]
        if len(same) > 1:
            raise UserError(
                f"{path} has {len(same)} columns that are called {inert(names[labels[0]])}; choose"
                " one by its number with label_column."
            )
        if len(labels) > 1:
            rest = ", ".join(inert(names[i]) for i in labels[1:])
            layout.notes.append(
                f"{path}: the labels are those of the column {inert(names[labels[0]])}, not of"
                f" {rest}; choose another with label_column."
            )
        return labels[:1]
    others = [
        i
        for i in range(layout.width)
        if i != layout.image
        and (not names or _plain(names[i]) not in INDEX_NAMES)
        and any(i < len(cells) and _text(cells[i]).strip() for cells in rows)
    ] or [i for i in range(layout.width) if i != layout.image]
    if len(others) == 1:
        return others
    if others and (wide := _class_columns(layout, rows, others, classes)):
        shown = ", ".join(inert(names[i]) for i in wide[:5]) + (", ..." if len(wide) > 5 else "")
        layout.notes.append(
            f"{path}: each of the {len(wide)} columns {shown} is a class, and its numbers are the"
            " weights of that class."
        )
        return wide
    if not others:
        raise UserError(
            f"{path} has a single column; it needs one that names the images and one with their"
            " labels."
        )
    shown = listed([*map(inert, names)]) if names else f"1 to {layout.width} without a header"
    raise UserError(
        f"{path} has the columns {shown}, and none of them has a usual name such as label or class;"
        " choose the one with the labels by its name or number with label_column."
    )


def _class_columns(
    layout: _Layout, rows: list[list[Any]], others: list[int], classes: Sequence[str]
) -> list[int]:
    """The columns that hold counts or probabilities of the class they are called after.

    Without known classes the numbers of every row must add up to 1.
    """
    if not layout.names:
        return []
    known = {name.strip() for name in classes}
    wide = [i for i in others if layout.names[i].strip() in known]
    sums = not wide
    wide = wide or others
    for cells in rows:
        values = [_number(_text(cells[i])) if i < len(cells) else 0.0 for i in wide]
        if any(value is None or value < 0 for value in values):
            return []
        total = sum(value or 0 for value in values)
        if sums and total and abs(total - 1) > 0.01:
            return []
    return wide if len(wide) > 1 else []


# --- Rows -----------------------------------------------------------------------------


def _table_rows(
    file: LabelFile, grid: _Grid, known: Known, classes: Sequence[str], encoding: str
) -> LabelRows:
    layout = _layout(grid, file, known, classes)
    notes = list(layout.notes)
    if encoding in FALLBACKS:
        notes.insert(
            0,
            f"{inert(file.path)} is not UTF-8; it is read as {FALLBACKS[encoding]}. If letters with"
            " accents look wrong, save it as UTF-8.",
        )
    rows, missing = [], Counter[str]()
    for line, given in grid.rows[layout.start :]:
        where = f"{inert(file.path)}, line {line}"
        extra = [cell for cell in given[layout.width :] if _text(cell).strip()]
        if extra:
            header = f", and the header has {layout.width}" if layout.names else ""
            raise UserError(
                f"{where}: there are {len(given)} fields{header or f' and not {layout.width}'}; put"
                " a name with the separator in it into double quotes."
            )
        cells = [*given, *[None] * (layout.width - len(given))]
        image = _text(cells[layout.image])
        votes = _votes_of(cells, layout, where)
        if len(layout.labels) == 1:
            for word in [w for w in votes if w.strip().casefold() in MISSING and w not in classes]:
                missing[word.strip()] += 1
                del votes[word]
        if image.strip():
            rows.append(LabelRow(line, image, votes))
        elif votes:
            raise UserError(f"{where}: no image is named; fill it in, or delete the line.")
    if missing:
        words = ", ".join(repr(inert(word)) for word in missing)
        notes.append(
            f"{inert(file.path)}: {words} in the column of the labels means that there is none"
            f" ({counted(missing.total(), 'cell')})."
        )
    return LabelRows(rows, encoding, notes)


def _votes_of(cells: list[Any], layout: _Layout, where: str) -> dict[str, float]:
    """The weight of each label in a row."""
    if len(layout.labels) == 1:
        value = cells[layout.labels[0]]
        if isinstance(value, dict):
            return _weights([(str(k), _text(v)) for k, v in value.items()], where)
        values = value if isinstance(value, list) else [value]
        texts = [text for text in map(_text, values) if text.strip()]
        return {text: float(count) for text, count in Counter(texts).items()}
    return _weights([(layout.names[i], _text(cells[i])) for i in layout.labels], where)


def _weights(pairs: list[tuple[str, str]], where: str) -> dict[str, float]:
    votes: dict[str, float] = {}
    for name, words in pairs:
        weight = _number(words)
        if weight is None or weight < 0:
            raise UserError(
                f"{where}: the weight of the class {inert(name)} is {inert(words)!r}; it must be a"
                " number of 0 or more."
            )
        if weight:
            votes[name] = votes.get(name, 0.0) + weight
    return votes


def _text(value: Any) -> str:
    """A cell as text: a whole number has no decimals, and a missing one is empty."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _number(words: str) -> float | None:
    """A finite number, also with a decimal comma; an empty cell is 0, and words are None.

    "True" is 1 and "False" 0, as pandas writes columns of one class each.
    """
    words = {"true": "1", "false": "0"}.get(words.strip().lower(), words)
    try:
        number = float(words.strip().replace(",", ".") or 0)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
