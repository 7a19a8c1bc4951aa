"""The one-page example runs, and learns something even in a few epochs."""

import runpy
from pathlib import Path

PAGE = Path(__file__).parent.parent / "examples" / "simclr_on_one_page.py"


def test_one_page_learns() -> None:
    main = runpy.run_path(str(PAGE))["main"]
    assert main(["--epochs", "4"]) > main(["--epochs", "0"])  # 0: the untrained encoder


def test_one_page_is_one_page() -> None:
    assert len(PAGE.read_text().splitlines()) <= 80
