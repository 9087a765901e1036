"""The page of `--report` in a real browser: sorted, filtered, compared, by keyboard, in light, dark and narrow windows."""

import json
import re

import pytest

from pipeline.report.page import HERE, write_report
from tests.helpers.browser import Browser, find_browser
from tests.helpers.paths import ROOT
from tests.helpers.runs import HOSTILE, write_hostile_runs, write_metrics, write_run

PROGRAM = find_browser()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium or Chrome (apt-get install chromium)")
TAB, ENTER, SPACE, RIGHT, END = ("Tab", 9), ("Enter", 13), (" ", 32), ("ArrowRight", 39), ("End", 35)
VIEWS = ("table", "tradeoffs", "style", "curves", "compare", "run")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the page of all runs in results/."""
    return write_report([ROOT / "results"], tmp_path_factory.mktemp("page") / "report.html")[0]


@pytest.fixture(scope="module")
def started():
    """Return a browser for all tests."""
    browser = Browser(PROGRAM)
    yield browser
    browser.close()


@pytest.fixture
def browser(started):
    """Return the browser. Afterwards no page may have complained in its console, or loaded anything but itself."""
    started.look(1280)
    yield started
    assert started.errors == []
    assert {url.split("#")[0].rpartition("/")[2] for url in started.requests} <= {"report.html", "about:blank"}


def all_of(browser, selector: str, what: str) -> list:
    """Return a property of each element that a selector finds."""
    return browser.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.{what})")


def column(browser, key: str) -> list[str]:
    """Return the texts of a column of the table, from top to bottom."""
    number = all_of(browser, "#runs thead button", "title").index(key)
    return all_of(browser, "#runs tbody tr", f"cells[{number}].textContent")


def sort(browser, key: str) -> str:
    """Click on a heading. Return what it then says of its order."""
    browser.run(f"document.querySelector('#runs thead button[title={key}]').click()")
    return browser.run(f"document.querySelector('#runs thead button[title={key}]').parentElement.ariaSort")


def filter_by(browser, text: str) -> str:
    """Type into the filter's box. Return what stands beside it."""
    set_value = f"const box = document.getElementById('filter'); box.value = {json.dumps(text)}; box"
    browser.run(f"{{ {set_value}.dispatchEvent(new Event('input')) }}")
    return browser.run("document.getElementById('found').textContent")


def go(browser, view: str) -> None:
    """Go to a view of the page."""
    browser.run(f"location.hash = {json.dumps('#' + view)}")


def text_of(browser, selector: str) -> str:
    """Return the text that can be seen of an element."""
    return browser.run(f"document.querySelector({json.dumps(selector)}).innerText")


def focused(browser, what: str = "textContent") -> str:
    """Return the text of what has the focus, or another property."""
    return browser.run(f"document.activeElement.{what}")


# --- the page of results/


def test_it_opens_from_disk_and_sorts(results, browser):
    assert browser.open(results) < 10
    numbers = len([*(ROOT / "results").rglob("result.json")])
    assert text_of(browser, "#found") == f"{numbers} of {numbers} runs"
    assert sort(browser, "test_accuracy") == "descending"
    shown = column(browser, "test_accuracy")
    values = [float(text) for text in shown if text]
    assert len(values) > 150 and values == sorted(values, reverse=True) and "" not in shown[: len(values)]
    assert sort(browser, "test_accuracy") == "ascending"
    assert [float(text) for text in column(browser, "test_accuracy") if text] == values[::-1]
    assert sort(browser, "total_seconds") == "ascending"
    seconds = [float(text.replace(",", "")) for text in column(browser, "total_seconds")]
    assert seconds == sorted(seconds)
    orders = all_of(browser, "#runs thead th", "ariaSort")
    assert sorted(orders) == ["ascending", *["none"] * (len(orders) - 1)]


def test_it_filters(results, browser):
    browser.open(results)
    n = int(filter_by(browser, "lora dataset=spam").split()[0])
    assert 0 < n == len(column(browser, "method")) < 218
    assert {*column(browser, "method")} == {"lora"} and {*column(browser, "dataset")} == {"spam"}
    filter_by(browser, "test_accuracy>97 dataset!=spam-pocket")
    assert all(float(text) > 97 for text in column(browser, "test_accuracy"))
    assert "spam-pocket" not in column(browser, "dataset")
    assert filter_by(browser, "learning_rate=0.0002").split()[0] != "0"  # a setting without a column
    assert filter_by(browser, "nothing=1") == "no run has “nothing”"
    assert filter_by(browser, '"no such words"').startswith("0 of ")
    for view in VIEWS:  # a view of no runs says so
        go(browser, view)


def test_rows_keep_their_places_while_they_come_and_go(results, browser):
    browser.open(results)
    where = "[...document.querySelectorAll('#runs th')].map((one) => Math.round(one.getBoundingClientRect().x))"
    top = "document.querySelector('#runs').getBoundingClientRect().y"
    before = browser.run(where), browser.run(top)
    for text in ("lora", "spam seed=124", "zzz"):
        filter_by(browser, text)
        assert (browser.run(where), browser.run(top)) == before
    filter_by(browser, "")
    browser.run("document.querySelector('.scroll').scrollTop = 3000")
    browser.run("document.querySelectorAll('#runs tbody input')[100].click()")
    assert browser.run("document.querySelector('.scroll').scrollTop") == 3000


def test_seeds_become_one_line(results, browser):
    browser.open(results)
    filter_by(browser, "dataset=spam method=last_layer model=gpt2-pocket")
    single = [float(text) for text in column(browser, "test_accuracy")]
    browser.run("document.getElementById('grouped').click()")
    assert column(browser, "seed") == ["123, 124, 125"]
    mean, std = map(float, column(browser, "test_accuracy")[0].split(" ± "))
    assert mean == pytest.approx(sum(single) / 3, abs=0.01)
    assert std == pytest.approx((sum((one - mean) ** 2 for one in single) / 2) ** 0.5, abs=0.01)


def test_two_runs_are_chosen_and_compared(results, browser):
    browser.open(results)
    filter_by(browser, "minilm-sst2/lora-seed")
    for number in (0, 1):
        browser.run(f"document.querySelectorAll('#runs tbody input')[{number}].click()")
    assert text_of(browser, "#selected").startswith("2 selected")
    go(browser, "compare")
    differ = text_of(browser, "#compare .plain").split("\n")
    assert "seed\t42\t43" in differ and not [line for line in differ if line.startswith("lora_rank")]
    results_of = browser.run("document.querySelectorAll('#compare .plain')[1].innerText")
    accuracy = re.search(r"validation accuracy \(%\)\t([\d.]+)\t([\d.]+)\t([+-]?[\d.]+)", results_of)
    assert float(accuracy[3]) == pytest.approx(float(accuracy[2]) - float(accuracy[1]), abs=0.011)
    go(browser, "curves")
    assert len(all_of(browser, "#curves svg path", "tagName")) == 4
    assert "lora-seed42" in text_of(browser, "#curves .legend") and "lora-seed43" in text_of(browser, "#curves .legend")


def test_the_front_is_marked(results, browser):
    browser.open(results, "#tradeoffs")
    assert browser.run("document.querySelectorAll('#tradeoffs figure').length") == 3
    for number in (1, 2, 3):
        figure = f"#tradeoffs figure:nth-child({number})"
        marked, listed = (all_of(browser, f"{figure} {what}", "tagName") for what in (".ring", "tbody tr"))
        assert len(marked) == len(listed) > 0


def test_marks_of_the_chat_table_tell_their_rows_apart(results, browser):
    browser.open(results, "#style")
    filter_by(browser, "chat-shipped num_epochs=10")
    looks = browser.run(
        "[...document.querySelectorAll('#style svg a .mark')].map((one) => [one.tagName, one.getAttribute('stroke'), "
        "one.getAttribute('fill'), (one.getAttribute('points') ?? '').split(' ').map((pair) => pair.split(',').map(Number))"
        ".map(([x, y], _, all) => [(x - all[0][0]).toFixed(0), (y - all[0][1]).toFixed(0)].join())].join())"
    )
    assert len(looks) == 22 and len({tuple(map(str, look)) for look in looks}) == 22  # the rows of the plan
    legend = text_of(browser, "#style .legends")
    for word in ("freeze mlp", "freeze qkv", "lora mlp", "lora qkv", "prefix", "first3", "last3", "all", "with", "without"):
        assert word in legend.split("\n")


def test_numbers_lead_to_command_and_files(results, browser):
    browser.open(results)
    filter_by(browser, "spam-row10/seed123")
    browser.run("document.querySelector('#runs td.number a').click()")
    assert text_of(browser, "#run h2") == "spam-row10/seed123"
    result = json.loads((ROOT / "results/spam-row10/seed123/result.json").read_text())
    command = text_of(browser, "#run pre")
    assert command.startswith("python experiments.py --") and result["argv"][-1] in command
    assert (ROOT / "results/spam-row10/seed123/result.json").as_uri() in all_of(browser, "#run .files a", "href")
    browser.run("history.back()")
    assert browser.run("document.getElementById('table').hidden") is False


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_view_fits_its_window_in_light_and_dark(results, browser, width, dark):
    browser.look(width, dark=dark)
    browser.open(results)
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == dark
    for view in VIEWS:
        go(browser, view)
        assert browser.run(f"document.getElementById('{view}').hidden") is False
        assert browser.run("document.documentElement.scrollWidth") <= width, view
        assert browser.run(f"document.getElementById('{view}').innerText.length") > 100


CONTRAST = """
(() => {
  const luminance = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((one) => one / 255);
    const [r, g, b] = parts.map((one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const probe = document.body.appendChild(document.createElement("i"));
  const colour = (name) => { probe.style.color = `var(--${name})`; return luminance(getComputedStyle(probe).color); };
  const ratio = (one, two) => {
    const [a, b] = [colour(one), colour(two)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = ["text", "soft", "link", "warn", "bad"];
  const marks = ["blue", "orange", "green", "purple", "sky", "yellow", "black", "brown"];
  const ratios = texts.flatMap((one) => ["ground", "raised", "chosen"].map((two) => [one, ratio(one, two), 4.5]));
  return [...ratios, ...marks.map((one) => [one, ratio(one, "ground"), 3])].filter(([, found, least]) => found < least);
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(results, browser, dark):
    browser.look(1280, dark=dark)
    browser.open(results)
    assert browser.run(CONTRAST) == []


def test_the_keyboard_is_enough(results, browser):
    browser.open(results)
    browser.press(*TAB)
    assert focused(browser) == "Table"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press(*RIGHT)
    assert focused(browser) == "Trade-offs" and browser.run("location.hash") == "#tradeoffs"
    browser.press(*END)
    assert focused(browser) == "One run"
    browser.press(*RIGHT)  # round to the first
    assert focused(browser) == "Table"
    browser.press(*TAB)
    assert focused(browser, "id") == "filter"
    for letter in "persona":
        browser.press(letter, ord(letter.upper()))
    assert {*column(browser, "dataset")} == {"persona"}
    while focused(browser, "title") != "name":
        browser.press(*TAB)
    browser.press(*ENTER)  # by name, downwards; the heading keeps the focus
    assert focused(browser, "title") == "name" and focused(browser, "parentElement.ariaSort") == "descending"
    while focused(browser, "type") != "checkbox":
        browser.press(*TAB)
    browser.press(*SPACE)
    assert text_of(browser, "#selected").startswith("1 selected") and focused(browser, "checked") is True
    browser.press(*TAB)
    browser.press(*ENTER)
    assert browser.run("location.hash").startswith("#run/") and focused(browser, "tagName") == "H2"


# --- hostile runs


@pytest.fixture
def hostile(tmp_path):
    return write_report([write_hostile_runs(tmp_path / "runs")])[0]


def test_texts_stay_texts(hostile, browser):
    browser.open(hostile)
    assert browser.run("document.querySelectorAll('script').length") == 2
    for row in browser.run("[...document.querySelectorAll('#runs tbody a')].map((one) => one.getAttribute('href'))"):
        go(browser, row[1:])
    for view in VIEWS:
        go(browser, view)
    assert browser.run("document.title").startswith("Runs below ") and browser.run("document.images.length") == 0
    go(browser, "run/sound-123")
    visible = HOSTILE.replace("\u2028", "").replace("\u2029", "")
    assert visible in text_of(browser, "#run").replace("\u2028", "").replace("\u2029", "")
    assert "75.00" not in text_of(browser, "#run") and "33.33" in text_of(browser, "#run")  # F1 in per cent
    assert all_of(browser, ".matrix tbody td", "textContent") == ["3", "1", "2", "2"]
    assert "the loss isn't finite at step 2" in text_of(browser, "#run")


def test_what_is_broken_is_named(hostile, browser):
    browser.open(hostile)
    browser.run("document.querySelector('#problems').open = true")
    said = text_of(browser, "#problems")
    assert "6 runs are unfinished or damaged" in said and "list: result.json is a list, which no run writes" in said
    filter_by(browser, "state=broken")
    assert column(browser, "state") == ["broken"] * 5
    filter_by(browser, "")
    sort(browser, "test_accuracy")
    shown = column(browser, "test_accuracy")
    assert shown[:2] == ["91.24", "91.23"] and shown.index("NaN") < shown.index("")  # behind the numbers, before nothing


def test_one_run_and_ten_thousand_steps(tmp_path, browser):
    directory = write_metrics(write_run(tmp_path / "a"), [{"loss": 9 / step} for step in range(1, 10_001)])
    page, _ = write_report([directory])
    browser.open(page, "#curves")
    assert "of 10,000 points" in text_of(browser, "#curves")
    for view in VIEWS:
        go(browser, view)


def test_a_table_of_very_many_runs_begins_with_some(tmp_path, browser):
    for number in range(510):
        write_run(tmp_path / f"{number:03}")
    browser.open(write_report([tmp_path])[0])
    assert len(column(browser, "dataset")) == 500 and "show 10 more" in text_of(browser, "#more")
    browser.run("document.getElementById('more').click()")
    assert len(column(browser, "dataset")) == 510 and browser.run("document.getElementById('more').hidden")


def test_a_script_that_was_changed_does_not_run(tmp_path, browser):
    page, _ = write_report([write_run(tmp_path / "a")])
    page.write_text(page.read_text(encoding="utf-8").replace('"use strict"', '"use  strict"'), encoding="utf-8")
    browser.open(page)
    assert "Content Security Policy" in browser.errors.pop() and text_of(browser, "#summary") == ""


HTML_FROM_TEXT = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|eval\(|new Function"


def test_the_scripts_make_no_html_of_texts_and_load_nothing():
    for file in HERE.glob("*.js"):
        assert not re.findall(
            HTML_FROM_TEXT + r"|fetch\(|XMLHttp|https?://(?!www\.w3\.org)", file.read_text(encoding="utf-8")
        )
