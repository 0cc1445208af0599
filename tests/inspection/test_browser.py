"""The page of single tokens in a headless Chromium: what is shown is the record, and everything can be reached."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import browser
from benchmarks.inspect_page import step_record as random_record
from cppo_verl.inspection.page import write_page
from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import CAPPED, PREFIX, TOKEN, StepRecord
from tests.inspection.records import sentence, step_record
from tests.reporting.own_runs import write_own
from tests.reporting.pages import reported

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=f"THE PAGES ARE NOT TESTED: {browser.missing()}")

SHOWN = "return document.body.dataset.shown"
ODD = [
    "A",
    "\n",
    "\n\n",
    "\t",
    " ",
    "  ",
    "",
    "",
    "答",
    "\u202eabc",
    "\x00",
    "<b>&amp;",
    "</i>",
    "e\u0301",
    "👩‍🚀",
    "end",
]


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as found:
        yield found


class Book:
    """A page of these steps, open in the browser."""

    def __init__(self, driver, folder: Path, records: list[StepRecord], fragment: str = ""):
        self.driver, self.records = driver, records
        for record in records:
            files.write(folder, record)
        self.page = folder / "inspect.html"
        write_page(folder, self.page)
        self.open(fragment)

    def open(self, fragment: str = "") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.page.as_uri() + fragment)
        self.wait("document.body.dataset.shown !== undefined || !document.getElementById('trouble').hidden")

    def js(self, code: str, *arguments):
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: str) -> None:
        look = f"(function look() {{ ({condition}) ? setTimeout(done) : setTimeout(look, 5); }})()"
        self.driver.set_script_timeout(30)
        self.driver.execute_async_script(f"const done = arguments[0]; {look};")

    def press(self, keys: str) -> None:
        """Keys as a user presses them, on whatever has the focus; waits for the response that they ask for."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(keys).perform()
        self.settle()

    def settle(self) -> None:
        self.wait(
            "document.body.dataset.shown === (document.querySelector('#list [aria-current=true]') || {dataset: "
            "{i: document.body.dataset.shown}}).dataset.i"
        )

    def choose(self, name: str, text: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.driver.find_element("id", name)).select_by_visible_text(text)
        self.settle()

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", selector)

    def listed(self) -> list[int]:
        return [int(i) for i in self.js("return [...document.querySelectorAll('#list button')].map(b => b.dataset.i)")]

    @property
    def shown(self) -> int:
        return int(self.js(SHOWN))

    @property
    def picked(self) -> int | None:
        """The number of the token that is picked, from 0."""
        return self.js(
            "const t = document.querySelector('#text .picked'); if (!t) return null;"
            "return Number(t.parentNode.dataset.start) + [...t.parentNode.children].indexOf(t)"
        )

    def numbers(self) -> dict[str, float]:
        """The numbers of the token that is picked or pointed at."""
        cells = "[...document.querySelectorAll('#token dl div')].map(d => [...d.children].map(c => c.innerText))"
        rows = self.js(f"return {cells}")
        return {name: float(value.replace("\u2212", "-")) for name, value in rows}

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    @property
    def responses(self):
        return [response for record in self.records for response in record.responses]


@pytest.fixture(scope="module")
def book(driver, tmp_path_factory) -> Book:
    """Two steps of four responses with texts of different length, of both signs of A."""
    signs = ((0.5, -1.0, 2.0, -0.25), (1.0, -2.0, 0.0, 0.75))
    common = {"moved": 0.8, "tools": 2, "epochs": 2}
    texts = {step: [sentence(40 * (i + 1), 10 * step + i) for i in range(4)] for step in (1, 2)}
    records = [step_record(texts[step], signs[step - 1], step=step, **common) for step in (1, 2)]
    return Book(driver, tmp_path_factory.mktemp("book"), records)


@pytest.fixture
def fresh(book) -> Book:
    browser.screen(book.driver)
    book.open()
    return book


def spans(book: Book) -> list[dict]:
    return book.js(
        "return [...document.querySelectorAll('#text i')].map(e => ({text: e.textContent, classes: [...e.classList]}))"
    )


def test_the_text_and_its_marks_are_the_record(fresh):
    response, header = fresh.responses[0], fresh.records[0].header
    (of, *_) = numbers.of(header, fresh.records[0].responses)
    found = spans(fresh)
    assert [span["text"] for span in found] == response.pieces
    levels = [int(next((c[1:] for c in span["classes"] if re.fullmatch("d[0-9]+", c)), -1)) for span in found]
    for t, (span, own) in enumerate(zip(found, response.mask, strict=True)):
        assert ("tool" in span["classes"]) == (not own)
        if not own:
            continue
        gate, cause = response.first.gate[t], response.first.cause[t]
        assert ("own" in span["classes"]) == (gate < 1 and cause == TOKEN)
        assert ("prefix" in span["classes"]) == (gate < 1 and cause == PREFIX)
        assert ("capped" in span["classes"]) == (gate == 1 and cause == CAPPED)
        assert ("over" in span["classes"]) == (of.spent[t] > of.allowance[t])
    order = np.argsort(of.divergence[response.mask], kind="stable")
    assert (np.diff(np.array(levels)[response.mask][order]) >= 0).all() and max(levels) == 15
    assert any("prefix" in s["classes"] for s in found) and any("own" in s["classes"] for s in found)
    assert fresh.complaints() == []


def test_the_numbers_of_every_token_are_those_of_the_rule(fresh):
    response, header = fresh.responses[0], fresh.records[0].header
    (of, *_) = numbers.of(header, fresh.records[0].responses)
    for t in range(response.length):
        fresh.js("document.querySelectorAll('#text i')[arguments[0]].click()", t)
        assert fresh.picked == t
        said, found = fresh.text("#token .which"), fresh.numbers()
        assert said.startswith(f"{t + 1} of {response.length}") and f"id {response.token_ids[t]}" in said
        if not response.mask[t]:
            assert "not the policy's own token" in said and list(found) == ["log μ"]
            continue
        expected = {
            "D": of.divergence[t], "w": of.weight[t], "w·D": of.weight[t] * of.divergence[t], "δ": 0.15,
            "S spent": of.spent[t], "allowed": of.allowance[t], "log μ": response.log_mu[t],
            "log π": response.first.log_pi[t], "ρ": of.ratio[t], "A": response.advantages[t],
        }  # fmt: skip
        # log pi is shown as log mu and the step from it, in a decimal place that both of them know
        finest = 10 * 2.0**-13 * float(2 * abs(response.log_mu[t]) + abs(response.first.log_pi[t]))
        assert found == {name: pytest.approx(value, rel=6e-3, abs=finest) for name, value in expected.items()}
        assert verdict(response, of, t) in said


def verdict(response, of, t: int) -> str:
    if response.first.gate[t] == 0:
        return "masked: own threshold" if response.first.cause[t] == TOKEN else "masked: prefix budget"
    if response.first.cause[t] == CAPPED:
        return "importance weight was cut"
    over = of.weight[t] * of.divergence[t] > 0.15 or of.spent[t] > of.allowance[t]
    return "kept over its limit: it moves back toward the rollout" if over else "kept"


def test_facts_and_list_count_what_was_masked(fresh):
    response = fresh.responses[0]
    facts = dict(line.split("\n") for line in re.findall(r"[^\n]+\n[^\n]+", fresh.text("#facts")))
    masked = {cause: int(((response.first.cause == cause) & response.mask).sum()) for cause in (TOKEN, PREFIX)}
    assert (facts["Own threshold"], facts["Prefix budget"]) == (str(masked[TOKEN]), str(masked[PREFIX]))
    assert facts["A"] == "+0.500" and facts["Tokens"] == "38 of 40 its own" and facts["Update"] == "1 of 4"
    share = 100 * sum(masked.values()) / 38
    assert f"{share:.1f}".removesuffix(".0") + "% masked" in fresh.text("#list li")
    assert "Prompt 0 & <b>why</b>?" in fresh.js("return document.querySelector('#prompt .words').textContent")


def test_filters_and_order(fresh):
    assert fresh.listed() == [0, 1, 2, 3]
    fresh.choose("sign", "A < 0")
    assert fresh.listed() == [1, 3] and fresh.shown == 1
    fresh.choose("step", "all steps")
    assert fresh.listed() == [1, 3, 5] and "step 2" in fresh.text("#list li:nth-child(3)")
    fresh.choose("order", "longest")
    assert fresh.listed() == [3, 1, 5]
    fresh.choose("sign", "any sign")
    fresh.choose("order", "most masked")
    shares = [float((1 - r.first.gate[r.mask]).mean()) for r in fresh.responses]
    assert [shares[i] for i in fresh.listed()] == sorted(shares, reverse=True)
    fresh.choose("order", "largest D")
    largest = [float(n.divergence.max()) for rec in fresh.records for n in numbers.of(rec.header, rec.responses)]
    assert [largest[i] for i in fresh.listed()] == sorted(largest, reverse=True)
    fresh.choose("step", "2")
    assert sorted(fresh.listed()) == [4, 5, 6, 7] and "Step 2" in fresh.text("#name")


def test_a_filter_that_nothing_passes_says_so(driver, tmp_path):
    book = Book(driver, tmp_path, [step_record([sentence(5)], (1.0,))])
    book.choose("sign", "A < 0")
    assert book.listed() == [] and book.text("#count") == "No response of this step has A < 0."


def test_every_key_does_what_the_dialog_says(fresh):
    from selenium.webdriver.common.keys import Keys

    fresh.press("j")
    assert fresh.shown == 1
    fresh.press("jk")
    assert fresh.shown == 1
    fresh.press("]")
    assert fresh.shown == 4 and "Step 2" in fresh.text("#name")
    fresh.press("[")
    assert fresh.shown == 0
    fresh.press("-")
    assert fresh.listed() == [1, 3]
    fresh.press("+")
    assert fresh.listed() == [0, 2] and fresh.shown == 0
    fresh.press("0l")
    assert fresh.listed() == [3, 2, 1, 0]
    fresh.press("m")
    by_share = fresh.listed()
    fresh.press("d")
    by_size = fresh.listed()
    fresh.press("o")
    assert sorted(by_share) == sorted(by_size) == fresh.listed() == [0, 1, 2, 3]
    fresh.js("document.querySelector('#list button[data-i=\"0\"]').click()")
    fresh.settle()
    fresh.press(Keys.ARROW_RIGHT * 3)
    assert fresh.picked == 2
    fresh.press(Keys.ARROW_LEFT)
    assert fresh.picked == 1
    fresh.press(Keys.END)
    assert fresh.picked == 39
    fresh.press(Keys.HOME)
    assert fresh.picked == 0
    masked = [t for t in range(40) if fresh.responses[0].mask[t] and fresh.responses[0].first.gate[t] < 1]
    fresh.press("nn")
    assert fresh.picked == masked[1]
    fresh.press("N")
    assert fresh.picked == masked[0]
    fresh.press(Keys.ESCAPE)
    assert fresh.picked is None and "Point at a token" in fresh.text("#token")
    fresh.press("?")
    assert fresh.js("return document.getElementById('keys').open")
    fresh.press("j" + Keys.ESCAPE)
    assert not fresh.js("return document.getElementById('keys').open") and fresh.shown == 0


def test_the_last_update_is_a_key_away(fresh):
    first = fresh.text("#facts")
    fresh.press("u")
    assert fresh.js("return document.getElementById('look').selectedOptions[0].text") == "last, number 2"
    response = fresh.responses[0]
    masked = int(((response.last.cause == PREFIX) & response.mask).sum())
    assert f"Prefix budget\n{masked}\n" in fresh.text("#facts") and "Update\n2 of 4" in fresh.text("#facts")
    fresh.press("u")
    assert fresh.text("#facts") == first


def test_pointing_shows_a_token_and_leaving_gives_the_picked_one_back(fresh):
    from selenium.webdriver.common.action_chains import ActionChains

    fresh.press("n")
    kept = fresh.text("#token")
    tokens = fresh.driver.find_elements("css selector", "#text i")
    ActionChains(fresh.driver).move_to_element(tokens[5]).perform()
    assert fresh.text("#token .which").startswith("6 of 40")
    ActionChains(fresh.driver).move_to_element(fresh.driver.find_element("id", "name")).perform()
    assert fresh.text("#token") == kept


def test_the_plot_is_on_the_axis_of_the_tokens(fresh):
    from selenium.webdriver.common.action_chains import ActionChains

    canvas = fresh.driver.find_element("id", "plot")
    left, right = 44, canvas.size["width"] - 10  # of the drawn axis
    for t in (0, 17, 39):
        x = left + (right - left) * (t + 0.5) / 40 - canvas.size["width"] / 2
        ActionChains(fresh.driver).move_to_element_with_offset(canvas, round(x), 30).perform()
        assert fresh.text("#token .which").startswith(f"{t + 1} of 40")
    ActionChains(fresh.driver).move_to_element_with_offset(canvas, round(x), 30).click().perform()
    assert fresh.picked == 39
    (of, *_) = numbers.of(fresh.records[0].header, fresh.records[0].responses)
    said = [float(x) for x in re.findall(r"[0-9.]+[0-9]", canvas.get_attribute("aria-label"))]
    assert said == [pytest.approx(of.spent[-1], rel=6e-3), pytest.approx(of.allowance[-1], rel=6e-3)]


def colors(book: Book) -> set[tuple[int, ...]]:
    """Colours of the plot that fill more than a few pixels, once it is drawn."""
    pixels = (
        "(c => c.width && c.height ? c.getContext('2d').getImageData(0, 0, c.width, c.height).data : [])"
        "(document.getElementById('plot'))"
    )
    book.wait(f"{pixels}.some((x, i) => i % 4 === 3 && x === 255)")
    data = book.js(
        f"const d = {pixels}, seen = {{}};"
        "for (let i = 0; i < d.length; i += 4) {"
        "const k = [d[i], d[i+1], d[i+2]]; if (d[i+3] === 255) seen[k] = (seen[k] || 0) + 1; }"
        "return Object.keys(seen).filter(k => seen[k] > 20)"
    )
    return {tuple(map(int, text.split(","))) for text in data}


def test_light_and_dark(fresh):
    page = "return getComputedStyle(document.body).backgroundColor"
    light, drawn = fresh.js(page), colors(fresh)
    browser.screen(fresh.driver, dark=True)
    fresh.wait(f"(() => {{ {page} }})() !== '{light}'")
    fresh.open()
    assert fresh.js(page) == "rgb(20, 24, 29)" and light == "rgb(251, 250, 247)"
    spend = {"light": (31, 122, 111), "dark": (85, 189, 174)}
    assert spend["light"] in drawn and spend["dark"] in colors(fresh) and spend["light"] not in colors(fresh)


def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_tap_shows_numbers(fresh):
    browser.screen(fresh.driver, browser.PHONE)
    fresh.open()
    assert fresh.js("return document.documentElement.scrollWidth") == 390
    inside = "[...document.querySelectorAll('main *, .filters *')]"
    wide = fresh.js(f"return {inside}.filter(e => e.getBoundingClientRect().right > 391).length")
    assert wide == 0
    box = "document.querySelectorAll('#text i')[4].getBoundingClientRect()"
    place = fresh.js(f"const b = {box}; return [b.x + 2, b.y + 4]")
    tap = [{"x": place[0], "y": place[1]}]
    fresh.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": tap})
    fresh.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    fresh.wait("document.querySelector('#text .picked')")
    assert fresh.picked == 4
    box = fresh.js("const b = document.getElementById('token').getBoundingClientRect(); return [b.top, b.bottom]")
    assert 0 < box[0] < box[1] <= 844


def test_a_link_opens_the_same_token(fresh):
    fresh.press("]jn")
    address, picked = fresh.driver.current_url, fresh.picked
    assert address.endswith(f"#step=2&response=2&token={picked + 1}")
    fresh.open(address[address.index("#") :])
    assert (fresh.shown, fresh.picked) == (5, picked)
    fresh.open("#step=9&response=1")
    assert fresh.shown == 0


def test_signs_without_a_look_of_their_own_are_seen_and_text_stays_text(driver, tmp_path):
    book = Book(driver, tmp_path, [step_record([ODD])])
    found = spans(book)
    whole = [piece.replace("\u202e", "").replace("\x00", "") for piece in ODD]
    assert [span["text"] for span in found] == whole
    assert not book.js("return document.querySelector('#text b b, #text img, #text i i')")
    before = "return getComputedStyle(arguments[0], '::before').content"
    marks = {t: [book.js(before, mark) for mark in token.find_elements("tag name", "b")]
             for t, token in enumerate(driver.find_elements("css selector", "#text i"))}  # fmt: skip
    assert marks[1] == ['"↵"'] and marks[2] == ['"↵"', '"↵"'] and marks[3] == ['"⇥"']
    assert marks[6] == marks[7] == ['"◦"'] and marks[9] == ['"U+202E"'] and marks[10] == ['"␀"']
    assert all("blank" in found[t]["classes"] for t in (1, 2, 3, 4, 5)) and "blank" not in found[8]["classes"]
    lines = book.js("return [...document.querySelectorAll('#text p')].map(p => p.getBoundingClientRect().height)")
    assert len(lines) == 2 and lines[0] > 2.5 * lines[1]  # "A" and two empty lines, then the rest
    assert all(size > 2 for size in book.js("return [...document.querySelectorAll('#text i')].map(e => e.offsetWidth)"))
    book.js("document.querySelectorAll('#text i')[6].click()")
    assert "part of a character" in book.text("#token .which")
    book.js("document.querySelectorAll('#text i')[2].click()")
    assert r"\n\n" in book.text("#token .which")
    assert book.complaints() == []


def test_an_empty_response_is_said_to_be_empty(driver, tmp_path):
    book = Book(driver, tmp_path, [step_record([[], sentence(4)])])
    book.wait("document.querySelector('#text').innerText")  # laid out a moment after it is there
    assert "The response is empty: it has no token." in book.text("#text")
    book.press("n")
    book.press("j")
    assert book.shown == 1 and len(spans(book)) == 4 and book.complaints() == []


def test_a_record_of_no_response_is_said_to_be_one(driver, tmp_path):
    book = Book(driver, tmp_path, [StepRecord(step_record([[]]).header, ())])
    assert book.text("#trouble") == "No response was recorded." and book.complaints() == []


def test_a_response_of_100_thousand_tokens(driver, tmp_path):
    from selenium.webdriver.common.keys import Keys

    browser.screen(driver)
    book = Book(driver, tmp_path, [random_record(1, 1, 100_000)])
    assert book.js("return document.querySelectorAll('#text i').length") == 100_000
    book.press(Keys.END)
    assert book.picked == 99_999
    top, bottom, dock = book.js(
        "const b = document.querySelector('.picked').getBoundingClientRect();"
        "return [b.top, b.bottom, document.getElementById('dock').getBoundingClientRect().top]"
    )
    assert 0 <= top < bottom <= dock
    (of,) = numbers.of(book.records[0].header, book.records[0].responses)
    assert book.numbers()["S spent"] == pytest.approx(of.spent[-1], rel=6e-3)
    assert book.complaints() == []


def test_a_page_that_was_not_copied_whole_says_so(driver, tmp_path):
    book = Book(driver, tmp_path, [step_record([sentence(400, i) for i in range(4)])])
    whole = book.page.read_bytes()
    book.page.write_bytes(whole[: whole.index(b'id="r2"') + 300])
    book.open()
    assert book.shown == 0 and book.js("return document.getElementById('trouble').hidden")
    book.press("j")
    book.js("document.querySelector('#list button[data-i=\"2\"]').click()")
    book.wait("!document.getElementById('trouble').hidden")
    assert "This page is not whole" in book.text("#trouble")
    book.press("k")
    assert book.shown == 1 and book.js("return document.getElementById('trouble').hidden")


@pytest.mark.parametrize("rule", ["dppo", "trm_max", "minpro"])
def test_rules_without_a_prefix_budget(driver, tmp_path, rule):
    book = Book(driver, tmp_path, [step_record([sentence(60, i) for i in range(2)], rule=rule, moved=1.5)])
    browser.screen(driver)
    book.press("n")
    found = book.numbers() if book.picked is not None else {}
    assert "S spent" not in found
    if rule == "trm_max":
        assert "masked with its whole response" in book.text("#token .which")
        assert "whole" in book.js("return document.getElementById('text').className")
    if rule == "minpro":
        assert "99.9% of the step's D" in book.js("return document.getElementById('scale').innerText")
        assert book.picked is None
    assert "Divergence of each token" in book.js("return document.getElementById('plot').getAttribute('aria-label')")
    assert book.complaints() == []


def test_a_soft_gate_says_how_much_is_left(driver, tmp_path):
    record = step_record([sentence(60)], gate="soft", moved=1.0, budget="fixed", delta_b=0.001)
    book = Book(driver, tmp_path, [record])
    gates = record.responses[0].first.gate
    t = int(np.flatnonzero((gates < 1) & (gates > 0))[0])
    book.js("document.querySelectorAll('#text i')[arguments[0]].click()", t)
    (left,) = re.findall(r"damped to ([0-9.]+)", book.text("#token .which"))
    assert float(left) == pytest.approx(float(gates[t]), rel=6e-3)
    assert "damped" in spans(book)[t]["classes"]


def test_a_gate_that_turns_updates_round(driver, tmp_path):
    record = step_record([sentence(60)], gate="restore", restore_strength=0.5, moved=1.0, sampled=True)
    book = Book(driver, tmp_path, [record])
    response = record.responses[0]
    turned = np.flatnonzero(response.first.gate < 0)
    assert [t for t, span in enumerate(spans(book)) if "turned" in span["classes"]] == turned.tolist()
    book.press("n")
    assert book.picked == turned[0] and "turned round, 0.500 of its size: " in book.text("#token .which")
    assert book.numbers()["log μ"] == pytest.approx(response.log_rollout[turned[0]], rel=6e-3)
    assert book.numbers()["log start"] == pytest.approx(response.log_mu[turned[0]], rel=6e-3)
    assert f"{100 * len(turned) / 60:.1f}".removesuffix(".0") + "% masked" in book.text("#list li")


def test_a_number_that_is_none_is_said_and_drawn_around(driver, tmp_path):
    record = step_record([sentence(30)])
    response = record.responses[0]
    response.first.log_pi[3] = np.nan
    response.first.log_pi[5] = -np.inf
    book = Book(driver, tmp_path, [record])
    book.js("document.querySelectorAll('#text i')[3].click()")
    cells = book.text("#token dl")
    assert "D\nnot a number" in cells and "log π\nnot a number" in cells
    assert len(spans(book)) == 30 and book.complaints() == []


def test_a_comparison_of_runs_fits_a_phone(driver, tmp_path):
    for seed in range(2):
        for method in ("grpo", "cppo"):
            write_own(tmp_path / "runs", method, seed, {10: 0.5, 20: 0.6 + 0.1 * (method == "cppo")})
    out = reported(str(tmp_path / "runs"), "--out", str(tmp_path / "out"))
    browser.screen(driver, browser.PHONE)
    driver.get((out / "report.html").as_uri())
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    text = driver.execute_script("return document.body.innerText")
    assert text.index("higher") < text.index("Paired differences") < text.index("Validation score")
    clipped = (
        "[...document.querySelectorAll('p, h1, h2, h3, svg.plot')].filter(e => e.getBoundingClientRect().right > 390)"
    )
    assert driver.execute_script(f"return {clipped}.length") == 0
