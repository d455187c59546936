"""Debian's Chromium, driven without a window: pages, pictures, and what a page asked for."""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
PHONE, DESKTOP = 390, 1400  # widths in pixels

# Every visible text of less contrast to what is behind it than WCAG's 4.5 to 1.
LOW_CONTRAST = """
const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.slice(0, 3).map((v) => {
    v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (; element; element = element.parentElement) {
    const colour = parse(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  return [255, 255, 255];
};
const found = [];
for (const element of document.querySelectorAll(arguments[0])) {
  const own = [...element.childNodes].filter((node) => node.nodeType === 3);
  const text = own.map((node) => node.data).join("").trim();
  if (!text || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const colour = element instanceof SVGElement ? style.fill : style.color;
  const levels = [light(parse(colour)), light(behind(element))].sort((a, b) => b - a);
  const contrast = (levels[0] + 0.05) / (levels[1] + 0.05);
  if (contrast < 4.5) found.push([text.slice(0, 40), Math.round(contrast * 100) / 100]);
}
return found;
"""


@contextmanager
def open_browser(profile: Path) -> Iterator[Chrome]:
    """Start a browser with a fresh profile; skip the test where none is installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("chromium and chromedriver (Debian: chromium-driver) are not installed")
    options = ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = Chrome(options, ChromeService(driver))
    try:
        browser.set_script_timeout(30)
        browser.set_page_load_timeout(60)
        yield browser
    finally:
        browser.quit()


def show_as(browser: Chrome, width: int, *, is_dark: bool = False) -> None:
    """Give the page a width, and the reader's choice of a dark scheme."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def picture(browser: Chrome, file: Path) -> None:
    """Write the whole page, not the window alone, as PNG."""
    size = browser.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    options = {"captureBeyondViewport": True, "clip": size | {"scale": 1}}
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", options)
    file.write_bytes(base64.b64decode(shot["data"]))


def requested_hosts(browser: Chrome) -> set[str]:
    """Return the hosts that pages asked over the network since the last call."""
    urls = []
    for entry in browser.get_log("performance"):
        message: dict[str, Any] = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            urls.append(message["params"]["request"]["url"])
        elif message["method"] == "Network.webSocketCreated":
            urls.append(message["params"]["url"])
    network = ("http", "https", "ws", "wss")
    return {urlsplit(url).hostname or "" for url in urls if urlsplit(url).scheme in network}


def errors(browser: Chrome) -> list[str]:
    """Return the severe entries of the console since the last call."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def low_contrast(browser: Chrome, selector: str = "body *") -> list[Any]:
    """Return beginnings of texts that are hard to read, with their contrast."""
    return browser.execute_script(LOW_CONTRAST, selector)


def overflows(browser: Chrome) -> bool:
    """Whether the page as a whole is wider than the window."""
    return browser.execute_script(
        "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    )
