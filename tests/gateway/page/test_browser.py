"""The page in a real Chromium: what a person sees and does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.support.browser import DEADLINE, Visit
from tests.support.up import Up

pytestmark = pytest.mark.timeout(180)

VIEWS = ("state", "market", "trade", "consoles", "clients")
PLACES = (*VIEWS, "market/600519.SH")
CONSOLES = ("realtime", "whole_quote", "l2_thousand", "download_progress", "formula", "trade")
PRICE = "() => document.querySelector('.row[data-code=\"600519.SH\"] .c-last')?.textContent"
SHOWN = """place => document.querySelector('#feed[data-state=up]') && document.querySelector('main').firstElementChild
    && document.querySelector(`#to-${place.split("/")[0]}[aria-current=page]`)"""
# The picture of a canvas, as the page can compare it.
PICTURE = "selector => document.querySelector(selector)?.toDataURL()"
COLOURS = """selector => {
    const canvas = document.querySelector(selector);
    if (!canvas?.width) return 0;
    // A copy, because the browser warns of a page that reads what it draws.
    const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
    copy.drawImage(canvas, 0, 0);
    const {data} = copy.getImageData(0, 0, canvas.width, canvas.height);
    const found = new Set();
    for (let at = 0; at < data.length; at += 4) {
        if (data[at + 3] > 40) found.add((data[at] >> 5) + "/" + (data[at + 1] >> 5) + "/" + (data[at + 2] >> 5));
    }
    return found.size;
}"""


def key_of(up: Up) -> str:
    return parse_qs(urlsplit(up.trade_url).query)["api_key"][0]


def enter_key(visit: Visit, key: str) -> None:
    visit.page.click("#key")
    visit.page.fill("#api-key", key)
    visit.page.keyboard.press("Enter")
    visit.page.locator("dialog").wait_for(state="detached")


def show(visit: Visit, place: str) -> None:
    """Go to a view, and wait until it is shown."""
    visit.go(place)
    visit.until(SHOWN, place)


def test_state_says_at_once_that_it_works_and_is_simulated(visit: Visit) -> None:
    visit.open()
    visit.until("() => document.querySelector('.verdict').dataset.level === 'ok'")
    assert "Everything works" in visit.text(".verdict h1")
    assert visit.page.locator("#simulated").is_visible()
    assert "SIMULATED" in visit.text("#simulated")
    assert visit.text("#feed") == "live"
    visit.until("() => /^\\d/.test(document.querySelector('[data-tile=in] b').textContent)")
    visit.until("() => /\\d/.test(document.querySelector('.hops tbody tr:last-child td').textContent)")
    visit.until("() => document.querySelector('.ages tbody tr').dataset.mark === 'ok'")


def test_view_left_before_its_socket_is_open_logs_nothing(visit: Visit) -> None:
    visit.open()
    # The fixture asserts at its end that the console has no warning.
    visit.page.evaluate("""async () => {
        for (const place of ["market", "state", "consoles", "market", "state", "trade", "state"]) {
            location.hash = place;
            await new Promise(resolve => setTimeout(resolve));
        }
    }""")
    visit.until("() => document.querySelector('.verdict')?.dataset.level === 'ok'")


def test_prices_of_the_board_move(visit: Visit) -> None:
    visit.open("market")
    first = visit.until(f"() => {{ const shown = ({PRICE})(); return /\\d/.test(shown) && shown; }}")
    visit.until(f"before => ({PRICE})() !== before", first)
    visit.until("() => document.querySelector('.row[data-code] .line').getAttribute('points')?.split(' ').length > 5")
    assert visit.page.locator('.row[data-code="600519.SH"] .bids').get_attribute("d")


def test_chart_and_depth_have_colours_and_their_pictures_change(visit: Visit) -> None:
    visit.open("market/600519.SH")
    for canvas in (".chart canvas", ".depth canvas"):
        visit.until(f"selector => ({COLOURS})(selector) > 3", canvas)
        before = visit.page.evaluate(PICTURE, canvas)
        visit.until(f"([selector, before]) => ({PICTURE})(selector) !== before", [canvas, before])
    for period in ("1m", "1d"):
        visit.page.click(f'[data-period="{period}"]')
        visit.until("() => /Open/.test(document.querySelector('.chart .read').textContent)")
        visit.until(f"selector => ({COLOURS})(selector) > 3", ".chart canvas")


def test_ladder_and_tape_have_lines_that_move(visit: Visit) -> None:
    visit.open("market/600519.SH")
    visit.until(
        "() => [...document.querySelectorAll('.ladder .bid td')].every(cell => cell.className || cell.textContent)"
    )
    first = visit.until("() => document.querySelector('.tape tbody tr').textContent")
    visit.until("before => document.querySelector('.tape tbody tr').textContent !== before", first)


def test_each_console_sends_its_request_and_shows_frames(visit: Visit, up: Up) -> None:
    visit.open("consoles")
    enter_key(visit, key_of(up))
    for name in CONSOLES:
        visit.go(f"consoles/{name}")
        visit.page.locator(f'.console[aria-label="/ws/{name}"]').wait_for()
        visit.page.click('.console [data-does="send"]')
        visit.until(
            "() => [...document.querySelectorAll('.frames .body')].some(each => each.textContent.startsWith('{'))"
        )
        visit.page.click('.console [data-does="pause"]')
        shown = visit.text(".frames summary .body")
        frames = visit.text(".frames-head .soft")
        assert json.loads(shown) if len(shown) < 400 else shown.startswith("{")
        if name != "download_progress":
            visit.until("before => document.querySelector('.frames-head .soft').textContent !== before", frames)
        assert visit.text(".frames summary .body") == shown
        visit.page.click(".frames summary")
        # An element tells that it was opened in a task of its own.
        visit.until("() => document.querySelector('.frames pre').textContent.startsWith('{')")
        visit.page.click('.console [data-does="close"]')


# What a frame of each console has.
FIELDS = {
    **dict.fromkeys(("realtime", "whole_quote"), "lastPrice"),
    "l2_thousand": "askPrice",
    "download_progress": "finished",
    "formula": "outputs",
    "trade": "account_id",
}


def copied(visit: Visit, name: str, language: str) -> str:
    """Return the program that a console copies."""
    visit.go(f"consoles/{name}")
    visit.page.locator(f'.console[aria-label="/ws/{name}"]').wait_for()
    if name == "whole_quote" and language == "javascript":
        # A browser takes long to write whole markets into its log.
        visit.page.fill(".console textarea", '{"codes": ["000001.SZ"]}')
    visit.page.click(f'.console [data-does="{language}"]')
    visit.until("() => document.querySelector('.console .note').textContent.startsWith('Copied')")
    return str(visit.page.evaluate("() => navigator.clipboard.readText()"))


@pytest.mark.parametrize("language", ["python", "curl"])
def test_copied_programs_receive_frames(visits: Callable[..., Visit], up: Up, language: str) -> None:
    visit = visits(permissions=["clipboard-read", "clipboard-write"])
    visit.open("consoles")
    programs = {name: copied(visit, name, language) for name in CONSOLES}
    start = [sys.executable, "-u", "-c"] if language == "python" else ["sh", "-c"]
    environment = {**os.environ, "QMT_BRIDGE_API_KEY": key_of(up)}
    with ExitStack() as stack:
        running = {}
        for name, program in programs.items():
            process = subprocess.Popen(
                [*start, program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, process_group=0
            )
            running[name] = stack.enter_context(process)
            stack.callback(os.killpg, process.pid, signal.SIGKILL)
        for name, process in running.items():
            assert process.stdout is not None
            received = b""
            while not re.search(rf"[\"']{FIELDS[name]}[\"']".encode(), received):
                piece = process.stdout.read1(1 << 16)
                assert piece, (name, received[:500])
                received += piece


def test_copied_javascript_receives_frames(visits: Callable[..., Visit], up: Up) -> None:
    visit = visits(permissions=["clipboard-read", "clipboard-write"])
    visit.open("consoles")
    visit.page.on("dialog", lambda dialog: dialog.accept(key_of(up)))
    browser = visit.context.new_cdp_session(visit.page)
    for name in CONSOLES:
        program = copied(visit, name, "javascript")
        field = {"download_progress": "finished", "formula": "formula_name", "trade": "seq"}.get(name, "000001.S")
        with visit.page.expect_console_message(lambda message, field=field: field in message.text):
            # As in the console of a browser, where a name may be declared again.
            browser.send("Runtime.evaluate", {"expression": program, "replMode": True})
        browser.send("Runtime.evaluate", {"expression": "socket.close()"})


def test_wrong_key_is_told_and_a_right_one_opens_trade_events(visit: Visit, up: Up) -> None:
    visit.open("trade")
    visit.page.click(".lock button")
    visit.page.fill("#api-key", "wrong-key-0123456789")
    visit.page.keyboard.press("Enter")
    visit.until("() => document.querySelector('.wrong').textContent")
    # The browser tells of an answer with an error, which this one was to be.
    visit.logged.clear()
    visit.page.fill("#api-key", key_of(up))
    visit.page.keyboard.press("Enter")
    visit.until("() => document.querySelectorAll('[data-table=orders] tbody tr').length > 2")
    visit.page.click('[data-tab="fills"]')
    visit.until("() => document.querySelectorAll('[data-table=fills] tbody tr').length > 0")
    assert "nothing missed" in visit.text(".trade-open .grow")
    kept = visit.page.evaluate(
        "() => JSON.stringify(localStorage) + JSON.stringify(sessionStorage) + document.cookie + location"
    )
    assert key_of(up) not in kept
    assert not [url for url in visit.asked if key_of(up) in url]


def test_codes_are_added_moved_removed_and_kept(visit: Visit) -> None:
    codes = "() => [...document.querySelectorAll('.row[data-code]')].map(row => row.dataset.code)"
    visit.open("market")
    before = visit.page.evaluate(codes)
    visit.page.fill("#board-add", "600036, 159915.sz nonsense")
    visit.page.keyboard.press("Enter")
    assert visit.page.evaluate(codes) == [*before, "600036.SH", "159915.SZ", "NONSENSE"]
    visit.until("() => /\\d/.test(document.querySelector('.row[data-code=\"600036.SH\"] .c-last').textContent)")
    visit.until("() => document.querySelector('.row[data-code=NONSENSE] .c-last').textContent.includes('not a code')")
    row = visit.page.locator('.row[data-code="600036.SH"]')
    row.focus()
    visit.page.keyboard.press("Alt+Home")
    assert visit.page.evaluate(codes)[0] == "600036.SH"
    visit.page.locator(".row[data-code=NONSENSE]").focus()
    visit.page.keyboard.press("Delete")
    handle = visit.page.locator('.row[data-code="159915.SZ"] .grip')
    handle.scroll_into_view_if_needed()
    handle.hover()
    visit.page.mouse.down()
    target = visit.page.locator(f'.row[data-code="{before[1]}"]').bounding_box()
    visit.page.mouse.move(target["x"] + 20, target["y"] + 10, steps=5)
    visit.page.mouse.up()
    wanted = ["600036.SH", before[0], "159915.SZ", *before[1:]]
    assert visit.page.evaluate(codes) == wanted
    visit.page.reload()
    visit.until(f"wanted => JSON.stringify(({codes})()) === JSON.stringify(wanted)", wanted)


def test_keyboard_walks_the_board_and_opens_a_code(visit: Visit) -> None:
    visit.open("market")
    visit.page.locator(".row[data-code]").first.focus()
    visit.page.keyboard.press("ArrowDown")
    visit.page.keyboard.press("ArrowDown")
    code = visit.page.evaluate("() => document.activeElement.dataset.code")
    visit.page.keyboard.press("Enter")
    visit.until("code => document.querySelector('.instrument-head h2').textContent === code", code)
    # One row alone is a stop of the Tab key, however long the board is.
    assert visit.page.locator('.rows [tabindex="0"]').count() == 1
    visit.page.keyboard.press("1")
    visit.until("() => document.querySelector('.verdict')")


def test_five_levels_are_shown_as_numbers(visit: Visit) -> None:
    visit.open("market")
    visit.page.click(".board .button[aria-pressed]")
    visit.until("() => document.querySelectorAll('.row[data-code=\"600519.SH\"] .five .level').length === 10")
    assert re.search(r"\d", visit.text('.row[data-code="600519.SH"] .five .ask'))


def test_language_follows_the_browser_and_its_switch(visits: Callable[..., Visit]) -> None:
    visit = visits(locale="zh-CN")
    visit.open()
    visit.until("() => document.querySelector('.verdict h1').textContent === '一切正常'")
    assert visit.page.evaluate("() => document.documentElement.lang") == "zh-CN"
    assert "模拟数据" in visit.text("#simulated")
    visit.page.click("#language")
    visit.until("() => document.querySelector('.verdict h1').textContent === 'Everything works'")
    visit.page.reload()
    visit.until("() => document.querySelector('.verdict h1').textContent === 'Everything works'")


# What feeder and gateway note; each has to be told in Chinese, with these words in it.
NOTED = {
    "feed is up": "实时",
    "the feed is down: feeder_absent": "feeder 没有应答",
    "the feeder is connected: source sim, state stale": "模拟器",
    "account ******0365 (STOCK) is connecting: terminal_unreachable": "******0365",
    "trade journal: it is written again": "恢复",
    "trade journal: disk full; events are only in memory": "disk full",
    "17 messages were lost on the way from the feeder": "17",
    "quote/000001.SH/l2order/ is refused: unsupported_period: an index": "不支持该周期：an index",
    "quote/1.SH/tick/ of 127.0.0.1: unknown_symbol: not a code": "未知代码：not a code",
    "/ws/realtime of 127.0.0.1 is ended by an administrator": "/ws/realtime",
    "quote/600519.SH/tick/ is ended by an administrator for 3 clients": "3",
    "/ws/realtime from 127.0.0.1: 1013 slow_client: too slow (client did not read it) after 5.1 s, 70 frames": "过慢",
}


def test_events_of_the_service_are_told_in_chinese(visits: Callable[..., Visit]) -> None:
    visit = visits(locale="zh-CN")
    visit.open()
    visit.until("() => document.querySelectorAll('.s-lately tbody tr').length > 3")
    rows = visit.page.locator(".s-lately tbody td:last-child").all_inner_texts()
    assert [row for row in rows if not re.search("[\u4e00-\u9fff]", row)] == []
    script = "sentences => import('/assets/parts/reports.js').then(page => sentences.map(page.reported))"
    for sentence, (told, level) in zip(NOTED, visit.page.evaluate(script, [*NOTED]), strict=True):
        assert NOTED[sentence] in told
        assert re.search("[\u4e00-\u9fff]", told)
        assert level in ("ok", "note", "warn", "bad")


def test_red_is_up_until_it_is_switched(visit: Visit) -> None:
    colours = "() => ['up', 'down'].map(name => getComputedStyle(document.querySelector(`.arrow.${name}`)).color)"
    visit.open()
    up, down = visit.page.evaluate(colours)
    red, green, _ = map(int, re.findall(r"\d+", up)[:3])
    assert red > green
    visit.page.click("#colours")
    assert visit.page.evaluate(colours) == [down, up]


def test_theme_follows_the_system_and_its_switch(visits: Callable[..., Visit]) -> None:
    visit = visits(color_scheme="light")
    theme = "() => document.documentElement.dataset.theme"
    visit.open()
    visit.until(f"() => ({theme})() === 'light'")
    visit.page.emulate_media(color_scheme="dark")
    visit.until(f"() => ({theme})() === 'dark'")
    visit.page.click("#theme")
    visit.page.click("#theme")
    assert visit.page.evaluate(theme) == "light"


def test_phone_needs_no_scrolling_aside(visits: Callable[..., Visit]) -> None:
    visit = visits(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, device_scale_factor=2)
    visit.open()
    for view in PLACES:
        show(visit, view)
        assert visit.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), view
        # The mark and the ways to all views are in sight.
        assert visit.page.locator("#simulated").is_visible()
        for box in (visit.page.locator(f"#to-{name}").bounding_box() for name in VIEWS):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["y"] + box["height"] <= 740


# The other rules do not depend on the colours.
RULES = {"dark": {}, "light": {"runOnly": ["color-contrast"]}}


@pytest.mark.parametrize("scheme", RULES)
def test_axe_finds_nothing_serious(visits: Callable[..., Visit], up: Up, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the extra `browser` is not installed")
    visit = visits(color_scheme=scheme)
    visit.open()
    enter_key(visit, key_of(up))
    for view in PLACES:
        show(visit, view)
        if view == "trade":
            visit.until("() => document.querySelectorAll('[data-table=orders] tbody tr').length > 2")
        if view == "clients":
            visit.until("() => document.querySelectorAll('.clients-panels tbody tr').length > 2")
        if view.startswith("market"):
            visit.until(f"() => /\\d/.test(({PRICE})())")
        found = (
            axe.Axe().run(visit.page, options={"resultTypes": ["violations"], **RULES[scheme]}).response["violations"]
        )
        told = [(each["id"], [node["html"][:150] for node in each["nodes"][:3]]) for each in found if serious(each)]
        assert told == [], view


def serious(violation: dict[str, Any]) -> bool:
    return violation["impact"] in ("serious", "critical")


def test_policy_stops_scripts_and_styles_that_came_with_data(visit: Visit) -> None:
    visit.open()
    stopped = visit.page.evaluate(
        """async () => {
            const seen = [];
            addEventListener("securitypolicyviolation", event => seen.push(event.effectiveDirective));
            const style = document.createElement("p");
            style.setAttribute("style", "color: red");
            document.body.append(style);
            try { document.body.insertAdjacentHTML("beforeend", "<b>text</b>"); } catch { seen.push("markup"); }
            try { document.createElement("script").textContent = "window.came = 1"; } catch { seen.push("script"); }
            await fetch("http://127.0.0.2/").catch(() => seen.push("fetch"));
            await new Promise(resolve => setTimeout(resolve, 0));
            return seen;
        }"""
    )
    assert {"style-src-attr", "markup", "script", "fetch", "connect-src"} <= set(stopped)
    # These are the lines that the test has provoked.
    visit.logged.clear()
    visit.asked[:] = [url for url in visit.asked if "127.0.0.2" not in url]


def test_client_and_subscription_are_shown_and_ended(visit: Visit, up: Up) -> None:
    if visit.context.request.get(f"{visit.base}/api/clients").status == 404:
        pytest.skip("this gateway has no administration by API")
    with connect(up.url("/ws/realtime?ctl=1"), proxy=None) as client:
        client.send(json.dumps({"action": "subscribe", "id": 1, "stocks": ["600777.SH"]}))
        visit.open("clients")
        enter_key(visit, key_of(up))
        topic = 'tr:has(th:text-is("quote/600777.SH/tick/"))'
        visit.page.click(f"{topic} button")
        visit.page.click('dialog button[value="yes"]')
        visit.page.locator("[role=status]", has_text="600777.SH/tick/ was ended").wait_for()
        row = visit.page.locator('tr:has(td:text-is("/ws/realtime"))', has_text="–").first
        row.get_by_role("button").click()
        visit.page.click('dialog button[value="yes"]')
        # It ends with the close; until then there are frames.
        for _ in range(1000):
            try:
                client.recv(timeout=DEADLINE)
            except ConnectionClosed:
                break
        assert client.close_code == 1008
