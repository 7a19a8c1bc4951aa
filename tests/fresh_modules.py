"""Import our modules anew while others cannot be imported, in this process.

A process of its own would need 1.4 CPU seconds to import torch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def fresh_modules(*blocked: str) -> Iterator[None]:
    """Within it every module of ours is imported anew, and importing a blocked module fails.

    Afterwards the modules are those of before.
    """

    def is_concerned(module: str) -> bool:
        return any(f"{module}.".startswith(f"{name}.") for name in ("sureclr", *blocked))

    def remove() -> None:
        for name in filter(is_concerned, list(sys.modules)):
            del sys.modules[name]

    before = {name: module for name, module in sys.modules.items() if is_concerned(name)}
    remove()
    sys.modules.update(dict.fromkeys(blocked))  # type: ignore[arg-type]
    try:
        yield
    finally:
        remove()
        sys.modules.update(before)
