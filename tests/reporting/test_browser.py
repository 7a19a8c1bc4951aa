"""The real page in headless Chromium: what is drawn, what the map answers, and that hostile names
stay names.
"""

import json
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from example_run import write_run
from PIL import Image

from sureclr.data.sources import load_images
from sureclr.reporting.page import render, write_page
from sureclr.reporting.run_files import read_run_files

pytestmark = pytest.mark.browser

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "'><svg onload=alert(1)>",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "</title><script>alert(2)</script>",
    "--><script>alert(3)</script>",
    "]]>",
    "javascript:alert(1)",
    "\u202egpj.exe",
    "a\nb",
    "tab\there",
    "\u2028line",
    "&lt;b&gt;",
    "${alert(1)}",
    "`id`",
    "$(id)",
    "%00",
    "x" * 180,
    "__proto__",
    "constructor",
    "toString",
    "NaN",
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium, 1200 x 900; skips where there is none."""
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="selenium is not installed: python3 dev.py browser"
    )
    from selenium.webdriver.chrome.service import Service

    binary, driver = (
        shutil.which("chromium") or shutil.which("google-chrome"),
        shutil.which("chromedriver"),
    )
    if not binary or not driver:
        pytest.skip("no Chromium with its driver: python3 dev.py browser")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1200,900",
        "--force-device-scale-factor=1",
        "--force-prefers-reduced-motion",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 images of 12 pixels under hostile names, in folders of hostile names: each image has a
    grey of its own.
    """
    root = tmp_path_factory.mktemp("hostile") / "images"
    for i in range(200):
        name = HOSTILE[i % len(HOSTILE)].replace("/", "\u2215").replace("\0", "")
        group = root / ("<b onclick=alert(1)>cat</b>" if i % 2 else "dog' \"{{config}}")
        group.mkdir(parents=True, exist_ok=True)
        pixels = np.full((12, 12, 3), i + 20, np.uint8)
        pixels[: 1 + i % 11, : 1 + i % 7] = (i * 37 % 256, 255 - i, i * 91 % 256)
        Image.fromarray(pixels).save(group / f"{i:03d} {name}.png")
    return root


@pytest.fixture(scope="module")
def run(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch_module: pytest.MonkeyPatch
) -> Path:
    """A run on these images, made by hand, with its page."""

    monkeypatch_module.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    source = f"folder:{folder}"
    images = load_images(source, size=12)
    out = write_run(tmp_path_factory.mktemp("runs") / "run", images, source)
    write_page(render([read_run_files(out)]), out / "report.html")
    return out


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture
def page(chromium: Any, run: Path) -> Any:
    return opened(chromium, run / "report.html")


def test_json_cannot_end_its_element() -> None:
    """Nothing in it that HTML reads, and JSON gives the same back."""
    from sureclr.reporting.map_data import script_json

    value = {
        "paths": [
            "</script><script>alert(1)</script>",
            "<!-- <script",
            "]]>",
            "&amp;",
            "\u2028\u2029",
        ]
    }
    text = str(script_json(value))
    assert not set(text) & set("<>&\u2028\u2029") and json.loads(text) == value


def opened(chromium: Any, file: Path) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    for log in ("browser", "performance"):
        chromium.get_log(log)  # empties it
    chromium.get(file.resolve().as_uri())
    WebDriverWait(chromium, 30).until(
        lambda b: b.execute_script(
            "return document.querySelector('figure.map')?.dataset.ready === 'true'"
        )
    )
    return chromium


def js(page: Any, code: str, *words: Any) -> Any:
    return page.execute_script(code, *words)


def settled(page: Any) -> None:
    """Two frames later."""
    page.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() =>"
        " done()))"
    )


def pinned(page: Any) -> str:
    settled(page)
    return str(js(page, "return document.querySelector('figure.map').dataset.pinned || ''"))


def data(run: Path) -> dict[str, Any]:
    """The map's rows as the run's own files have them."""
    from pyarrow import parquet

    places = parquet.read_table(run / "map.parquet").to_pydict()
    table = parquet.read_table(
        run / "embeddings.parquet", columns=["path", "label", "certainty"]
    ).to_pydict()
    return {"places": places, "table": table}


def test_a_page_of_hostile_names_requests_nothing_and_reports_no_error(
    page: Any, run: Path
) -> None:
    """No dialog, no request but the file itself, no error, no violation of the content policy."""
    for selector in (
        "[data-colour=certainty]",
        "[data-colour=cluster]",
        "[data-colour=correct]",
        "[data-colour=label]",
    ):
        js(page, "document.querySelector(arguments[0]).click()", selector)
    search = page.find_element("css selector", "input[type=search]")
    search.send_keys("script\n")
    settled(page)
    from selenium.common.exceptions import NoAlertPresentException

    with pytest.raises(NoAlertPresentException):
        _ = page.switch_to.alert.text
    requests = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = {
        message["params"]["request"]["url"]
        for message in requests
        if message["method"] == "Network.requestWillBeSent"
    }
    assert {url for url in urls if not url.startswith("data:")} == {
        (run / "report.html").resolve().as_uri()
    }
    assert page.get_log("browser") == []


def test_names_are_text(page: Any, run: Path) -> None:
    """The names themselves are read in the card, unchanged; no element was made of them."""
    names = data(run)["table"]["path"]
    row = next(i for i, name in enumerate(names) if "onerror" in name)
    search = page.find_element("css selector", "input[type=search]")
    search.send_keys(f"{row}\n")
    assert pinned(page) == str(row)
    assert js(page, "return document.querySelector('.card .path').textContent") == names[row]
    made = "img[onerror], [onclick], [onmouseover], svg[onload], main script:not(.data)"
    assert js(page, "return document.querySelectorAll(arguments[0]).length", made) == 0
    assert "49" not in js(
        page,
        "return document.querySelector('#sees').innerText.match(/\\{\\{ 7 \\* 7 \\}\\}|49"
        " .png/g)?.join() || ''",
    )


def test_the_policy_forbids_what_is_not_the_pages_own(page: Any) -> None:
    js(
        page,
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1';"
        " document.body.append(s)",
    )
    js(page, "const i = new Image(); i.src = 'http://127.0.0.1:9/x.png'; document.body.append(i)")
    assert js(page, "return window.broken === undefined")
    assert any("Content Security Policy" in entry["message"] for entry in page.get_log("browser"))


def bring_to_the_middle(page: Any, row: int) -> None:
    """Of the canvas, by search."""
    search = page.find_element("css selector", "input[type=search]")
    search.clear()
    search.send_keys(f"{row}\n")
    settled(page)


def test_every_point_is_drawn_and_the_legend_filters(page: Any, run: Path) -> None:
    found = data(run)
    n = len(found["places"]["row"])
    settled(page)
    assert js(page, "return document.querySelector('figure.map').dataset.drawn") == str(n)
    labels = [found["table"]["label"][row] for row in found["places"]["row"]]
    js(page, "document.querySelector('.filters button').click()")
    settled(page)
    assert js(page, "return document.querySelector('figure.map').dataset.drawn") == str(
        n - labels.count(0)
    )


def centred(page: Any, row: int) -> Any:
    """The map's canvas, in the middle of the window, with that image in its own middle."""
    bring_to_the_middle(page, row)
    js(
        page,
        "document.querySelector('.plane').scrollIntoView({block: 'center', behavior: 'instant'})",
    )
    return page.find_element("css selector", ".plane canvas")


def clear_selection(page: Any, canvas: Any) -> None:
    js(page, "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))", canvas)


def test_pointing_shows_the_right_image_and_a_click_keeps_it(page: Any, run: Path) -> None:
    """An image brought to the middle by search, let go, and found again under the pointer: its own
    row, path and pixels.
    """
    from selenium.webdriver import ActionChains

    row = data(run)["places"]["row"][3]
    canvas = centred(page, row)
    js(
        page,
        "for (let i = 0; i < 9; i++) arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key:"
        " '+'}))",
        canvas,
    )
    clear_selection(page, canvas)
    assert (
        pinned(page) == ""
        and js(page, "return document.querySelector('.card').dataset.row ?? ''") == ""
    )
    ActionChains(page).move_to_element(canvas).perform()
    settled(page)
    assert (
        js(page, "return document.querySelector('.card').dataset.row") == str(row)
        and pinned(page) == ""
    )
    ActionChains(page).click().perform()
    assert pinned(page) == str(row)
    shown = js(
        page,
        "const c = document.querySelector('.face canvas'); return"
        " [...c.getContext('2d').getImageData(189, 189, 1, 1).data]",
    )
    number = int(data(run)["table"]["path"][row].split("/")[-1][:3])
    assert abs(shown[0] - (number + 20)) <= 12, (
        shown,
        number,
    )  # the corner has the image's own grey


def test_search_finds_rows_names_and_labels(page: Any, run: Path) -> None:
    found = data(run)

    def listed(text: str) -> list[int]:
        search = page.find_element("css selector", "input[type=search]")
        search.clear()
        search.send_keys(
            text or "z\ue003"
        )  # written and taken back: the page hears of a key, not of `clear`
        assert js(page, "return document.querySelector('.matches').hidden") == (text == "")
        return [
            int(row)
            for row in js(
                page,
                "return [...document.querySelectorAll('.matches button')].map((b) =>"
                " b.dataset.row)",
            )
        ]

    names, on_map = found["table"]["path"], found["places"]["row"]
    assert (
        listed("017 ") == [row for row in on_map if "017 " in names[row]]
        and len(listed("017 ")) == 1
    )
    assert listed("12")[0] == 12 and set(listed("12")[1:]) == {
        row for row in on_map if row != 12 and "12" in names[row].lower()
    }
    assert len(listed("png")) == 24  # no more than that
    assert (
        listed("no such name") == []
        and "no image of that name" in page.find_element("css selector", ".matches").text
    )
    assert (
        listed("777777") == []
        and "row 777777 is not on the map" in page.find_element("css selector", ".matches").text
    )
    assert listed("") == []


def test_a_pinch_keeps_what_lies_between_the_fingers(page: Any, run: Path) -> None:
    """Two fingers about an image move apart and aside by 40 pixels: fewer images are left, and a
    touch there still finds that image.
    """
    row = data(run)["places"]["row"][5]
    canvas = centred(page, row)
    clear_selection(page, canvas)
    before = int(js(page, "return document.querySelector('figure.map').dataset.drawn"))
    x, y = js(
        page,
        "const b = arguments[0].getBoundingClientRect(); return [b.left + b.width / 2, b.top +"
        " b.height / 2]",
        canvas,
    )

    def touch(kind: str, *places: tuple[float, float]) -> None:
        points = [{"x": px, "y": py, "id": i} for i, (px, py) in enumerate(places)]
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    apart = [
        (20 + 12 * step, 4 * step) for step in range(11)
    ]  # from 40 pixels to 280, and 40 to the right
    for i, (half, aside) in enumerate(apart):
        touch("touchMove" if i else "touchStart", (x + aside - half, y), (x + aside + half, y))
    touch("touchEnd")
    settled(page)
    assert (
        int(js(page, "return document.querySelector('figure.map').dataset.drawn")) < before
        and pinned(page) == ""
    )
    touch("touchStart", (x + 40, y))
    touch("touchEnd")
    assert pinned(page) == str(row)


def test_neighbours_open(page: Any, run: Path) -> None:
    found = data(run)["places"]
    bring_to_the_middle(page, found["row"][0])
    shown = js(
        page,
        "return [...document.querySelectorAll('.near-list button')].map((b) =>"
        " Number(b.dataset.row))",
    )
    assert shown == found["neighbours"][0]
    js(page, "document.querySelectorAll('.near-list button')[1].click()")
    assert pinned(page) == str(found["neighbours"][0][1])


def test_colours_switch(page: Any) -> None:
    def pixels() -> Any:
        settled(page)
        return js(page, "return document.querySelector('.plane canvas').toDataURL()")

    seen = []
    for name in ("label", "certainty", "cluster", "correct"):
        js(page, "document.querySelector(`[data-colour=${arguments[0]}]`).click()", name)
        assert js(
            page,
            "return [...document.querySelectorAll('[data-colour][aria-pressed=true]')].map((b) =>"
            " b.dataset.colour)",
        ) == [name]
        seen.append(pixels())
    assert len(set(seen)) == 4


def test_the_keyboard_alone_moves_zooms_and_keeps(page: Any) -> None:
    canvas = page.find_element("css selector", ".plane canvas")
    before = js(page, "return document.querySelector('figure.map').dataset.drawn")
    canvas.send_keys(
        "++"
    )  # twice as near: at more the middle can be empty, and then there is nothing to keep
    settled(page)
    assert int(js(page, "return document.querySelector('figure.map').dataset.drawn")) < int(before)
    canvas.send_keys("\ue007")  # Enter
    assert pinned(page) != ""
    assert js(
        page, "return document.querySelector('figure.map [aria-live]').textContent"
    ).startswith("selected ")
    canvas.send_keys("\ue00c0")  # Escape, then 0
    assert pinned(page) == ""
    assert js(page, "return document.querySelector('figure.map').dataset.drawn") == before


def test_a_legend_of_many_classes_stays_small(page: Any) -> None:
    """A thousand more entries scroll within it."""
    js(
        page,
        "const box = document.querySelector('.filters'); for (let i = 0; i < 1000; i++)"
        " box.append(box.firstChild.cloneNode(true))",
    )
    tall, inside = js(
        page,
        "const box = document.querySelector('.filters'); return [box.clientHeight,"
        " box.scrollHeight]",
    )
    assert tall < 200 < inside


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        assert js(page, "return document.documentElement.scrollWidth") <= width
        wide = js(
            page,
            "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.scroll,"
            " svg, .unseen')&& e.getBoundingClientRect().right > innerWidth + 1).map((e) =>"
            " e.className + ':' + e.tagName)",
        )
        assert wide == []
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark(page: Any) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = js(page, colour)
    js(page, "document.getElementById('theme').click()")
    assert js(page, colour) != before
    js(page, "document.getElementById('theme').click()")
    assert js(page, colour) == before


def test_every_figure_has_words(page: Any) -> None:
    """A label on each drawing, an alternative on each picture, one h1, and headings that skip no
    level.
    """
    assert (
        js(
            page,
            "return [...document.querySelectorAll('main svg.chart')].filter((s) =>"
            " !s.getAttribute('aria-label')).length",
        )
        == 0
    )
    assert (
        js(
            page,
            "return [...document.querySelectorAll('main img:not([hidden])')].filter((i) =>"
            " !i.alt).length",
        )
        == 0
    )
    levels = js(
        page,
        "return [...document.querySelectorAll('main h1, main h2, main h3, main h4')].map((h) =>"
        " Number(h.tagName[1]))",
    )
    assert levels.count(1) == 1 and all(b <= a + 1 for a, b in pairwise(levels))
