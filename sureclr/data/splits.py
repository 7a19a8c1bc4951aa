"""Which image is in which split: by the names of folders, or by the content of the image."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sureclr.data.image_report import Duplicates, counted, inert

TEST_FRACTION = 0.2
# Names of folders that hold a split, in lower case and without "-", "_" and blanks. Validation is
# the test split where there is no test folder
SPLIT_WORDS = {
    "train": ("train", "training"),
    "unlabelled": ("unlabelled", "unlabeled"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation", "dev", "eval", "evaluation"),
}
SPLIT_FOLDERS = {word: split for split, words in SPLIT_WORDS.items() for word in words}
WHAT = "set|data|dataset|images?|imgs?|photos?|pictures?|pics|split"
SPLIT_NAME = re.compile(  # train, test_set, images_train, train2017, 01_train, seg_test
    rf"\d*(?:{WHAT}|seg)?({'|'.join(SPLIT_FOLDERS)})(?:{WHAT})?\d*"
)
SPLITS_IN_ORDER = ("train", "unlabelled", "test")


def split_of_name(name: str) -> str | None:
    """Return "train", "unlabelled", "test" or "validation" for the name of a split's folder.

    >>> split_of_name("Train"), split_of_name("test_images"), split_of_name("cat")
    ('train', 'test', None)
    """
    found = SPLIT_NAME.fullmatch(re.sub("[-_. ]", "", name.casefold()))
    return SPLIT_FOLDERS[found[1]] if found else None


def held_out_by_content(contents: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Choose about 20 % of images by their content alone.

    Whether an image is chosen depends on nothing but its content and the seed: copies of one image
    are chosen together, and images that are added or removed change nothing for the others.

    Args:
        contents: n digests of the images' content.
        seed: another seed chooses other images.

    Returns:
        (n,) whether the image is chosen.
    """
    # The seed goes first: the digest of an image must not decide alone
    hashes = (hashlib.sha256(f"{seed}:{content}".encode()).digest()[:8] for content in contents)
    numbers = [int.from_bytes(part, "big") for part in hashes]
    return np.array([number < TEST_FRACTION * 2**64 for number in numbers], dtype=bool)


def contents_of(images: Tensor) -> list[str]:
    """Return a digest of each image's pixels, as `held_out_by_content` takes them.

    Args:
        images: (n, c, h, w) uint8.

    Returns:
        n times 64 hexadecimal digits.
    """
    return [
        hashlib.sha256(f"{tuple(image.shape)}".encode() + image.cpu().numpy().tobytes()).hexdigest()
        for image in images
    ]


def duplicates_of(
    contents: Sequence[str], split: NDArray[np.str_], paths: Sequence[str]
) -> tuple[Duplicates, NDArray[np.bool_]]:
    """Find exact duplicates.

    Args:
        contents: n digests of the images' content.
        split: (n,) the split of each image.
        paths: n names.

    Returns:
        The duplicates, and (n,) whether the image stays: images of the test split that repeat one
        of another split do not.
    """
    first = {
        content: path
        for content, path, part in zip(
            reversed(contents), reversed(paths), reversed(split), strict=True
        )
        if part != "test"
    }
    repeats = [
        part == "test" and content in first for content, part in zip(contents, split, strict=True)
    ]
    stays = ~np.array(repeats, dtype=bool)
    within = {}
    for part in SPLITS_IN_ORDER:
        rows = np.flatnonzero((split == part) & stays).tolist()
        within[part] = len(rows) - len({contents[row] for row in rows})
    named = {paths[row]: first[contents[row]] for row in np.flatnonzero(~stays).tolist()}
    return Duplicates(within, int((~stays).sum()), named), stays


@dataclass(frozen=True)
class Arrangement:
    """What the names of image files say: which of them are used, their splits and their classes.

    Attributes:
        rows: (m,) rows of the names that are used, in the order of the splits, then by name.
        splits: m splits; None: the content of the image decides.
        groups: m names of classes; "" where there is none.
        words: where the splits come from; "" where the content decides.
        left_out: words -> the number of pictures that are not used.
        warnings: sentences about a choice that may be wrong.
    """

    rows: list[int]
    splits: list[str | None]
    groups: list[str]
    words: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def arranged(names: Sequence[str]) -> Arrangement:
    """Find splits and classes in the names of image files.

    Split folders may lie at the top (train/cat/1.jpg), below single folders that hold everything
    (photos/train/cat/1.jpg), or inside of each class (cat/train/1.jpg). Without split folders, the
    first folder names the class (cat/2021/1.jpg).

    A folder "train" beside other folders of pictures, of which none is named like another split, is
    taken for a class. Split folders of which none may be trained on (test/ alone) do not count as
    splits: the content decides, and the folders inside them name the classes.

    Args:
        names: paths with "/", relative to the folder of the source.
    """
    parts = [name.split("/") for name in names]
    if held_back := _folders_to_test_on(parts):
        inner = arranged(["/".join(p[1:]) for p in parts])
        shown = ", ".join(f"{inert(name)}/" for name in sorted(held_back))
        warning = (
            f"There is no folder of training images beside {shown}, so these names do not decide"
            " the splits."
        )
        return replace(inner, warnings=(warning, *inner.warnings))
    depth = _depth_of_splits(parts)
    if depth is not None:
        return _by_split_folders(names, parts, depth)
    if _are_splits_inside_classes(parts):
        return _arrangement(
            names, [p[1] for p in parts], [p[0] for p in parts], "the folders inside each class"
        )
    order = sorted(range(len(names)), key=lambda row: names[row])
    groups = [parts[row][0] if len(parts[row]) > 1 else "" for row in order]
    return Arrangement(order, [None] * len(order), groups, warnings=_not_used(parts, set(groups)))


def _not_used(parts: list[list[str]], groups: set[str]) -> tuple[str, ...]:
    """Warnings about folders that are named like splits where no folders decide the split."""
    warnings = []
    top = sorted(name for name in groups if split_of_name(name) is not None)
    if top and len(groups - {""}) > 1:
        warnings.append(
            f"The folder {inert(top[0])}/ is taken for a class, because there are other folders"
            " beside it and none of another split (put training and test images into train/ and"
            " test/)."
        )
    elif len(groups) == 1 and "" not in groups and any(len(p) > 2 for p in parts):
        warnings.append(
            f"All pictures lie in {inert(min(groups))}/, and one folder names no class; if the"
            " folders inside it are classes, name that folder instead."
        )
    children: dict[str, dict[str, str]] = {}
    for p in parts:
        for i in range(1, len(p) - 1):
            if (kind := split_of_name(p[i])) is not None:
                children.setdefault("/".join(p[:i]), {}).setdefault(kind, p[i])
    for parent, kinds in children.items():
        if "train" in kinds and len(kinds) > 1:
            inside = " and ".join(f"{inert(parent)}/{inert(name)}/" for name in kinds.values())
            warnings.append(
                f"{inside} are not used as splits, and images of both are trained on, because there"
                " are other folders without such sub-folders (use folder:.../"
                f"{inert(parent)} alone, or give every folder the same sub-folders)."
            )
            break
    return tuple(warnings)


def _folders_to_test_on(parts: list[list[str]]) -> set[str]:
    """The first folders if all are named like splits for testing; else none."""
    folders = {p[0] if len(p) > 1 else "" for p in parts}
    found = {split_of_name(name) for name in folders}
    return folders if found and found <= {"test", "validation"} else set()


def _are_split_folders(folders: set[str], loose: bool) -> bool:
    """Whether sub-folders are splits and not classes: a class can be named "train", too.

    Args:
        folders: names of the sub-folders that hold pictures.
        loose: whether there are pictures beside them, or above.
    """
    found = {split_of_name(name) for name in folders} - {None}
    alone = len(folders) == 1 and not loose
    return bool({"train", "unlabelled"} & found) and (len(found) > 1 or alone)


def _depth_of_splits(parts: list[list[str]]) -> int | None:
    """How many single folders lie above the split folders; None: there are no split folders."""
    depth = 0
    while parts:
        folders = {p[depth] for p in parts if len(p) > depth + 1}
        loose = any(len(p) <= depth + 1 for p in parts)
        if _are_split_folders(folders, loose):
            return depth
        if len(folders) != 1:
            return None
        depth += 1
    return None


def _are_splits_inside_classes(parts: list[list[str]]) -> bool:
    """Whether every picture is CLASS/SPLIT/..., and some split is that of training."""
    if not parts or any(len(p) < 3 for p in parts):
        return False
    found = {split_of_name(p[1]) for p in parts}
    return None not in found and bool({"train", "unlabelled"} & found) and len(found) > 1


def _by_split_folders(names: Sequence[str], parts: list[list[str]], depth: int) -> Arrangement:
    folders = [p[depth] if len(p) > depth + 1 else "" for p in parts]
    inside = [p for p in parts if len(p) > depth + 1 and split_of_name(p[depth]) is not None]
    repeated = all(len(p) > depth + 2 and p[depth + 1] == p[depth] for p in inside)
    below = depth + 1 + repeated  # of train/train/cat/1.jpg, as some archives have it, cat
    groups = [p[below] if len(p) > below + 1 else "" for p in parts]
    return _arrangement(names, folders, groups, "")


def _arrangement(
    names: Sequence[str], folders: list[str], groups: list[str], words: str
) -> Arrangement:
    """Sort pictures into the splits that are named by their folders.

    Args:
        names: of the pictures.
        folders: n names of split folders; "" or another name: the picture is left out.
        groups: n names of classes, or "".
        words: where the splits come from; "": name the folders.
    """
    kinds = [split_of_name(folder) for folder in folders]
    has_test = "test" in kinds
    used = {"train": "train", "unlabelled": "unlabelled", "test": "test"}
    if not has_test:
        used["validation"] = "test"
    rank = {split: number for number, split in enumerate(SPLITS_IN_ORDER)}
    splits = [used.get(kind or "") for kind in kinds]
    rows = [row for row, split in enumerate(splits) if split is not None]
    rows.sort(key=lambda row: (rank[splits[row] or ""], names[row]))
    left_out: dict[str, int] = {}
    for row, kind in enumerate(kinds):
        if splits[row] is None:
            reason = "because there is a test folder" if kind else "which is not named like a split"
            key = f"in {folders[row]}/ ({reason})" if folders[row] else "beside the split folders"
            left_out[key] = left_out.get(key, 0) + 1
    if not words:
        used_folders = dict.fromkeys(folders[row] for row in rows)
        words = f"the folders {', '.join(f'{folder}/' for folder in used_folders)}"
    return Arrangement(
        rows,
        [splits[row] for row in rows],
        ["" if splits[row] == "unlabelled" else groups[row] for row in rows],
        words,
        left_out,
    )


def split_words(splits: Sequence[str | None], words: str, seed: int) -> str:
    """Return where the splits come from, in words."""
    if None not in splits:
        return words
    by_content = f"a hash of each image's content holds out 20 % for testing, seed {seed}"
    given = sum(map(bool, splits))
    return by_content + (f"; {words} for {counted(given, 'other image')}" if given else "")
