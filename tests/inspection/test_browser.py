"""The page of single tokens in a headless Chromium: what is shown is the record, and everything can be reached."""

import re
from pathlib import Path

import numpy as np
import pytest

from cppo_verl.inspection.page import write_page
from cppo_verl.recording import files, numbers
from cppo_verl.recording.record import CAPPED, PREFIX, TOKEN, StepRecord
from tests.inspection import browser
from tests.inspection.records import sentence, step_record

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=f"THE PAGES ARE NOT TESTED: {browser.missing()}")

ODD = ["A", "\n", "\n\n", "\t", " ", "  ", "", "", "答", "\u202eabc", "\x00", "<b>&amp;", "</i>", "e\u0301", "👩‍🚀",
       "end"]  # fmt: skip


@pytest.fixture(scope="module")
def driver():
    with browser.chromium() as found:
        yield found


@pytest.fixture(autouse=True)
def no_complaints(driver):
    yield
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


class Book:
    """A page of these steps, open in the browser at the first response."""

    def __init__(self, driver, folder: Path, *records: StepRecord):
        self.driver, self.page = driver, folder / "inspect.html"
        self.responses = [response for record in records for response in record.responses]
        self.derived = [x for record in records for x in numbers.of(record.header, record.responses)]
        for record in records:
            files.write(folder, record)
        write_page(folder, self.page)
        self.open()

    def open(self, fragment: str = "#step=1&response=1") -> None:
        self.driver.get("about:blank")
        self.driver.get(self.page.as_uri() + fragment)
        self.wait("document.body.dataset.shown !== undefined || !document.getElementById('trouble').hidden")

    def js(self, code: str, *arguments):
        return self.driver.execute_script(f"return {code}", *arguments)

    def each(self, selector: str, of: str) -> list:
        """What the expression ``of`` an element ``e`` says of each that is selected."""
        return self.js(f"[...document.querySelectorAll(arguments[0])].map(e => {of})", selector)

    def wait(self, condition: str) -> None:
        look = f"(function look() {{ ({condition}) ? setTimeout(done) : setTimeout(look, 5); }})()"
        self.driver.set_script_timeout(30)
        self.driver.execute_async_script(f"const done = arguments[0]; {look};")

    def settle(self) -> None:
        """Waits for the response that was asked for."""
        self.wait(
            "document.body.dataset.shown === (document.querySelector('#list [aria-current=true]') || {dataset: "
            "{i: document.body.dataset.shown}}).dataset.i"
        )

    def press(self, keys: str) -> None:
        """Keys as a user presses them, on whatever has the focus."""
        from selenium.webdriver.common.action_chains import ActionChains

        ActionChains(self.driver).send_keys(keys).perform()
        self.settle()

    def choose(self, name: str, text: str) -> None:
        from selenium.webdriver.support.ui import Select

        Select(self.driver.find_element("id", name)).select_by_visible_text(text)
        self.settle()

    def point(self, element, x: int = 0, y: int = 0, click: bool = False) -> None:
        """The mouse on an element, so many pixels from its middle."""
        from selenium.webdriver.common.action_chains import ActionChains

        chain = ActionChains(self.driver).move_to_element_with_offset(element, x, y)
        (chain.click() if click else chain).perform()

    def click(self, selector: str, place: int = 0) -> None:
        self.js("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, place)

    def text(self, selector: str) -> str:
        return self.js("document.querySelector(arguments[0]).innerText", selector)

    def listed(self) -> list[int]:
        return self.each("#list button", "Number(e.dataset.i)")

    @property
    def shown(self) -> int:
        return int(self.js("document.body.dataset.shown"))

    @property
    def picked(self) -> int | None:
        """The number of the token that is picked, from 0."""
        at = "Number(e.parentNode.dataset.start) + [...e.parentNode.children].indexOf(e)"
        return next(iter(self.each("#text .picked", at)), None)

    def numbers(self) -> dict[str, float]:
        """The numbers of the token that is picked or pointed at."""
        cells = self.each("#token dl div", "[...e.children].map(c => c.innerText)")
        return {name: float(value.replace("\u2212", "-")) for name, value in cells}

    def spans(self) -> list[dict]:
        return self.each("#text i", "({text: e.textContent, classes: [...e.classList]})")

    def trouble(self) -> str:
        return self.text("#trouble") if not self.js("document.getElementById('trouble').hidden") else ""


@pytest.fixture(scope="module")
def book(driver, tmp_path_factory) -> Book:
    """Two steps of four responses with texts of different length, of both signs of A."""
    records = []
    for step, signs in ((1, (0.5, -1.0, 2.0, -0.25)), (2, (1.0, -2.0, 0.0, 0.75))):
        texts = [sentence(40 * (i + 1), 10 * step + i) for i in range(4)]
        records.append(step_record(texts, signs, step=step, moved=0.8, tools=2, epochs=2))
    return Book(driver, tmp_path_factory.mktemp("book"), *records)


@pytest.fixture
def fresh(book) -> Book:
    browser.screen(book.driver)
    book.open()
    return book


def test_the_page_opens_on_the_response_that_lost_most_tokens(fresh):
    masked = [float((1 - r.first.gate[r.mask]).sum()) for r in fresh.responses]
    fresh.open("")
    assert fresh.shown == int(np.argmax(masked)) != 0
    assert f"Step {1 + fresh.shown // 4}," in fresh.text("#name") and fresh.shown in fresh.listed()


def test_text_marks_facts_and_list_are_the_record(fresh):
    response, of = fresh.responses[0], fresh.derived[0]
    found = fresh.spans()
    assert [span["text"] for span in found] == response.pieces
    levels = [int(next((c[1:] for c in span["classes"] if re.fullmatch("d[0-9]+", c)), -1)) for span in found]
    gate, cause = response.first.gate, response.first.cause
    marks = {
        "tool": ~response.mask, "over": response.mask & (of.spent > of.allowance),
        "own": response.mask & (gate < 1) & (cause == TOKEN), "prefix": response.mask & (gate < 1) & (cause == PREFIX),
        "capped": response.mask & (gate == 1) & (cause == CAPPED),
    }  # fmt: skip
    for mark, there in marks.items():
        assert [mark in span["classes"] for span in found] == there.tolist()
    order = np.argsort(of.divergence[response.mask], kind="stable")
    assert (np.diff(np.array(levels)[response.mask][order]) >= 0).all() and max(levels) == 15
    facts = dict(line.split("\n") for line in re.findall(r"[^\n]+\n[^\n]+", fresh.text("#facts")))
    own, prefix = marks["own"].sum(), marks["prefix"].sum()
    assert own and prefix and (facts["Own threshold"], facts["Prefix budget"]) == (str(own), str(prefix))
    assert facts["A"] == "+0.500" and facts["Tokens"] == "38 of 40 its own" and facts["Update"] == "1 of 4"
    assert f"{100 * (own + prefix) / 38:.1f}".removesuffix(".0") + "% masked" in fresh.text("#list li")
    assert "Prompt 0 & <b>why</b>?" in fresh.js("document.querySelector('#prompt .words').textContent")


def test_the_numbers_of_every_token_are_those_of_the_rule(fresh):
    response, of = fresh.responses[0], fresh.derived[0]
    for t in range(response.length):
        fresh.click("#text i", t)
        said, found = fresh.text("#token .which"), fresh.numbers()
        assert fresh.picked == t
        assert said.startswith(f"{t + 1} of {response.length}") and f"id {response.token_ids[t]}" in said
        if not response.mask[t]:
            assert "not the policy's own token" in said and list(found) == ["log μ"]
            continue
        expected = {
            "D": of.divergence[t], "w": of.weight[t], "w·D": of.weight[t] * of.divergence[t], "δ": 0.15,
            "S spent": of.spent[t], "allowed": of.allowance[t], "log μ": response.log_mu[t],
            "log π": response.first.log_pi[t], "A": response.advantages[t],
            "ρ": np.exp(response.first.log_pi[t] - response.log_mu[t]),
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


def test_filters(fresh):
    fresh.choose("sign", "A < 0")
    fresh.choose("step", "all steps")
    assert fresh.listed() == [1, 3, 5] and "step 2" in fresh.text("#list li:nth-child(3)")


def test_every_key_does_what_the_dialog_says(fresh):
    from selenium.webdriver.common.keys import Keys

    for keys, shown in (("j", 1), ("jk", 1), ("]", 4), ("[", 0)):
        fresh.press(keys)
        assert fresh.shown == shown
    shares = [float((1 - r.first.gate[r.mask]).mean()) for r in fresh.responses[:4]]
    largest = [float(of.divergence.max()) for of in fresh.derived[:4]]
    most, far = ([int(i) for i in np.argsort(values)[::-1]] for values in (shares, largest))
    orders = {"-": [1, 3], "+": [0, 2], "0l": [3, 2, 1, 0], "m": most, "d": far, "o": [0, 1, 2, 3]}
    for keys, listed in orders.items():
        fresh.press(keys)
        assert fresh.listed() == listed
    fresh.click('#list button[data-i="0"]')
    fresh.settle()
    response = fresh.responses[0]
    masked = [t for t in range(40) if response.mask[t] and response.first.gate[t] < 1]
    for keys, picked in ((Keys.ARROW_RIGHT * 3, 2), (Keys.ARROW_LEFT, 1), (Keys.END, 39), (Keys.HOME, 0),
                         ("nn", masked[1]), ("N", masked[0]), (Keys.ESCAPE, None)):  # fmt: skip
        fresh.press(keys)
        assert fresh.picked == picked
    assert "Point at a token" in fresh.text("#token")
    fresh.press("?")
    assert fresh.js("document.getElementById('keys').open")
    fresh.press("j" + Keys.ESCAPE)
    assert not fresh.js("document.getElementById('keys').open") and fresh.shown == 0
    first = fresh.text("#facts")
    fresh.press("u")
    assert fresh.js("document.getElementById('look').selectedOptions[0].text") == "last, number 2"
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
        x = round(left + (right - left) * (t + 0.5) / 40 - canvas.size["width"] / 2)
        fresh.point(canvas, x, 30, click=t == 39)
        assert fresh.text("#token .which").startswith(f"{t + 1} of 40")
    assert fresh.picked == 39
    said = [float(x) for x in re.findall(r"[0-9.]+[0-9]", canvas.get_attribute("aria-label"))]
    ends = (fresh.derived[0].spent[-1], fresh.derived[0].allowance[-1])
    assert said == [pytest.approx(end, rel=6e-3) for end in ends]


def test_on_a_phone_nothing_is_wider_than_the_screen_and_a_tap_shows_numbers(fresh):
    browser.screen(fresh.driver, browser.PHONE)
    fresh.open()
    assert fresh.js("document.documentElement.scrollWidth") == 390
    assert max(fresh.each("main *, .filters *", "e.getBoundingClientRect().right")) <= 391
    x, y = fresh.each("#text i", "[e.getBoundingClientRect().x + 2, e.getBoundingClientRect().y + 4]")[4]
    for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
        fresh.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    fresh.wait("document.querySelector('#text .picked')")
    assert fresh.picked == 4
    ((top, bottom),) = fresh.each("#token", "[e.getBoundingClientRect().top, e.getBoundingClientRect().bottom]")
    assert 0 < top < bottom <= 844
    browser.screen(fresh.driver)


def test_odd_signs_are_seen_and_text_stays_text(driver, tmp_path):
    book = Book(driver, tmp_path, step_record([ODD]))
    found = book.spans()
    assert [span["text"] for span in found] == [piece.replace("\u202e", "").replace("\x00", "") for piece in ODD]
    assert not book.js("document.querySelector('#text b b, #text img, #text i i')")
    marks = book.each("#text i", "[...e.querySelectorAll('b')].map(b => getComputedStyle(b, '::before').content)")
    assert marks[1] == ['"↵"'] and marks[2] == ['"↵"', '"↵"'] and marks[3] == ['"⇥"']
    assert marks[6] == marks[7] == ['"◦"'] and marks[9] == ['"U+202E"'] and marks[10] == ['"␀"']
    assert all("blank" in found[t]["classes"] for t in (1, 2, 3, 4, 5)) and "blank" not in found[8]["classes"]
    lines = book.each("#text p", "e.getBoundingClientRect().height")
    assert len(lines) == 2 and lines[0] > 2.5 * lines[1]  # "A" and two empty lines, then the rest
    assert min(book.each("#text i", "e.offsetWidth")) > 2
    for t, said in ((6, "part of a character"), (2, r"\n\n")):
        book.click("#text i", t)
        assert said in book.text("#token .which")


def test_what_is_empty_and_what_is_none_is_said(driver, tmp_path):
    book = Book(driver, tmp_path / "a", step_record([[], sentence(30)], (1.0, 1.0)))
    book.wait("document.querySelector('#text').innerText")  # laid out a moment after it is there
    assert "The response is empty: it has no token." in book.text("#text")
    book.press("n")
    book.choose("sign", "A < 0")
    assert book.listed() == [] and book.text("#count") == "No response of this step has A < 0."
    record = step_record([sentence(30)])
    record.responses[0].first.log_pi[[3, 5]] = np.nan, -np.inf
    odd = Book(driver, tmp_path / "b", record)
    odd.click("#text i", 3)
    cells = odd.text("#token dl")
    assert "D\nnot a number" in cells and "log π\nnot a number" in cells and len(odd.spans()) == 30
    none = Book(driver, tmp_path / "c", StepRecord(record.header, ()))
    assert none.trouble() == "No response was recorded."


def test_a_page_that_was_not_copied_whole_says_so(driver, tmp_path):
    book = Book(driver, tmp_path, step_record([sentence(400, i) for i in range(4)], moved=0.01))
    whole = book.page.read_bytes()
    book.page.write_bytes(whole[: whole.index(b'id="r2"') + 300])
    book.open()
    assert book.shown == 0 and book.trouble() == ""
    book.press("j")
    book.click('#list button[data-i="2"]')
    book.wait("!document.getElementById('trouble').hidden")
    assert "This page is not whole" in book.trouble()
    book.press("k")
    assert book.shown == 1 and book.trouble() == ""


def test_rules_without_a_prefix_budget(driver, tmp_path):
    texts = [sentence(60, i) for i in range(2)]
    book = Book(driver, tmp_path / "trm", step_record(texts, rule="trm_max", moved=1.5))
    book.press("n")
    assert "S spent" not in book.numbers() and "masked with its whole response" in book.text("#token .which")
    assert "Divergence of each token" in book.js("document.getElementById('plot').getAttribute('aria-label')")
    book = Book(driver, tmp_path / "minpro", step_record(texts, rule="minpro", moved=1.5))
    book.press("n")
    assert "99.9% of the step's D" in book.text("#scale") and book.picked is None


def test_a_gate_that_damps_and_one_that_turns_round_say_how_much(driver, tmp_path):
    soft = step_record([sentence(60)], gate="soft", moved=1.0, budget="fixed", delta_b=0.001)
    book, gates = Book(driver, tmp_path / "soft", soft), soft.responses[0].first.gate
    t = int(np.flatnonzero((gates < 1) & (gates > 0))[0])
    book.click("#text i", t)
    (left,) = re.findall(r"damped to ([0-9.]+)", book.text("#token .which"))
    assert float(left) == pytest.approx(float(gates[t]), rel=6e-3) and "damped" in book.spans()[t]["classes"]
    restore = step_record([sentence(60)], gate="restore", restore_strength=0.5, moved=1.0, sampled=True)
    book, response = Book(driver, tmp_path / "restore", restore), restore.responses[0]
    turned = np.flatnonzero(response.first.gate < 0)
    assert [t for t, span in enumerate(book.spans()) if "turned" in span["classes"]] == turned.tolist()
    book.press("n")
    assert book.picked == turned[0] and "turned round, 0.500 of its size: " in book.text("#token .which")
    assert book.numbers()["log μ"] == pytest.approx(response.log_rollout[turned[0]], rel=6e-3)
    assert book.numbers()["log start"] == pytest.approx(response.log_mu[turned[0]], rel=6e-3)
    assert f"{100 * len(turned) / 60:.1f}".removesuffix(".0") + "% masked" in book.text("#list li")
