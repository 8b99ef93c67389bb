"""The report in a real browser: on a desktop's and a phone's width, in light and in dark. Needs a Chromium; playwright only drives it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graphs import chain
from reported import write_run
from runs import invoke

pytest.importorskip("matplotlib", reason="matplotlib, the extra `plot`, is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "headless_shell")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (on Debian: apt install chromium)")

PATIENCE = 300_000  # milliseconds: a busy machine is no failure
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

# What a person would trip over, found by the browser itself: a list of texts for each kind of fault.
LOOK = """() => {
  const shown = (e) => e.getClientRects().length && getComputedStyle(e).visibility !== "hidden";
  const rgb = (colour) => {
    const numbers = colour.match(/[\\d.]+/g).map(Number);
    const whole = colour.startsWith("color(srgb") ? 255 : 1;
    return [...numbers.slice(0, 3).map((n) => whole * n), numbers[3] ?? 1];
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) return colour;
    }
    return [255, 255, 255, 1];
  };
  const light = (colour) => {
    const [r, g, b] = colour.slice(0, 3).map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, two) => {
    const [low, high] = [light(one), light(two)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const wordless = ["SCRIPT", "STYLE", "title", "OPTION"];
  const own = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const words = [...document.body.querySelectorAll("*")].filter((e) => shown(e) && !wordless.includes(e.tagName) && own(e));
  const ink = (e) => rgb(e.closest("svg") ? getComputedStyle(e).fill : getComputedStyle(e).color);
  const found = { faint: [], small: [], cut: [], overlapping: [] };
  for (const e of words) {
    if (contrast(ink(e), behind(e)) < 4.5) found.faint.push(e.textContent);
    const svg = e.closest("svg");
    const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
    if (parseFloat(getComputedStyle(e).fontSize) * scale < 9) found.small.push(e.textContent);
  }
  for (const svg of [...document.querySelectorAll("svg")].filter(shown)) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map((e) => [e.textContent, e.getBoundingClientRect()]);
    texts.forEach(([text, box], index) => {
      const inside = box.left > frame.left - 1 && box.right < frame.right + 1 && box.top > frame.top - 1 && box.bottom < frame.bottom + 1;
      if (!inside) found.cut.push(text);
      for (const [other, place] of texts.slice(index + 1)) {
        const wide = Math.min(box.right, place.right) - Math.max(box.left, place.left);
        const high = Math.min(box.bottom, place.bottom) - Math.max(box.top, place.top);
        if (wide > 1 && high > 2.5) found.overlapping.push(text + " / " + other);
      }
    });
  }
  return { ...found, texts: words.length, overflow: document.documentElement.scrollWidth - innerWidth };
}"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, one of them with a branch that goes."""
    folder = tmp_path_factory.mktemp("runs").resolve()
    write_run(folder, "pruned")
    write_run(folder, "chain-with-quite-a-long-name-2026", {0: chain(), 3: chain()})
    assert (
        invoke("report", "pruned", "chain-with-quite-a-long-name-2026", "--output-dir", folder, "-o", folder / "page.html").exit_code == 0
    )
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"], timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Any, report: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in a window of a size and a colour scheme. At the end: it asked for nothing but itself, and complained of nothing."""
    size, scheme = request.param
    context = browser.new_context(viewport=size, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    asked, complaints = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(report.as_uri())
    yield page
    context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]


EVERYWHERE = [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light"), (PHONE, "dark")]


@pytest.mark.parametrize("opened", EVERYWHERE, indirect=True, ids=["desktop-light", "desktop-dark", "phone-light", "phone-dark"])
def test_everything_can_be_read(opened: Any) -> None:
    found = opened.evaluate(LOOK)
    assert found.pop("texts") > 200
    assert found == {"faint": [], "small": [], "cut": [], "overlapping": [], "overflow": 0}


@pytest.mark.parametrize("opened", [(DESKTOP, "light"), (PHONE, "dark")], indirect=True, ids=["desktop", "phone"])
def test_one_heat_map_a_run_is_shown_and_the_paper_follows_the_scheme(opened: Any, request: pytest.FixtureRequest) -> None:
    phone = opened.viewport_size["width"] == PHONE["width"]
    assert [opened.locator(kind).first.is_visible() for kind in (".wide", ".narrow")] == [not phone, phone]
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == ("rgb(20, 24, 29)" if phone else "rgb(255, 255, 255)")


@pytest.mark.parametrize("opened", [(DESKTOP, "light")], indirect=True, ids=["desktop"])
def test_any_two_networks_side_by_side(opened: Any) -> None:
    section = opened.locator(".files").first
    assert "layer1_0_conv1" in section.locator(".old").all_inner_texts()[1]
    section.locator(".right").select_option(label="epoch_002.py")
    assert section.locator(".old mark").all_inner_texts()[:2] == ["8", "8"]  # conv and BatchNorm of layer1.0
    assert section.locator(".new mark").all_inner_texts()[:2] == ["3", "3"]
    section.locator(".left").select_option(label="epoch_002.py")
    assert section.locator(".found").inner_text() == "0 lines differ"
    assert section.locator(".pair").count() == 0
    section.locator(".right").select_option(label="epoch_004.py")
    gone = [text for text in section.locator(".old").all_inner_texts() if "layer1_0_conv1 =" in text]
    assert [text.strip() for text in gone] == [
        "self.layer1_0_conv1 = nn.Conv2d(8, 3, kernel_size=3, padding=1, bias=False)  # 3x8x8, was 8"
    ]
    fewer = section.locator(".pair").count()
    section.locator(".changes").uncheck()
    assert section.locator(".pair").count() > fewer
    assert section.locator(".gap").count() == 0
