"""The page of single tokens in a headless Chromium: what is shown is the record, and everything can be reached."""

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import browser
from cppo_verl.inspection.page import write_page
from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import CAPPED, PREFIX, TOKEN, StepRecord
from tests.inspection.records import sentence, step_record
from tests.reporting.pages import reported
from tests.reporting.runs import write_own

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=f"THE PAGES ARE NOT TESTED: {browser.missing()}")

ODD = ["A", "\n", "\n\n", "\t", " ", "  ", "", "", "答", "\u202eabc", "\x00", "<b>&amp;", "</i>", "e\u0301", "👩‍🚀",
       "end"]  # fmt: skip
FIRST = "#step=1&response=1"


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as found:
        yield found


class Book:
    """A page of these steps, open in the browser at the first response."""

    def __init__(self, driver, folder: Path, records: list[StepRecord]):
        self.driver, self.records = driver, records
        for record in records:
            files.write(folder, record)
        self.page = folder / "inspect.html"
        write_page(folder, self.page)
        self.open()

    def open(self, fragment: str = FIRST) -> None:
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

    def point(self, element, x: float | None = None, click: bool = False) -> None:
        """The mouse on an element, ``x`` pixels right of its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.driver).move_to_element_with_offset(
            element, round(x or 0), 30 if x is not None else 0
        )
        (chain.click() if click else chain).perform()

    def click(self, t: int) -> None:
        self.js("document.querySelectorAll('#text i')[arguments[0]].click()", t)

    def text(self, selector: str) -> str:
        return self.js("return document.querySelector(arguments[0]).innerText", selector)

    def listed(self) -> list[int]:
        return [int(i) for i in self.js("return [...document.querySelectorAll('#list button')].map(b => b.dataset.i)")]

    @property
    def shown(self) -> int:
        return int(self.js("return document.body.dataset.shown"))

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
        return {name: float(value.replace("\u2212", "-")) for name, value in self.js(f"return {cells}")}

    def spans(self) -> list[dict]:
        each = "e => ({text: e.textContent, classes: [...e.classList]})"
        return self.js(f"return [...document.querySelectorAll('#text i')].map({each})")

    def trouble(self) -> str:
        return self.text("#trouble") if not self.js("return document.getElementById('trouble').hidden") else ""

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    @property
    def responses(self):
        return [response for record in self.records for response in record.responses]

    def derived(self):
        """The numbers of the first look, by the rules' own functions."""
        return [x for record in self.records for x in numbers.of(record.header, record.responses)]


@pytest.fixture(scope="module")
def book(driver, tmp_path_factory) -> Book:
    """Two steps of four responses with texts of different length, of both signs of A."""
    signs = ((0.5, -1.0, 2.0, -0.25), (1.0, -2.0, 0.0, 0.75))
    texts = {step: [sentence(40 * (i + 1), 10 * step + i) for i in range(4)] for step in (1, 2)}
    common = {"moved": 0.8, "tools": 2, "epochs": 2}
    records = [step_record(texts[step], signs[step - 1], step=step, **common) for step in (1, 2)]
    return Book(driver, tmp_path_factory.mktemp("book"), records)


@pytest.fixture
def fresh(book) -> Book:
    browser.screen(book.driver)
    book.open()
    return book


def test_the_page_opens_on_the_response_that_lost_most_tokens(fresh, tmp_path):
    masked = [float((1 - r.first.gate[r.mask]).sum()) for r in fresh.responses]
    fresh.open("")
    assert fresh.shown == int(np.argmax(masked)) != 0
    assert f"Step {1 + fresh.shown // 4}," in fresh.text("#name") and fresh.shown in fresh.listed()
    none = Book(fresh.driver, tmp_path, [step_record([sentence(5)] * 4, moved=0.001, step=s) for s in (1, 2)])
    none.open("")
    assert none.shown == 0
    none.choose("sign", "A < 0" if all(r.advantages[0] > 0 for r in none.responses[:4]) else "A > 0")
    assert none.complaints() == []


def test_text_marks_facts_and_list_are_the_record(fresh):
    response, of = fresh.responses[0], fresh.derived()[0]
    found = fresh.spans()
    assert [span["text"] for span in found] == response.pieces
    levels = [int(next((c[1:] for c in span["classes"] if re.fullmatch("d[0-9]+", c)), -1)) for span in found]
    for t, (span, own) in enumerate(zip(found, response.mask, strict=True)):
        gate, cause, classes = response.first.gate[t], response.first.cause[t], span["classes"]
        assert ("tool" in classes) == (not own)
        if own:
            assert ("own" in classes) == (gate < 1 and cause == TOKEN)
            assert ("prefix" in classes) == (gate < 1 and cause == PREFIX)
            assert ("capped" in classes) == (gate == 1 and cause == CAPPED)
            assert ("over" in classes) == (of.spent[t] > of.allowance[t])
    order = np.argsort(of.divergence[response.mask], kind="stable")
    assert (np.diff(np.array(levels)[response.mask][order]) >= 0).all() and max(levels) == 15
    facts = dict(line.split("\n") for line in re.findall(r"[^\n]+\n[^\n]+", fresh.text("#facts")))
    masked = {cause: int(((response.first.cause == cause) & response.mask).sum()) for cause in (TOKEN, PREFIX)}
    assert masked[TOKEN] and masked[PREFIX]
    assert (facts["Own threshold"], facts["Prefix budget"]) == (str(masked[TOKEN]), str(masked[PREFIX]))
    assert facts["A"] == "+0.500" and facts["Tokens"] == "38 of 40 its own" and facts["Update"] == "1 of 4"
    share = f"{100 * sum(masked.values()) / 38:.1f}".removesuffix(".0")
    assert f"{share}% masked" in fresh.text("#list li")
    assert "Prompt 0 & <b>why</b>?" in fresh.js("return document.querySelector('#prompt .words').textContent")
    assert fresh.complaints() == []


def test_the_numbers_of_every_token_are_those_of_the_rule(fresh):
    response, of = fresh.responses[0], fresh.derived()[0]
    for t in range(response.length):
        fresh.click(t)
        said, found = fresh.text("#token .which"), fresh.numbers()
        assert fresh.picked == t
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


def test_filters_and_order(fresh):
    assert fresh.listed() == [0, 1, 2, 3]
    fresh.choose("sign", "A < 0")
    assert fresh.listed() == [1, 3] and fresh.shown == 1
    fresh.choose("step", "all steps")
    assert fresh.listed() == [1, 3, 5] and "step 2" in fresh.text("#list li:nth-child(3)")
    fresh.choose("order", "longest")
    assert fresh.listed() == [3, 1, 5]
    fresh.choose("sign", "any sign")
    shares = [float((1 - r.first.gate[r.mask]).mean()) for r in fresh.responses]
    largest = [float(of.divergence.max()) for of in fresh.derived()]
    for order, values in (("most masked", shares), ("largest D", largest)):
        fresh.choose("order", order)
        assert [values[i] for i in fresh.listed()] == sorted(values, reverse=True)
    fresh.choose("step", "2")
    assert sorted(fresh.listed()) == [4, 5, 6, 7] and "Step 2" in fresh.text("#name")


def test_every_key_does_what_the_dialog_says(fresh):
    from selenium.webdriver.common.keys import Keys

    for keys, shown in (("j", 1), ("jk", 1), ("]", 4), ("[", 0)):
        fresh.press(keys)
        assert fresh.shown == shown
    for keys, listed in (("-", [1, 3]), ("+", [0, 2]), ("0l", [3, 2, 1, 0])):
        fresh.press(keys)
        assert fresh.listed() == listed
    fresh.press("mdo")
    assert fresh.listed() == [0, 1, 2, 3]
    fresh.js("document.querySelector('#list button[data-i=\"0\"]').click()")
    fresh.settle()
    masked = [t for t in range(40) if fresh.responses[0].mask[t] and fresh.responses[0].first.gate[t] < 1]
    for keys, picked in ((Keys.ARROW_RIGHT * 3, 2), (Keys.ARROW_LEFT, 1), (Keys.END, 39), (Keys.HOME, 0),
                         ("nn", masked[1]), ("N", masked[0]), (Keys.ESCAPE, None)):  # fmt: skip
        fresh.press(keys)
        assert fresh.picked == picked
    assert "Point at a token" in fresh.text("#token")
    fresh.press("?")
    assert fresh.js("return document.getElementById('keys').open")
    fresh.press("j" + Keys.ESCAPE)
    assert not fresh.js("return document.getElementById('keys').open") and fresh.shown == 0
    first, response = fresh.text("#facts"), fresh.responses[0]
    fresh.press("u")
    assert fresh.js("return document.getElementById('look').selectedOptions[0].text") == "last, number 2"
    prefix = int(((response.last.cause == PREFIX) & response.mask).sum())
    assert f"Prefix budget\n{prefix}\n" in fresh.text("#facts") and "Update\n2 of 4" in fresh.text("#facts")
    fresh.press("u")
    assert fresh.text("#facts") == first
    fresh.press("]jn")
    address, picked = fresh.driver.current_url, fresh.picked
    assert address.endswith(f"#step=2&response=2&token={picked + 1}")  # a link opens the same token
    fresh.open(address[address.index("#") :])
    assert (fresh.shown, fresh.picked) == (5, picked)


def test_pointing_shows_a_token_and_the_plot_is_on_the_axis_of_the_tokens(fresh):
    fresh.press("n")
    kept = fresh.text("#token")
    fresh.point(fresh.driver.find_elements("css selector", "#text i")[5])
    assert fresh.text("#token .which").startswith("6 of 40")
    fresh.point(fresh.driver.find_element("id", "name"))
    assert fresh.text("#token") == kept  # leaving gives the picked one back
    canvas = fresh.driver.find_element("id", "plot")
    left, right = 44, canvas.size["width"] - 10  # of the drawn axis
    for t in (0, 17, 39):
        fresh.point(canvas, left + (right - left) * (t + 0.5) / 40 - canvas.size["width"] / 2, click=t == 39)
        assert fresh.text("#token .which").startswith(f"{t + 1} of 40")
    assert fresh.picked == 39
    of = fresh.derived()[0]
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
    assert fresh.js(f"return {inside}.filter(e => e.getBoundingClientRect().right > 391).length") == 0
    box = "document.querySelectorAll('#text i')[4].getBoundingClientRect()"
    place = fresh.js(f"const b = {box}; return [b.x + 2, b.y + 4]")
    tap = [{"x": place[0], "y": place[1]}]
    fresh.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": tap})
    fresh.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    fresh.wait("document.querySelector('#text .picked')")
    assert fresh.picked == 4
    top, bottom = fresh.js(
        "const b = document.getElementById('token').getBoundingClientRect(); return [b.top, b.bottom]"
    )
    assert 0 < top < bottom <= 844
    browser.screen(fresh.driver)


def test_odd_signs_are_seen_and_text_stays_text(driver, tmp_path):
    book = Book(driver, tmp_path, [step_record([ODD])])
    found = book.spans()
    assert [span["text"] for span in found] == [piece.replace("\u202e", "").replace("\x00", "") for piece in ODD]
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
    for t, said in ((6, "part of a character"), (2, r"\n\n")):
        book.click(t)
        assert said in book.text("#token .which")
    assert book.complaints() == []


def test_what_is_empty_and_what_is_none_is_said(driver, tmp_path):
    book = Book(driver, tmp_path / "a", [step_record([[], sentence(30)], (1.0, 1.0))])
    book.wait("document.querySelector('#text').innerText")  # laid out a moment after it is there
    assert "The response is empty: it has no token." in book.text("#text")
    book.press("n")
    book.choose("sign", "A < 0")
    assert book.listed() == [] and book.text("#count") == "No response of this step has A < 0."
    record = step_record([sentence(30)])
    record.responses[0].first.log_pi[3] = np.nan
    record.responses[0].first.log_pi[5] = -np.inf
    odd = Book(driver, tmp_path / "b", [record])
    odd.click(3)
    cells = odd.text("#token dl")
    assert "D\nnot a number" in cells and "log π\nnot a number" in cells and len(odd.spans()) == 30
    none = Book(driver, tmp_path / "c", [StepRecord(step_record([[]]).header, ())])
    assert none.trouble() == "No response was recorded." and none.complaints() == []


def test_a_response_of_100_thousand_tokens(driver, tmp_path):
    from selenium.webdriver.common.keys import Keys

    book = Book(driver, tmp_path, [step_record([sentence(100_000)], moved=None)])
    assert book.js("return document.querySelectorAll('#text i').length") == 100_000
    book.press(Keys.END)
    assert book.picked == 99_999
    top, bottom, dock = book.js(
        "const b = document.querySelector('.picked').getBoundingClientRect();"
        "return [b.top, b.bottom, document.getElementById('dock').getBoundingClientRect().top]"
    )
    assert 0 <= top < bottom <= dock
    assert book.numbers()["S spent"] == pytest.approx(book.derived()[0].spent[-1], rel=6e-3)
    assert book.complaints() == []


def test_a_page_that_was_not_copied_whole_says_so(driver, tmp_path):
    book = Book(driver, tmp_path, [step_record([sentence(400, i) for i in range(4)], moved=0.01)])
    whole = book.page.read_bytes()
    book.page.write_bytes(whole[: whole.index(b'id="r2"') + 300])
    book.open()
    assert book.shown == 0 and book.trouble() == ""
    book.press("j")
    book.js("document.querySelector('#list button[data-i=\"2\"]').click()")
    book.wait("!document.getElementById('trouble').hidden")
    assert "This page is not whole" in book.trouble()
    book.press("k")
    assert book.shown == 1 and book.trouble() == ""


@pytest.mark.parametrize("rule", ["trm_max", "minpro"])
def test_rules_without_a_prefix_budget(driver, tmp_path, rule):
    book = Book(driver, tmp_path, [step_record([sentence(60, i) for i in range(2)], rule=rule, moved=1.5)])
    book.press("n")
    assert "S spent" not in (book.numbers() if book.picked is not None else {})
    if rule == "trm_max":
        assert "masked with its whole response" in book.text("#token .which")
        assert "whole" in book.js("return document.getElementById('text').className")
    else:
        assert "99.9% of the step's D" in book.text("#scale") and book.picked is None
    assert "Divergence of each token" in book.js("return document.getElementById('plot').getAttribute('aria-label')")
    assert book.complaints() == []


def test_a_gate_that_damps_and_one_that_turns_round_say_how_much(driver, tmp_path):
    soft = step_record([sentence(60)], gate="soft", moved=1.0, budget="fixed", delta_b=0.001)
    book = Book(driver, tmp_path / "soft", [soft])
    gates = soft.responses[0].first.gate
    t = int(np.flatnonzero((gates < 1) & (gates > 0))[0])
    book.click(t)
    (left,) = re.findall(r"damped to ([0-9.]+)", book.text("#token .which"))
    assert float(left) == pytest.approx(float(gates[t]), rel=6e-3) and "damped" in book.spans()[t]["classes"]
    restore = step_record([sentence(60)], gate="restore", restore_strength=0.5, moved=1.0, sampled=True)
    book, response = Book(driver, tmp_path / "restore", [restore]), restore.responses[0]
    turned = np.flatnonzero(response.first.gate < 0)
    assert [t for t, span in enumerate(book.spans()) if "turned" in span["classes"]] == turned.tolist()
    book.press("n")
    assert book.picked == turned[0] and "turned round, 0.500 of its size: " in book.text("#token .which")
    assert book.numbers()["log μ"] == pytest.approx(response.log_rollout[turned[0]], rel=6e-3)
    assert book.numbers()["log start"] == pytest.approx(response.log_mu[turned[0]], rel=6e-3)
    assert f"{100 * len(turned) / 60:.1f}".removesuffix(".0") + "% masked" in book.text("#list li")


def test_a_comparison_of_runs_fits_a_phone(driver, tmp_path):
    for seed in range(2):
        for method in ("grpo", "cppo"):
            write_own(tmp_path / "runs", method, seed, {10: 0.5, 20: 0.6 + 0.1 * (method == "cppo")})
    out = reported(tmp_path / "runs", "--out", tmp_path / "out")
    browser.screen(driver, browser.PHONE)
    driver.get((out / "report.html").as_uri())
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    text = driver.execute_script("return document.body.innerText")
    assert text.index("higher") < text.index("Paired differences") < text.index("Validation score")
    every = "[...document.querySelectorAll('p, h1, h2, h3, svg.plot')]"
    assert driver.execute_script(f"return {every}.filter(e => e.getBoundingClientRect().right > 390).length") == 0
