"""Both reports as a reader meets them: with a keyboard, in a dark room, on a phone."""

import pytest
from browser import (
    DESKTOP,
    PHONE,
    errors,
    low_contrast,
    open_browser,
    overflows,
    requested_hosts,
    show_as,
)
from selenium.webdriver import ActionChains, Keys
from test_comparison_report import make_evidence, make_folder
from test_report import make_run

from agr_trl.comparison_report import write_comparison_report
from agr_trl.report import write_report

pytestmark = pytest.mark.slow

# What a reader should reach by Tab, in the order of the page.
STOPS = """
return [...document.querySelectorAll("summary, [tabindex='0']")]
  .filter((element) => element.checkVisibility())
  .map((element) => element.getAttribute("aria-label") || element.textContent.trim())
"""
FOCUS = """
const here = document.activeElement, style = getComputedStyle(here);
return {
  name: here.getAttribute("aria-label") || here.textContent.trim(),
  seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(params=["report", "comparison"])
def address(request, tmp_path):
    if request.param == "report":
        return write_report(make_run(tmp_path / "run")).as_uri()
    return write_comparison_report(make_folder(tmp_path / "run", make_evidence())).as_uri()


def press(browser, key):
    ActionChains(browser).send_keys(key).perform()


def test_page_is_reached_by_keyboard_in_its_own_order(browser, address):
    show_as(browser, DESKTOP)
    browser.get(address)
    stops = browser.execute_script(STOPS)
    assert len(stops) >= 8
    reached = []
    for _ in stops:
        press(browser, Keys.TAB)
        reached.append(browser.execute_script(FOCUS))
    assert [stop["name"] for stop in reached] == stops
    assert all(stop["seen"] for stop in reached), reached


def test_details_open_and_close_by_keyboard(browser, address):
    browser.get(address)
    is_open = "return arguments[0].parentElement.open"
    summary = browser.execute_script("return document.querySelector('details:not([open]) summary')")
    browser.execute_script("arguments[0].focus()", summary)
    press(browser, Keys.ENTER)
    assert browser.execute_script(is_open, summary)
    press(browser, Keys.SPACE)
    assert not browser.execute_script(is_open, summary)


@pytest.mark.parametrize("is_dark", [False, True])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_every_text_is_readable_in_both_schemes(browser, address, width, is_dark):
    show_as(browser, width, is_dark=is_dark)
    browser.get(address)
    browser.execute_script("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper.strip("rgb()").split(","))) < 200) == is_dark
    assert low_contrast(browser) == []
    assert not overflows(browser)


def test_page_asks_nobody_and_has_nothing_to_complain_of(browser, address):
    requested_hosts(browser), errors(browser)  # of earlier pages
    browser.get(address)
    assert requested_hosts(browser) == set()
    assert errors(browser) == []
