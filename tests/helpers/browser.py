"""A headless Chromium of the system, and what it saw: console messages and requests that left the page's file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver

NAMES = ("chromium", "chromium-browser", "google-chrome")


def missing() -> str:
    """Why no browser can be started here; empty where one can."""
    if not any(map(shutil.which, NAMES)) or not shutil.which("chromedriver"):
        return "needs Chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
    return ""


@contextmanager
def open_page(page: Path, *, width: int = 1400, height: int = 1000, dark: bool = False) -> Iterator[webdriver.Chrome]:
    """The page in a new browser; a phone's layout below 600 pixels of width."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, NAMES)))
    for word in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        if width < 600:
            size = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def requests(driver: webdriver.Chrome) -> list[str]:
    """The addresses that the page asked for since the last call, those inside the page (data:) left out."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [url for url in urls if not url.startswith(("data:", "blob:"))]
