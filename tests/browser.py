"""A real browser for pages: headless Chromium, of any width, light or dark; skips where it is not installed."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HEIGHT = 900  # CSS pixels
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextlib.contextmanager
def open_browser(width: int, dark: bool = False) -> Iterator[Any]:
    """Start a browser whose page is `width` CSS pixels wide, and end it with the block; takes about a second.

    Yields a driver of selenium. `console_errors` tells what the page complained of; `screenshot` takes a picture.
    """
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("chromium and chromedriver are not both installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # it writes on while it ends
        for flag in (*FLAGS, f"--user-data-dir={profile}", f"--window-size={max(width, 600)},{HEIGHT}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
        try:
            # A window has a least width of its own, about 500; the page's may be any.
            metrics = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})  # they take width of their own
            yield driver
        finally:
            driver.quit()


def console_errors(driver: Any) -> list[str]:
    """Return what the page's console has had to complain of since it was last asked."""
    return [entry["message"] for entry in driver.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]


def overflow(driver: Any) -> int:
    """Return by how many CSS pixels the page is wider than its window: 0 where nothing must be scrolled sideways."""
    return int(driver.execute_script("const d = document.documentElement; return d.scrollWidth - d.clientWidth"))


def screenshot(driver: Any, path: Path) -> None:
    """Save a PNG of the whole page, also of what lies below the window."""
    import base64

    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    path.write_bytes(base64.b64decode(taken["data"]))
