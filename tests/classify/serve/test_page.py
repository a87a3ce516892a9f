"""The page in a real browser."""

import time

import numpy as np
import pytest
from browser import console_errors, open_browser, overflow
from PIL import Image

NAMED = "<img src=x onerror=alert(1)>.jpg"


@pytest.fixture(scope="module")
def pictures(photograph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chosen")
    (folder / NAMED).write_bytes(photograph)
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


def choose(driver, server, *paths):
    driver.get(f"http://127.0.0.1:{server.port}/")
    driver.find_element("id", "files").send_keys("\n".join(map(str, paths)))
    settle(driver, len(paths))


def settle(driver, count):
    done = f"{count} picture{'s' if count > 1 else ''} done"
    for _ in range(200):
        if driver.find_element("id", "status").text.startswith(done):
            return
        time.sleep(0.05)
    pytest.fail(driver.find_element("id", "status").text or "nothing happened")


def texts(driver, selector):
    return [found.text for found in driver.find_elements("css selector", selector)]


@pytest.mark.parametrize(("width", "dark"), [(360, False), (1400, True)])
def test_pictures_that_are_chosen_get_answers(server, pictures, photograph, width, dark):
    answer = server.form(("a.jpg", photograph))[2]["predictions"][0]
    with open_browser(width, dark) as driver:
        choose(driver, server, pictures / NAMED, pictures / "noise.png")
        assert texts(driver, ".picture h2")[0] == answer["label"]
        assert texts(driver, ".name") == [NAMED, "noise.png"], "a name is text"
        shown = texts(driver, ".picture:first-child .number")
        assert shown[0] == f"{100 * answer['probability']:.1f} %"
        assert len(shown) == 2
        assert texts(driver, ".unlike") == [], "a dozen training pictures are too few to say so of any"
        assert "One of: " in texts(driver, ".picture")[0]
        assert driver.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")
        assert "efficientnet" not in driver.title
        assert driver.title.startswith("ants or bees")
        assert overflow(driver) == 0
        assert console_errors(driver) == []


def test_a_picture_unlike_any_says_that_its_label_means_little(server, pictures):
    with open_browser(800) as driver:
        choose(driver, server, pictures / "noise.png")
        driver.execute_script("about.unlike = 0.5")
        driver.find_element("id", "files").send_keys(str(pictures / "noise.png"))
        settle(driver, 2)
        assert texts(driver, ".unlike") == ["Unlike any training picture: what is said of it means little."]


def test_a_file_that_is_no_picture_says_so(server, pictures, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    (tmp_path / "large.jpg").write_bytes(bytes(3_000_000))
    with open_browser(800) as driver:
        choose(driver, server, tmp_path / "bad.jpg", tmp_path / "large.jpg", pictures / "noise.png")
        assert sorted(texts(driver, ".problem")) == ["larger than the limit of 2000000 bytes", "not an image"]
        assert driver.find_element("id", "status").text == "3 pictures done, 2 could not be read"
        assert len(texts(driver, ".chances")) == 1


def test_the_page_is_worked_by_keyboard_and_named_for_those_who_do_not_see_it(server, pictures):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.keys import Keys

    with open_browser(800) as driver:
        choose(driver, server, pictures / "noise.png")
        webdriver.ActionChains(driver).send_keys(Keys.TAB).perform()
        assert driver.switch_to.active_element.get_attribute("id") == "files"
        assert driver.switch_to.active_element.accessible_name == "Choose pictures"
        webdriver.ActionChains(driver).send_keys(Keys.TAB).perform()
        clear = driver.switch_to.active_element
        assert clear.accessible_name == "Clear"
        assert driver.find_element("id", "status").aria_role == "status"
        clear.send_keys(Keys.ENTER)
        assert texts(driver, ".picture") == []
        assert driver.switch_to.active_element.get_attribute("id") == "files"


def test_more_pictures_than_a_request_may_have(server, pictures, photograph):
    for number in range(20):
        (pictures / f"{number:02d}.jpg").write_bytes(photograph)
    with open_browser(1400) as driver:
        choose(driver, server, *sorted(pictures.glob("[0-9]*.jpg")))
        assert len(set(texts(driver, ".picture h2"))) == 1
        assert len(texts(driver, ".chances")) == 20
