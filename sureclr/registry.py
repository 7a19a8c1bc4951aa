"""Names that a user can type (losses, encoders, data sources, evaluations), and how to add one.

Each kind has one `Registry`. A name is added by a decorator, or by an installed package that
declares an entry point of the registry's group. Such packages are imported when all names are
listed, or when a name is looked up that has not been registered yet.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from sureclr.errors import UserError, unknown

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
    """A mapping from names to entries of one kind, to which other packages can add.

    Args:
        kind: what an entry is, in the words of an error message ("loss").
        group: the entry point group that other packages use ("sureclr.losses"). Loading the entry
            point must register its name, or return the entry itself.

    >>> shapes = Registry[int]("shape", "sureclr.shapes")
    >>> shapes.register("triangle")(3)
    3
    >>> list(shapes), shapes["triangle"]
    (['triangle'], 3)
    """

    def __init__(self, kind: str, group: str) -> None:
        """Start without entries."""
        self.kind = kind
        self.group = group
        self._entries: dict[str, Entry] = {}
        self._broken: dict[str, UserError] = {}  # names of packages that cannot be imported
        self._loaded = False

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that adds its argument under this name.

        The same definition may come again, as when a notebook's cell is run twice; it then takes
        the place of the earlier one.

        Raises:
            UserError: another entry has this name already.
        """

        def add(entry: Entry) -> Entry:
            before = self._entries.setdefault(name, entry)
            if before is not entry and _same_definition(before, entry):
                self._entries[name] = entry
            elif before is not entry:
                article = "an" if self.kind[0] in "aeiou" else "a"
                raise UserError(
                    f"there is already {article} {self.kind} named {name!r}; register yours under"
                    " another name."
                )
            return entry

        return add

    def remove(self, name: str) -> None:
        """Forget the entry of this name.

        Raises:
            UserError: there is none.
        """
        self[name]
        del self._entries[name]

    def __getitem__(self, name: str) -> Entry:
        """Return the entry of this name; a `UserError` names the nearest known ones."""
        if name not in self._entries:
            self._load_entry_points()
        if name not in self._entries:
            raise self._broken.get(name) or unknown(self.kind, name, self._entries)
        return self._entries[name]

    def get(self, name: str, default: Any = None, /) -> Any:
        """Return the entry of this name, or the default if there is none."""
        return self[name] if name in self else default  # noqa: SIM401  (it would call itself)

    def __contains__(self, name: object) -> bool:
        """Whether there is an entry of this name, in this package or in an installed one."""
        if name not in self._entries:
            self._load_entry_points()
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        """All names in the order in which they were registered, other packages' last."""
        self._load_entry_points()
        return iter(list(self._entries))

    def __len__(self) -> int:
        """The number of names, other packages' included."""
        self._load_entry_points()
        return len(self._entries)

    def _load_entry_points(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for point in entry_points(group=self.group):
            try:
                entry = point.load()
            except (Exception, SystemExit) as error:  # one broken package must not stop the others
                self._broken[point.name] = UserError(
                    f"the {self.kind} {point.name!r} of another package cannot be imported from"
                    f" {point.value} ({type(error).__name__}: {error}); repair or uninstall it."
                )
                warnings.warn(str(self._broken[point.name]), RuntimeWarning, stacklevel=2)
                continue
            if point.name not in self._entries:
                self.register(point.name)(entry)


def _same_definition(before: object, entry: object) -> bool:
    """Whether both are the class or function of one name in one module."""
    names = [
        (getattr(value, "__module__", None), getattr(value, "__qualname__", None))
        for value in (before, entry)
    ]
    return names[0] == names[1] and None not in names[0]
