"""Debian's headless Chromium, driven by Selenium, with a record of what it requests."""

import json
import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit


@contextmanager
def open_browser(folder, width=1440, height=900):
    """A window with a profile of its own in a folder."""
    from selenium import webdriver

    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    assert all(programs), "Debian's packages are called chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    # The browser's own calls home would be taken for the page's.
    options.add_argument("--disable-background-networking")
    options.add_argument(f"--user-data-dir={folder}")
    options.add_argument(f"--window-size={width},{height}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    service = webdriver.ChromeService(executable_path=programs[1])
    browser = webdriver.Chrome(options, service)
    try:
        yield browser
    finally:
        browser.quit()


def requested_hosts(browser):
    """The hosts of all requests since the last call, those of the page's own data left out."""
    hosts = set()
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
            address = message["params"].get("request", message["params"])["url"]
            if urlsplit(address).scheme not in ("blob", "data", "chrome"):
                hosts.add(urlsplit(address).netloc)
    return hosts
