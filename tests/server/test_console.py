"""Rules out a console that shows what is not so, runs what stands in data, asks anybody else, or shuts anybody out.

In headless Chromium; without one the tests are skipped.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, expect, sync_playwright

from corenn.server.assets import FILES, FOLDER
from tests.server.raw import request
from tests.server.served import READ, SCOPED, SECONDS, WRITE, Served, serving

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.compiled,
    pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium"),
]
BIG = 2**63 - 25
MARKUP = (
    "<script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    '"><svg onload="window.broken = 1">',
    "javascript:window.broken=1",
    "{{7*7}} ${7*7} </textarea></title>",
)
CENTRES = np.random.default_rng(5).normal(size=(3, 8)) * 6
KINDS = np.random.default_rng(6).integers(0, 3, 1_500)
ROWS = (CENTRES[KINDS] + np.random.default_rng(7).normal(size=(1_500, 8))).astype(np.float32)
expect.set_options(timeout=SECONDS * 1000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with keys: `mine` has texts and a very large key, `markup` what should stay text; `changing` changes."""
    with serving(tmp_path_factory.mktemp("console") / "root", keys=True) as one:
        with one.client(WRITE) as client:
            mine = client.create("mine", dim=8, metric="l2", text_fields=["title"])
            payloads = [
                {"kind": "abc"[kind], "n": n, "title": f"row of {'red' if n % 2 else 'blue'} shoes"}
                for n, kind in enumerate(KINDS.tolist())
            ]
            mine.insert([*range(1_498), BIG, "7"], ROWS, payloads)
            mine.recall(k=10, samples=2)  # what is compiled for it, before a browser waits
            markup = client.create("markup", dim=2, metric="cosine", text_fields=[MARKUP[1]])
            markup.insert(
                MARKUP, [[1, n] for n in range(len(MARKUP))], [{text: text, "deep": {text: [text]}} for text in MARKUP]
            )
            client.create("changing", dim=8).upsert(range(20), ROWS[:20])
        yield one


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-dev-shm-usage"] if sys.platform == "linux" else []
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield launched
        launched.close()


class Visitor:
    """A page of somebody, and all that it complained of and asked for."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda sent: self.asked.append(sent.url))
        page.add_init_script(
            "window.broken = 0; addEventListener('securitypolicyviolation', (event) => console.error(event.blockedURI))"
        )

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def go(self, place: str = "") -> Page:
        self.page.goto(f"{self.url}/console#/{place}")
        expect(self.page.locator("#pulse")).to_have_text("live")
        return self.page

    def later(self) -> None:
        """Two seconds later, by the clock of the page: it asks again."""
        self.page.clock.fast_forward(2_000)

    def check(self) -> None:
        """Nothing was complained of, nobody else was asked."""
        assert not self.complaints
        assert {re.sub(r"(?<=\d)/.*", "", url) for url in self.asked} <= {self.url}
        assert self.page.evaluate("window.broken") == 0


Visit = Callable[..., Visitor]


@pytest.fixture
def visit(browser: Browser, served: Served) -> Iterator[Visit]:
    """Somebody with a key and a screen. All of them are checked at the end, unless they expect to be refused."""
    contexts: list[BrowserContext] = []
    visitors: list[Visitor] = []

    def come(key: str = READ, *, width: int = 1200, checked: bool = True, url: str = "", **more: Any) -> Visitor:
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 1100}, http_credentials={"username": "", "password": key}, **more
            )
        )
        contexts[-1].set_default_timeout(SECONDS * 1000)
        visitor = Visitor(contexts[-1].new_page(), url or served.url)
        if checked:
            visitors.append(visitor)
        return visitor

    yield come
    try:
        for visitor in visitors:
            visitor.check()
    finally:
        for context in contexts:
            context.close()


def hits(page: Page) -> Locator:
    return page.locator("table.hits tbody tr")


def keys_of(page: Page) -> list[str]:
    return page.locator("table.hits tbody a").all_inner_texts()


def drawn(page: Page) -> Locator:
    """The map, with its points."""
    canvas = page.locator("canvas")
    expect(canvas).to_have_attribute("data-points", re.compile(r"[1-9]\d*"))
    return canvas


# --- each view --------------------------------------------------------------------------------------------------------


def test_the_overview_shows_collections_and_leads_to_them(served: Served, visit: Visit) -> None:
    page = visit().go()
    rows = page.locator("table tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(2)).to_contain_text("1,500")
    expect(page.locator(".tile").first).to_contain_text("Queries")
    page.get_by_role("link", name="mine", exact=True).click()
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    expect(page.locator(".about")).to_have_text("8 dimensions · l2 · f32 · text: title")
    page.locator("#chooser").select_option("markup")
    expect(page.get_by_role("heading", name="markup")).to_be_visible()
    page.locator("a.mark").click()
    expect(page.locator("table tbody tr")).to_have_count(3)


def test_figures_are_live(served: Served, visit: Visit) -> None:
    visitor = visit()
    visitor.page.clock.install()
    page = visitor.go("changing")
    rows = page.locator(".tile").first.locator("strong")
    expect(rows).to_have_text("20")
    with served.client(WRITE) as client:
        client["changing"].upsert(range(10, 30), ROWS[:20])
        visitor.later()
        expect(rows).to_have_text("30")
        client["changing"].delete([1])
        visitor.later()
    expect(rows).to_have_text("29")
    expect(page.locator(".tile").first.locator("polyline")).to_be_attached()


def test_a_query_by_key_shows_hits_payloads_and_the_plan(served: Served, visit: Visit) -> None:
    page = visit().go("mine/query")
    page.locator("input[name=key]").fill("5")
    page.get_by_label("k", exact=True).fill("7")
    page.get_by_role("button", name="Query").click()
    expect(hits(page)).to_have_count(7)
    with served.client(READ) as client:
        wanted = client["mine"].query(key=5, k=7, with_payloads=True, explain=True)
    assert keys_of(page) == [str(key) for key in wanted.keys]
    expect(hits(page).first).to_contain_text("row of red shoes")
    hits(page).first.locator("summary").click()
    expect(hits(page).first.locator("pre")).to_contain_text('"title": "row of red shoes"')
    plan = page.locator(".plan")
    assert plan.locator("text.count").all_text_contents()[0] == "1,500"
    assert plan.locator("text.count").all_text_contents()[-1] == "7"
    expect(plan).to_contain_text("Walk through the graph" if wanted.explain.plan == "graph" else "Scan")
    hits(page).nth(1).locator("a").click()  # its own neighbours
    expect(page.locator("table.hits tbody a").first).to_have_text(str(wanted.keys[1]))
    page.go_back()
    expect(page.locator("input[name=key]")).to_have_value("")


def test_queries_by_vector_text_and_filter(served: Served, visit: Visit) -> None:
    page = visit().go("mine/query")
    go = page.get_by_role("button", name="Query")
    page.get_by_role("radio", name="Vector").check()
    vector = page.locator("textarea[name=vector]")
    vector.fill("1, 2, x")
    go.click()
    expect(page.locator(".fault:visible")).to_contain_text("which is no number")
    vector.fill(f"[{', '.join(map(str, ROWS[9].tolist()))}]")
    expect(page.get_by_text("8 of 8 numbers")).to_be_visible()
    page.get_by_label("Filter", exact=True).fill('{"n": {"$gte": 9, "$lt": 12}}')
    vector.press("Control+Enter")
    expect(hits(page)).to_have_count(3)
    assert keys_of(page)[0] == "9"
    expect(page.locator(".plan text.name").nth(1)).to_have_text("match the filter")
    assert page.locator(".plan text.count").all_text_contents()[1] == "3"
    page.get_by_label("Text", exact=True).fill("red")
    go.click()
    expect(page.locator(".plan text.name").nth(3)).to_have_text("have its words")
    vector.fill("")
    go.click()
    expect(page.locator(".plan")).to_contain_text("Ranking by BM25")
    assert keys_of(page) == ["9", "11"]
    page.get_by_label("Filter", exact=True).fill("{n: 1}")
    go.click()
    expect(page.locator(".fault:visible")).to_contain_text("no JSON")
    page.get_by_label("Filter", exact=True).fill("")
    page.get_by_role("button", name="Any row").click()
    expect(hits(page)).to_have_count(10)


def test_what_the_server_refuses_is_told(visit: Visit) -> None:
    page = visit(checked=False).go("mine/query")
    page.locator("input[name=key]").fill("nobody")
    page.get_by_role("button", name="Query").click()
    expect(page.locator(".fault:visible")).to_contain_text("KeyNotFoundError key 'nobody' does not exist")
    page.goto(page.url.partition("#")[0] + "#/none/query")
    expect(page.locator(".fault:visible")).to_contain_text("no collection of this name")


def test_keys_of_64_bits_and_texts_of_digits_are_told_apart(visit: Visit) -> None:
    page = visit().go("mine/query")
    for typed in (str(BIG), '"7"', "7"):
        page.locator("input[name=key]").fill(typed)
        page.get_by_role("button", name="Query").click()
        expect(page.locator("table.hits tbody a").first).to_have_text(typed)
    page.goto(page.url.partition("#")[0] + f"#/mine/query/{BIG}")
    expect(page.locator("table.hits tbody a").first).to_have_text(str(BIG))


def test_the_map_shows_points_and_true_neighbours(served: Served, visit: Visit) -> None:
    page = visit().go("mine/map")
    canvas = drawn(page)
    expect(canvas).to_have_attribute("data-points", "1000")
    expect(page.locator(".legend")).to_contain_text("row of red shoes")
    expect(page.locator(".map .faint").filter(has_text="1,000 of 1,500 rows")).to_be_visible()
    page.get_by_role("button", name="Closer").click()
    page.get_by_role("button", name="All").click()
    canvas.focus()
    page.keyboard.press("ArrowRight")
    key = canvas.get_attribute("data-over")
    assert key
    canvas.hover(position={"x": 3, "y": 3})
    expect(canvas).to_have_attribute("data-over", "")
    canvas.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator(".frame .tip")).to_contain_text("kind")
    key = canvas.get_attribute("data-over")
    assert key
    page.keyboard.press("Enter")
    expect(canvas).to_have_attribute("data-near", "10")
    with served.client(READ) as client:
        found = client["mine"].query(key=BIG if key == str(BIG) else int(key), k=11).keys
    listed = page.locator(".panel tbody button").all_inner_texts()
    assert listed == [str(each) if each != "7" else '"7"' for each in found if str(each) != key][:10]
    page.locator(".panel tbody button").first.click()  # on to one of them, whether or not it is in the sample
    expect(page.locator(".panel h3")).to_have_text(listed[0])
    page.get_by_label("Filter", exact=True).fill('{"kind": "b"}')
    page.get_by_label("Colour").select_option("n")
    page.get_by_role("button", name="Draw").click()
    rows = int((KINDS == 1).sum())
    expect(page.locator(".map .faint").filter(has_text=f"{rows} of {rows} rows")).to_be_visible()
    expect(page.locator(".legend")).to_contain_text("to 1,")


def test_the_mouse_hovers_chooses_zooms_and_moves_the_map(visit: Visit) -> None:
    page = visit().go("mine/map")
    canvas = drawn(page)
    canvas.focus()
    page.keyboard.press("ArrowRight")
    key = canvas.get_attribute("data-over")
    tip = page.locator(".frame .tip").bounding_box()
    assert tip is not None
    at = tip["x"] - 14, tip["y"] - 14  # where the point is: the tip hangs below it
    canvas.evaluate("(each) => each.blur()")
    page.mouse.move(*at)
    expect(canvas).to_have_attribute("data-over", key or "")
    page.mouse.wheel(0, -600)  # closer, and still above the same point
    page.mouse.move(at[0] + 1, at[1])
    expect(canvas).to_have_attribute("data-over", key or "")
    page.mouse.down()
    page.mouse.move(at[0] + 60, at[1] + 40, steps=4)
    page.mouse.up()
    page.mouse.move(at[0] + 61, at[1] + 40)  # it went along
    expect(canvas).to_have_attribute("data-over", key or "")
    page.mouse.click(at[0] + 61, at[1] + 40)
    expect(page.locator(".panel h3")).to_have_text(key or "")
    expect(canvas).to_have_attribute("data-near", "10")


def test_the_curve_of_recall_is_measured_and_drawn(visit: Visit) -> None:
    page = visit().go("mine/recall")
    page.get_by_label("Samples").fill("40")
    page.get_by_role("button", name="Measure").click()
    points = page.locator(".curve .point")
    expect(points.first).to_be_visible()
    assert points.count() == page.locator(".recall tbody tr").count() > 1
    points.last.focus()
    expect(page.locator(".curve .tip")).to_have_text(re.compile(r"List \d+: recall [\d.]+ \("))
    page.goto(page.url.replace("mine", "markup"))
    page.get_by_role("button", name="Measure").click()
    expect(page.get_by_text("Queries scan all rows")).to_be_visible()


def test_the_state_tells_settings_and_stats(visit: Visit) -> None:
    page = visit().go("mine/state")
    for name, value in (("dim", "8"), ("metric", "l2"), ("rows", "1,500"), ("text_fields", '["title"]')):
        row = page.locator("tr").filter(has=page.get_by_role("rowheader", name=name, exact=True)).first
        expect(row.locator("td")).to_have_text(value)


# --- who looks, and how -----------------------------------------------------------------------------------------------


def test_all_of_it_is_reached_by_keys_alone(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go()
    expect(page.locator("table tbody tr")).to_have_count(3)

    def tab_to(name: str) -> None:
        """Press the tabulator until something of this name has the focus, and is seen to have it."""
        for _ in range(40):
            page.keyboard.press("Tab")
            said = page.evaluate(
                "[document.activeElement.textContent || document.activeElement.name, "
                "getComputedStyle(document.activeElement).outlineStyle]"
            )
            if said[0] == name:
                assert said[1] == "solid"
                return
        raise AssertionError(f"{name} is not reached")

    tab_to("mine")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="mine")).to_be_visible()
    tab_to("key")
    page.keyboard.type("12")
    page.keyboard.press("Enter")
    expect(hits(page)).to_have_count(10)
    tab_to("Map")
    page.keyboard.press("Enter")
    canvas = drawn(page)
    for _ in range(30):
        page.keyboard.press("Tab")
        if canvas.evaluate("(each) => each === document.activeElement"):
            break
    for key in ("ArrowLeft", "ArrowUp", "+", "-", "Shift+ArrowLeft", "0", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    expect(canvas).to_have_attribute("data-near", "10")
    expect(page.locator("#said")).to_contain_text("10 neighbours of")
    page.keyboard.press("Escape")
    expect(canvas).not_to_have_attribute("data-near", "10")
    tab_to("Recall")
    page.keyboard.press("Enter")
    tab_to("Measure")
    tab_to("State")
    page.keyboard.press("Enter")
    expect(page.locator(".state table")).to_have_count(3)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_without_scrolling_sideways(visit: Visit, scheme: str) -> None:
    page = visit(width=360, color_scheme=scheme, has_touch=True, is_mobile=True).go()
    expect(page.locator("table tbody tr")).to_have_count(3)
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(19, 21, 23)"
    assert dark == (scheme == "dark")

    def narrow() -> None:
        assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [360, 360]

    narrow()
    for name in ("mine", "markup"):
        page.goto(page.url.partition("#")[0] + f"#/{name}/query")
        page.get_by_role("button", name="Any row").tap()
        expect(hits(page)).not_to_have_count(0)
        narrow()
        page.get_by_role("link", name="Map").tap()
        drawn(page)
        narrow()
        page.get_by_role("link", name="Recall").tap()
        page.get_by_label("Samples").fill("20")
        page.get_by_role("button", name="Measure").tap()
        expect(page.locator(".answer .curve, .answer > p:not(.working)").first).to_be_visible()
        narrow()
        page.get_by_role("link", name="State").tap()
        expect(page.locator(".state table")).to_have_count(3)
        narrow()


def test_markup_in_data_is_text(visit: Visit) -> None:
    visitor = visit()
    page = visitor.go("markup/query")
    page.get_by_role("button", name="Any row").click()
    expect(hits(page)).to_have_count(len(MARKUP))
    page.get_by_label("Text", exact=True).fill("broken")  # of a field whose name is markup, too
    page.get_by_role("button", name="Query").click()
    expect(page.locator(".plan")).to_contain_text("broken")
    assert set(keys_of(page)) <= set(MARKUP)
    for summary in page.locator("table.hits summary").all():
        summary.click()
    for text in MARKUP:
        expect(page.locator("pre").filter(has_text=json.dumps(text)).first).to_be_visible()
        page.goto(page.url.partition("#")[0] + "#/markup/query/" + page.evaluate("encodeURIComponent", text))
        expect(page.locator("table.hits tbody a").first).to_have_text(text)
        for summary in page.locator("table.hits summary").all():
            summary.click()
    page.get_by_role("link", name="Map").click()
    canvas = drawn(page)
    for text in MARKUP:
        page.get_by_label("Colour").select_option(text)
        expect(page.locator(".legend")).to_contain_text(text[:20])
    canvas.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator(".panel tbody button")).to_have_count(len(MARKUP) - 1)
    page.get_by_role("link", name="State").click()
    expect(page.locator(".state")).to_contain_text(MARKUP[1])
    for name in (*MARKUP, "..%2f..", "%", "__proto__", "constructor/toString"):
        page.goto(page.url.partition("#")[0] + "#/" + name)
        expect(page.locator(".fault:visible")).to_contain_text("no collection of this name")
        visitor.complaints.clear()  # a browser logs that the server has answered 404
    assert page.locator("main script, main img, main iframe, [onload], [onerror]").count() == 0


def test_without_a_key_there_is_nothing_to_see(served: Served, visit: Visit, browser: Browser) -> None:
    wrong = visit("wrong-key-0123456789", checked=False)
    answer = wrong.page.goto(f"{served.url}/console")
    assert answer is not None
    assert (answer.status, wrong.page.locator("#main").count()) == (401, 0)
    for path in ("/console", "/console/console.js", "/console/none"):
        refused = request(served.port, "GET", path)
        assert (refused.status, refused.body["error"]["code"]) == (401, "AccessError")


def test_a_key_of_one_collection_sees_that_alone(served: Served, visit: Visit) -> None:
    visitor = visit(SCOPED)
    page = visitor.go()
    expect(page.locator("table tbody tr")).to_have_count(1)
    expect(page.locator("table tbody tr")).to_contain_text("1,500")
    expect(page.locator("footer")).to_contain_text("Reading and writing mine; this page changes no rows.")
    expect(page.locator("#metrics")).to_be_hidden()
    page.get_by_role("link", name="mine").click()
    page.get_by_role("button", name="Any row").click()
    expect(hits(page)).to_have_count(10)
    assert not [url for url in visitor.asked if url.endswith("/metrics")]


def test_nothing_that_it_asks_changes_anything(served: Served, visit: Visit) -> None:
    """With a key that may only read, all views are there: see the others. It offers nothing that this key could not."""
    visitor = visit(READ)
    page = visitor.go("mine/map")
    expect(page.locator("footer")).to_contain_text("Reading all collections")
    drawn(page)
    asked = {url.removeprefix(served.url) for url in visitor.asked}
    assert not [path for path in asked if re.search(r"insert|upsert|delete|set_payload|compact|snapshot", path)]


def test_it_says_when_the_server_is_out_of_reach_and_goes_on_when_it_is_back(visit: Visit) -> None:
    visitor = visit(checked=False)
    visitor.page.clock.install()
    page = visitor.go("mine/query")
    page.context.set_offline(True)
    visitor.later()
    expect(page.locator("#alarm")).to_contain_text("The server has not answered since")
    expect(page.locator("#pulse")).to_have_text("out of reach")
    page.get_by_role("button", name="Any row").click()
    expect(page.locator(".answer .fault")).to_contain_text("the server does not answer")
    page.context.set_offline(False)
    visitor.later()
    expect(page.locator("#pulse")).to_have_text("live")
    expect(page.locator("#alarm")).to_be_hidden()
    page.get_by_role("button", name="Any row").click()
    expect(hits(page)).to_have_count(10)


def test_it_says_when_the_server_has_ended(tmp_path: Path, visit: Visit) -> None:
    with serving(tmp_path / "root") as short:
        visitor = visit(checked=False, url=short.url)
        visitor.page.clock.install()
        page = visitor.go()
        expect(page.get_by_text("There is no collection yet")).to_be_visible()
    visitor.later()
    expect(page.locator("#alarm")).to_contain_text("The server has not answered since")


# --- its files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/console", *(f"/console/{name}" for name in FILES)])
def test_files_come_with_headers_that_keep_others_out(served: Served, path: str) -> None:
    answer = request(served.port, "GET", path, key=READ)
    assert answer.status == 200
    policy = dict(part.partition(" ")[::2] for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "%2e%2e/app.py", "console.html", "", "../../etc/passwd"])
def test_there_are_no_other_files(served: Served, name: str) -> None:
    assert request(served.port, "GET", f"/console/{name}", key=READ).status == 404


def test_files_name_only_each_other() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text()
        urls = set(re.findall(r"https?://[^\s\"'`]+", text))
        assert urls <= {"http://www.w3.org/2000/svg"}, path.name
        named = re.findall(r'from "\./([\w.]+)"|(?:href|src)="console/([\w.]+)"', text)
        assert {one or other for one, other in named} <= set(FILES), path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
    page = (FOLDER / "console.html").read_text()
    assert not re.search(r"<style|<script(?![^>]*src=)|\sstyle=|\son\w+=", page)
