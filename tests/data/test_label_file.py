"""Label files in every dialect: what the csv module and pandas write is read back as it was meant.

The files are made by the csv module, pandas, json and pyarrow; the truth is the list they were made
of. A set of images here has no pixels to speak of.
"""

import csv
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from sureclr.data.image_report import inert
from sureclr.data.image_set import ImageSet
from sureclr.data.label_file import read_label_rows
from sureclr.data.label_matching import FileLabels, labels_in_file
from sureclr.data.label_request import LabelFile
from sureclr.errors import UserError

NAMES = ("a.jpg", "cats/b.jpg", "dogs/c.jpg", "dogs/deep/d.jpg", "e.png")


def images(
    paths: Sequence[str] = NAMES, classes: Sequence[str] = (), name: str = "folder:/data/photos"
) -> ImageSet:
    n = len(paths)
    return ImageSet(
        name,
        torch.zeros(n, 1, 1, 1, dtype=torch.uint8),
        torch.full((n,), -1),
        tuple(classes),
        np.full(n, "train"),
        [inert(path) for path in paths],
    )


def by_path(found: FileLabels, of: ImageSet) -> dict[str, str]:
    return {
        of.paths[row]: found.classes[k]
        for row, k in zip(found.rows.tolist(), found.target.tolist(), strict=True)
    }


def read(
    folder: Path,
    content: str | bytes,
    of: ImageSet | None = None,
    name: str = "l.csv",
    **columns: Any,
) -> FileLabels:
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return labels_in_file(LabelFile(folder / name, **columns), images() if of is None else of)


def mapping(folder: Path, content: str | bytes, **more: Any) -> dict[str, str]:
    of = more.setdefault("of", images())
    return by_path(read(folder, content, **more), of)


# --- Dialects: a property ---------------------------------------------------------------

LETTERS = st.sampled_from([*"abcXYZ019 _-.,;|\t'\"#=\\\n\u3000é", "e\u0301", "猫", "\u200f"])
FILES = st.lists(
    st.lists(LETTERS, min_size=1, max_size=8).map(lambda word: f"{''.join(word)}.jpg"),
    min_size=2,
    max_size=6,
    unique_by=lambda name: unicodedata.normalize("NFC", name.strip()).replace("\\", "/"),
)
LABELS = ("cat", "chat noir", 'q"uote', "co,mma", "semi;colon", "línea", "two\nlines", "O'Neil")
HEADERS = (None, ("path", "label"), ("Filename", "Class"), ("image", "category"), ("img", "target"))
LATIN = bytes(range(256)).decode("cp1252", "ignore")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252")


@settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    FILES,
    st.lists(st.sampled_from(LABELS), min_size=6, max_size=6),
    st.sampled_from(HEADERS),
    st.sampled_from(ENCODINGS),
    st.sampled_from([",", "\t", ";", "|"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
@example(["a,b.jpg", "c,d.jpg"], ["cat"] * 6, None, "utf-8", "\t", "\n", csv.QUOTE_MINIMAL, False)
@example(["x;y.jpg", "z.jpg"], ["co,mma"] * 6, None, "utf-16", ";", "\r", csv.QUOTE_MINIMAL, True)
def test_what_the_csv_module_writes_is_read_as_it_was_meant(
    tmp_path: Path,
    names: list[str],
    labels: list[str],
    header: tuple[str, str] | None,
    encoding: str,
    delimiter: str,
    ends: str,
    quoting: Any,
    raw: bool,
) -> None:
    of = images(names)
    pairs = list(zip(names if raw else of.paths, labels, strict=False))
    file = tmp_path / "labels.csv"
    assume(not (encoding == "cp1252" and any(c not in LATIN for pair in pairs for c in pair[0])))
    if ends == "\r":  # the csv module then leaves other line breaks without quotes
        quoting = csv.QUOTE_ALL
    with file.open("w", newline="", encoding=encoding) as opened:
        writer = csv.writer(opened, delimiter=delimiter, lineterminator=ends, quoting=quoting)
        writer.writerows([*([header] if header else []), *pairs])
    truth = {inert(name): inert(label) for (name, label) in zip(names, labels, strict=False)}
    assert by_path(labels_in_file(LabelFile(file), of), of) == truth


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        ("csv", {"index": False}),
        ("csv", {"index": True}),
        ("tsv", {"index": False, "sep": "\t", "encoding": "utf-16"}),
        ("csv", {"index": False, "sep": ";", "encoding": "cp1252"}),
        ("jsonl", {"orient": "records", "lines": True}),
        ("json", {"orient": "records"}),
        ("parquet", {"index": False}),
        ("parquet", {"index": True}),
    ],
)
def test_what_pandas_writes_is_read_as_it_was_meant(
    ending: str, options: dict[str, Any], tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    names = ["a b.jpg", "x/é.jpg", "q,'\".jpg", "n.jpg", "no label.jpg"]
    table = pandas.DataFrame({"filename": names, "species": ["fox", "Bär", "fox", "co,w", None]})
    file = tmp_path / f"labels.{ending}"
    writer = {"jsonl": "to_json", "json": "to_json", "parquet": "to_parquet"}.get(ending, "to_csv")
    getattr(table, writer)(file, **options)
    found = labels_in_file(LabelFile(file), images(names))
    assert by_path(found, images(names)) == dict(
        zip(names, ("fox", "Bär", "fox", "co,w"), strict=False)
    )
    assert any("1 of 5 rows have no label" in message for message in found.messages)


@pytest.mark.parametrize(
    "content",
    [
        "filename,label\na.jpg,x\ncats/b.jpg,y\n",  # cases.md, F6
        b"\xef\xbb\xbfimage\tclass\r\na.jpg\tx\r\ncats/b.jpg\ty\r\n",  # F7
        "path,label\n.\\a.jpg,x\ncats\\b.jpg,y\n",  # F8
        "path,label\n./a.jpg,x\n.//cats/./b.jpg,y\n",
        "path,label\na.jpg,x\nb.jpg,y\n",
        "path,label\na,x\nb,y\n",
        "path,label\nA.JPG,x\nB.jpeg,y\n",
        "path,label\n/data/photos/a.jpg,x\n/data/photos/cats/b.jpg,y\n",
        "path,label\nphotos/a.jpg,x\nphotos/cats/b.jpg,y\n",
        "path,label\nC:\\old\\photos\\a.jpg,x\nC:\\old\\photos\\cats\\b.jpg,y\n",
        "path,label\nfile:///data/photos/a.jpg,x\nfile:///data/photos/cats/b.jpg,y\n",
        "label,note,path\nx,1,a.jpg\ny,2,cats/b.jpg\n",
        "a.jpg,x\ncats/b.jpg,y\n",
        "x,a.jpg\ny,cats/b.jpg\n",
        "a.jpg x\ncats/b.jpg y\n",
        "sep=;\npath;label\na.jpg;x\ncats/b.jpg;y\n",
        '"path", "label"\n"a.jpg", "x"\n"cats/b.jpg", "y"\n',
        "foto,soort\na.jpg,x\ncats/b.jpg,y\n",
        "id,name,label\n1,a.jpg,x\n2,cats/b.jpg,y\n",
        "path,label\na.jpg,x \n cats/b.jpg, y\n",
        "path,label,label_id\na.jpg,x,0\ncats/b.jpg,y,1\n",
        "path,label\na.jpg,x\na.jpg,x\ncats/b.jpg,y\ndogs/c.jpg,\ndogs/deep/d.jpg\n\n",
        '{"file_name": "a.jpg", "category": "x"}\n{"file_name": "cats/b.jpg", "category": "y"}\n',
        '[{"image": "a.jpg", "label": "x"}, {"image": "cats/b.jpg", "label": ["y"]}]',
        '{"a.jpg": "x", "cats/b.jpg": "y", "e.png": null}',
        '{"images": [{"image": "a.jpg", "label": "x"}, {"image": "cats/b.jpg", "label": "y"}]}',
    ],
)
def test_each_way_to_write_two_labels_is_read(content: str | bytes, tmp_path: Path) -> None:
    assert mapping(tmp_path, content) == {"a.jpg": "x", "cats/b.jpg": "y"}


def test_columns_may_be_chosen_by_name_and_by_number(tmp_path: Path) -> None:
    content = "photo,quality,taxon,path\na.jpg,good,fox,e.png\ncats/b.jpg,bad,cow,a.jpg\n"
    with pytest.raises(UserError, match="columns photo, quality, taxon, path.*label_column"):
        read(tmp_path, content)
    truth = {"e.png": "fox", "a.jpg": "cow"}
    for column in ("taxon", "Taxon", "3"):
        assert mapping(tmp_path, content, label_column=column) == truth
    for image, label in (("photo", "taxon"), ("1", "3")):
        found = mapping(tmp_path, content, image_column=image, label_column=label)
        assert found == {"a.jpg": "fox", "cats/b.jpg": "cow"}
    assert mapping(tmp_path, "1,a.jpg,x,fox\n2,e.png,y,cow\n", label_column="4") == {
        "a.jpg": "fox",
        "e.png": "cow",
    }
    with pytest.raises(UserError, match=r"unknown column of .*'taxo': did you mean taxon"):
        read(tmp_path, content, label_column="taxo")
    with pytest.raises(UserError, match="has 4 columns, so label_column=5 is none of them"):
        read(tmp_path, content, label_column="5")


def test_parquet_is_read_without_the_pictures_in_it(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    content = {
        "image": pa.array([{"bytes": b"\0" * 10}] * 2),
        "file": pa.array(["a.jpg", "e.png"]).dictionary_encode(),
        "label": pa.array([3.0, None]),
    }
    parquet.write_table(pa.table(content), tmp_path / "l.parquet")
    assert by_path(labels_in_file(LabelFile(tmp_path / "l.parquet"), images()), images()) == {
        "a.jpg": "3"
    }


# --- Images -----------------------------------------------------------------------------


def test_exact_names_win_over_all_that_resemble_them(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "a.jpg ",
        " a.jpg",
        "x/a.jpg",
        "A.jpg",
        "a",
        "é.jpg",
        "e\u0301.jpg",
        "a\\n.jpg",
    ]
    of = images(names)
    lines = [f'"{name}",{k}' for k, name in enumerate(names)]
    assert mapping(tmp_path, "path,label\n" + "\n".join(lines), of=of) == {
        path: str(k) for k, path in enumerate(of.paths)
    }


def test_odd_names_are_found_with_and_without_their_escapes(tmp_path: Path) -> None:
    names = ["wide\u3000/b.jpg", "li\nne.jpg", "l\udce9on.jpg", "NFD e\u0301.jpg", "left /c.jpg"]
    of = images(names)
    raw = [name for name in names if "\udce9" not in name]
    lines = "".join(f'"{name}",k{k}\n' for k, name in enumerate(raw))
    assert len(mapping(tmp_path, f"path,label\n{lines}", of=of)) == 4
    nfc = "path,label\nNFD \u00e9.jpg,x\n"
    assert mapping(tmp_path, nfc, of=of) == {"NFD e\u0301.jpg": "x"}
    latin = b"path,label\nl\xe9on.jpg,x\n"  # the bytes of the name on the disk
    found = read(tmp_path, latin, of=of)
    assert by_path(found, of) == {"l\\udce9on.jpg": "x"}
    assert "is not UTF-8; it is read as Windows-1252" in found.messages[0]


def test_an_ambiguous_file_name_names_two_candidates(tmp_path: Path) -> None:
    of = images(["x/a.jpg", "y/a.jpg", "z/b.jpg"])
    with pytest.raises(UserError, match=r"line 3: 'a\.jpg' could be 'x/a\.jpg' or 'y/a\.jpg'"):
        read(tmp_path, "path,label\nb.jpg,k\na.jpg,k\n", of=of)
    assert mapping(tmp_path, "path,label\ny/a.jpg,k\n", of=of) == {"y/a.jpg": "k"}


def test_two_images_of_a_file_are_never_taken_for_one(tmp_path: Path) -> None:
    """The labels of train/1.jpg and test/1.jpg must not be mixed where only one is there."""
    with pytest.raises(UserError, match=r"'test/1\.jpg' and 'train/1\.jpg' are both taken for"):
        read(tmp_path, "path,label\ntrain/1.jpg,x\ntest/1.jpg,y\n", of=images(["1.jpg"]))


def test_a_training_image_is_never_a_test_image_of_the_same_file_name(tmp_path: Path) -> None:
    of = images(("test/cat/1.jpg", "cat/2.jpg"))
    found = read(tmp_path, "path,label\nTrain/1.jpg,cat\nvalid/2.jpg,dog\n", of)
    assert by_path(found, of) == {"cat/2.jpg": "dog"}  # no folder of its path says otherwise
    assert "'Train/1.jpg'" in " ".join(found.messages)
    assert by_path(read(tmp_path, "path,label\nx/Testing/1.jpg,cat\n", of), of)


@pytest.mark.parametrize("folder", ["train", "Training", "train2017"])
def test_labels_of_a_whole_data_set_fit_its_training_folder(folder: str, tmp_path: Path) -> None:
    of = images(("1.jpg", "2.jpg"), name=f"folder:/data/{folder}")
    rows = f"{folder}/1.jpg,cat\n{folder}/2.jpg,dog\n"
    found = read(tmp_path, f"path,label\n{rows}test/1.jpg,cow\nx/test/2.jpg,cow\n", of)
    assert by_path(found, of) == {"1.jpg": "cat", "2.jpg": "dog"}
    with pytest.raises(UserError, match="names no image"):
        read(tmp_path, "path,label\ntest/1.jpg,cow\nval/a/2.jpg,cow\n", of)
    other = images(("1.jpg",), name="folder:/data/photos")  # their new place has another name
    assert by_path(read(tmp_path, "path,label\ntest/1.jpg,cow\n", other), other)


def test_unknown_images_are_counted_and_three_are_named(tmp_path: Path) -> None:
    content = "path,label\na.jpg,x\n" + "".join(f"none{i}.jpg,y\n" for i in range(5))
    (message,) = read(tmp_path, content).messages
    assert "5 names in it are not among the images of folder:/data/photos and ignored" in message
    assert "'none0.jpg', 'none1.jpg', 'none2.jpg', ..." in message
    with pytest.raises(UserError, match=r"names no image of .*such as 'none0\.jpg'.*'a\.jpg'"):
        read(tmp_path, content.replace("a.jpg,x\n", ""))


def test_an_absolute_path_in_the_folder_is_never_another_image(tmp_path: Path) -> None:
    """/data/photos/b.jpg is not there, although a file of that name is further down."""
    content = "path,label\n/data/photos/b.jpg,x\n/data/photos/e.png,y\n"
    assert mapping(tmp_path, content) == {"e.png": "y"}


# --- Classes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "labels", "truth"),
    [
        ((), "3 3.0 10 -1", ("3", "3", "10", None)),
        ((), "1.0 1.1 2.0 1.0", ("1.0", "1.1", "2.0", "1.0")),
        (("ant", "bee", "cow"), "2 0 1.0 -1", ("cow", "ant", "bee", None)),
        (("0", "1", "2"), "2 0 1.0 -1", ("2", "0", "1", None)),
        (("01", "02", "10"), "1 02 10 2", ("01", "02", "10", "02")),
        (("left ", "right"), "left right left\\x20 left", ("left ", "right", "left ", "left ")),
        (("Ant", "bee"), "ant Bee ANT bee", ("Ant", "bee", "Ant", "bee")),
        (("2021", "2022"), "ant bee ant bee", ("ant", "bee", "ant", "bee")),
        (("todo", "ant"), "ant bee zebra zebra", ("ant", "bee", "zebra", "zebra")),
    ],
)
def test_labels_are_the_classes_that_they_mean(
    classes: tuple[str, ...], labels: str, truth: tuple[str | None, ...], tmp_path: Path
) -> None:
    of = images(NAMES[:4], classes)
    lines = zip(NAMES, labels.replace("\\x20", "\u00a0").split(" "), strict=False)
    content = "path,label\n" + "".join(f"{path},{label}\n" for path, label in lines)
    found = by_path(read(tmp_path, content, of=of), of)
    assert tuple(found.get(path) for path in NAMES[:4]) == truth


def test_what_cannot_be_a_class_is_refused(tmp_path: Path) -> None:
    of = images(NAMES, ("ant", "bee"))
    with pytest.raises(UserError, match=r"unknown class 'ent': did you mean ant\?"):
        read(tmp_path, "path,label\na.jpg,ant\ne.png,ent\n", of=of)
    with pytest.raises(
        UserError, match="the label 2 is neither a class of .* nor the number of one"
    ):
        read(tmp_path, "path,label\na.jpg,1\ne.png,2\n", of=of)


@pytest.mark.parametrize("seed", range(3))
def test_several_labels_of_an_image_become_its_shares(seed: int, tmp_path: Path) -> None:
    """Counted by brute force; of equal shares the first class wins."""
    random = np.random.default_rng(seed)
    votes = [(NAMES[random.integers(5)], "abc"[random.integers(3)]) for _ in range(20)]
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(map(",".join, votes)))
    found = labels_in_file(LabelFile(tmp_path / "l.csv"), images())
    assert found.shares is not None and found.classes == ("a", "b", "c")
    for row, share, k in zip(
        found.rows.tolist(), found.shares.tolist(), found.target.tolist(), strict=True
    ):
        counts = Counter(label for path, label in votes if path == NAMES[row])
        truth = [counts[name] / counts.total() for name in "abc"]
        assert share == pytest.approx(truth) and k == truth.index(max(truth))
    columns = [[str(Counter(votes)[name, k]) for k in "abc"] for name in NAMES]
    wide = "path,a,b,c\n" + "\n".join(
        ",".join([name, *c]) for name, c in zip(NAMES, columns, strict=True)
    )
    again = read(tmp_path, wide, label_column="a,b,c")
    assert again.shares is not None and torch.equal(again.shares, found.shares)


def test_one_label_in_several_rows_is_one_label(tmp_path: Path) -> None:
    assert read(tmp_path, "path,label\na.jpg,x\na.jpg,x\ne.png,y\n").shares is None


def test_a_column_for_each_class_holds_its_weights(tmp_path: Path) -> None:
    content = "path,fox,cow\na.jpg,1,0\ncats/b.jpg,0.25,0.75\ne.png,0,0\n"
    assert mapping(tmp_path, content) == {"a.jpg": "fox", "cats/b.jpg": "cow"}
    excel = content.replace(",", ";").replace("0.", "0,")
    assert mapping(tmp_path, excel) == {"a.jpg": "fox", "cats/b.jpg": "cow"}


@pytest.mark.parametrize("ones", [bool, int, float])
def test_what_get_dummies_makes_is_read(ones: type, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": NAMES, "label": ["cat", "dog", "cow", "cat", "dog"]})
    wide = pandas.concat([frame[["path"]], pandas.get_dummies(frame.label).astype(ones)], axis=1)
    expected = dict(zip(frame.path, frame.label, strict=True))
    assert by_path(read(tmp_path, wide.to_csv(index=False)), images()) == expected
    wide.to_parquet(tmp_path / "wide.parquet")
    found = labels_in_file(LabelFile(tmp_path / "wide.parquet"), images())
    assert by_path(found, images()) == expected


@pytest.mark.parametrize("word", ["nan", "NaN", "#N/A", "N/A", "<NA>", "NULL"])
def test_cells_without_a_value_are_no_class(word: str, tmp_path: Path) -> None:
    content = f"path,label\na.jpg,1.0\ne.png,{word}\ncats/b.jpg,2.0\n"
    found = read(tmp_path, content)
    assert by_path(found, images()) == {"a.jpg": "1", "cats/b.jpg": "2"}
    assert any(f"{word!r} in the column of the labels" in note for note in found.messages)
    of = images(classes=("1", word))  # a folder of this name is a class
    assert by_path(read(tmp_path, content, of), of)["e.png"] == word


@pytest.mark.parametrize("orient", ["columns", "index", "records"])
@pytest.mark.parametrize("index", [False, True])
def test_json_of_pandas_is_read(orient: Any, index: bool, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": NAMES, "label": ["cat", "dog", "cow", "cat", "dog"]})
    expected = dict(zip(frame.path, frame.label, strict=True))
    if index and orient == "index":
        frame = frame.set_index("path")
    found = read(tmp_path, frame.to_json(orient=orient), name="l.json")
    assert by_path(found, images()) == expected


def test_blanks_without_a_width_are_no_part_of_a_label(tmp_path: Path) -> None:
    content = "path,label\na.jpg,cat\u200b\ne.png,\ufeff cat\ncats/b.jpg,cat\u00a0\n"
    assert read(tmp_path, content).classes == ("cat",)


def test_columns_of_measurements_are_not_taken_for_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of them has a usual name such as label"):
        read(tmp_path, "path,width,height\na.jpg,640,480\ne.png,800,600\n")
    assert mapping(tmp_path, "path,ant,bee\na.jpg,3,4\n", of=images(NAMES, ("ant", "bee"))) == {
        "a.jpg": "bee"
    }


# --- Bad files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; write a share"),
        (b"path,label\n", "has no label|has no rows|names no image"),
        (b"path,label,label\na.jpg,x,y\n", "2 columns that are called label"),
        (b"path,label\na.jpg,x, y\n", "line 2: there are 3 fields, and the header has 2"),
        (b'path,label\n"a.jpg,x\n', "not CSV|single column"),
        (b"path,label\n,x\na.jpg,x\n", "line 2: no image is named"),
        (b"a.jpg\ne.png\n", "single column"),
        (b"path,label\0\na.jpg,x\n", "not a text file"),
        (b"PK\x03\x04....", "is a workbook or an archive"),
        (b"PAR1....", "cannot be read"),
        (b'{"path": "a.jpg", "label": "x"}\n{"path": \n', "line 2: not JSON"),
        (b"[1, 2]", "must be a list of objects"),
        (b"\xff\xfea", "begins as UTF-16"),
    ],
)
def test_a_bad_file_is_one_sentence(content: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        found = read(tmp_path, content)
        assert len(found.rows) == 0
        raise UserError("has no label")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file of labels"):
        labels_in_file(LabelFile(tmp_path / "none.csv"), images())
    with pytest.raises(UserError, match="it is a folder"):
        labels_in_file(LabelFile(tmp_path), images())


def test_line_numbers_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text('path,label\n"a.jpg",x\n\n"cats/b.jpg","y\nz"\ne.png,x\n')
    rows = read_label_rows(LabelFile(tmp_path / "l.csv"), lambda name: name in NAMES).rows
    assert [row.line for row in rows] == [2, 5, 6]


def test_every_kind_of_json_gives_the_same(tmp_path: Path) -> None:
    rows = [
        {"path": "a.jpg", "label": {"x": 1, "y": 3}},
        {"path": "e.png", "label": ["x", "x", "y"]},
    ]
    for content in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        found = read(tmp_path, content, name="l.json")
        assert found.shares is not None
        assert found.shares.flatten().tolist() == pytest.approx([0.25, 0.75, 2 / 3, 1 / 3])
