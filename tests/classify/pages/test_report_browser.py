"""A report in a real browser: cells open, the map answers, nothing complains, and nobody is asked for anything."""

import pytest
from browser import console_errors, open_browser, overflow
from reports import HOSTILE_FILE, SCRIPT, beacon, hostile_dataset, reported


@pytest.fixture(scope="module")
def listening():
    with beacon() as found:
        yield found


@pytest.fixture(scope="module")
def page(samples, tmp_path_factory, listening):
    folder = tmp_path_factory.mktemp("browsed")
    reported(hostile_dataset(samples, folder / "pictures", listening.label), folder)
    return (folder / "report.html").as_uri()


@pytest.fixture
def browser(page):
    with open_browser(1000) as driver:
        driver.get(page)
        yield driver


def elements(browser, selector):
    return browser.find_elements("css selector", selector)


def loaded(browser, images):
    script = "return [...arguments[0]].every(i => i.complete && i.naturalWidth > 0)"
    return bool(images) and browser.execute_script(script, images)


def test_nothing_complains_and_nobody_is_asked(browser, listening, page):
    assert loaded(browser, elements(browser, "img"))
    for button in elements(browser, "button[data-cell]"):
        button.click()
        elements(browser, "#cell-close")[0].click()
    assert console_errors(browser) == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
    assert listening.asked == []
    assert browser.current_url == page
    # The server does hear a browser that asks: the page before this one was silent of its own accord.
    browser.get(f"http://127.0.0.1:{listening.port}/heard")
    assert listening.asked.pop(0) == "/heard"
    listening.asked.clear()


def test_a_script_that_got_in_would_not_run(browser):
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'window.broken = 1'; document.body.append(s);"
        "const i = document.createElement('img'); i.setAttribute('onerror', 'window.broken = 2'); i.src = 'data:,';"
        "document.body.append(i);"
    )
    assert browser.execute_script("return window.broken") is None
    assert any("Content Security Policy" in line for line in console_errors(browser))


def test_cells_open_their_pictures(browser):
    for button in elements(browser, "button[data-cell]"):
        count = int(button.text)
        button.click()
        dialog = elements(browser, "#cell")[0]
        assert dialog.get_attribute("open") is not None
        images = elements(browser, "#cell-pictures img")
        assert len(images) == count and loaded(browser, images)
        assert elements(browser, "#cell-heading")[0].text == button.get_attribute("aria-label")
        elements(browser, "#cell-close")[0].click()
        assert dialog.get_attribute("open") is None
    titles = [button.get_attribute("aria-label") for button in elements(browser, "button[data-cell]")]
    assert any(SCRIPT in title for title in titles)


def test_the_keyboard_opens_and_closes_a_cell(browser):
    from selenium.webdriver.common.keys import Keys

    button = elements(browser, "button[data-cell]")[0]
    button.send_keys(Keys.ENTER)
    dialog = elements(browser, "#cell")[0]
    assert dialog.get_attribute("open") is not None
    assert browser.switch_to.active_element.get_attribute("id") == "cell-close"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert dialog.get_attribute("open") is None
    assert browser.switch_to.active_element == button, "where one was before"


def test_hovering_over_the_map_shows_the_picture(browser):
    from selenium.webdriver.common.action_chains import ActionChains

    tip = elements(browser, "#tip")[0]
    assert not tip.is_displayed()
    mark = elements(browser, "#embedding-map use[data-picture='0']")[0]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)
    browser.execute_script("arguments[0].dispatchEvent(new PointerEvent('pointerover', {bubbles: true}))", mark)
    assert tip.is_displayed() and loaded(browser, elements(browser, "#tip img"))
    assert HOSTILE_FILE in tip.text
    marks = elements(browser, "#embedding-map use[data-picture]")
    assert len(marks) == 85
    ActionChains(browser).move_to_element(marks[-1]).perform()  # drawn last: nothing lies on it
    shown = marks[-1].get_attribute("data-picture")
    assert browser.execute_script("return JSON.parse(document.getElementById('data').textContent).rows[arguments[0]][0]", shown) in tip.text  # fmt: skip
    box = tip.rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= 1000


def test_arrow_keys_walk_over_the_map(browser):
    from selenium.webdriver.common.keys import Keys

    field = elements(browser, "#embedding-map")[0]
    field.send_keys(Keys.ARROW_RIGHT)
    told = elements(browser, "#map-told")[0]
    first = told.get_attribute("textContent")
    assert first
    seen = {first}
    for key in (Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_UP) * 3:
        field.send_keys(key)
        seen.add(told.get_attribute("textContent"))
    assert len(seen) > 3
    field.send_keys(Keys.ESCAPE)
    assert not elements(browser, "#tip")[0].is_displayed()


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 800, 1400])
def test_no_width_needs_scrolling_sideways(page, width, dark):
    with open_browser(width, dark) as driver:
        driver.get(page)
        assert overflow(driver) == 0
        ground, ink = (
            driver.execute_script(f"return getComputedStyle(document.body).{name}")
            for name in ("backgroundColor", "color")
        )
        levels = [sum(map(int, colour[4:-1].split(","))) for colour in (ground, ink)]
        assert (levels[0] < levels[1]) == dark and abs(levels[0] - levels[1]) > 500


def test_everything_has_a_name_for_those_who_cannot_see(browser):
    script = "return [...document.querySelectorAll('img')].filter(i => !i.alt).length"
    assert browser.execute_script(script) == 0
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    nameless = [
        node["role"]["value"]
        for node in nodes
        if not node.get("ignored")
        and node["role"]["value"] in ("button", "link", "image", "dialog", "table", "application")
        and not node.get("name", {}).get("value")
        and node["role"]["value"] != "table"
    ]
    assert nameless == []
    order = browser.execute_script("return [...document.querySelectorAll('main h2')].map(h => h.textContent)")
    assert len(order) >= 9
