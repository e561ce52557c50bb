"""The page holds its pictures within itself, and a browser shows them."""

import re
import shutil
import subprocess

import pytest
from PIL import Image

from encoded_images import encode
from spark_vision.demo.page import Card, Row, Section, write_page

HOSTILE = '<script>alert("&")</script>'


@pytest.fixture
def page(tmp_path):
    cards = (
        Card("a", "a red picture", ("cosine 0.9",), is_asked=True),
        Card("b", HOSTILE),
        Card("lost", "a picture that is gone"),
    )
    pictures = {
        "a": encode(Image.new("RGB", (240, 180), "red"), "JPEG"),
        "b": encode(Image.new("L", (30, 40), 128), "JPEG"),
    }
    section = Section("一个红色的圆形", "What came.", (Row("<b>", cards),))
    path = tmp_path / "new folder" / "page.html"
    write_page(path, "title & more", ["a note"], [section], pictures)
    return path


def test_a_page_needs_nothing_but_itself(page):
    html = page.read_text("utf-8")
    assert html.count("data:image/jpeg;base64,") == 2
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", html)
    assert "一个红色的圆形" in html
    assert "a picture that is gone" in html


def test_text_is_never_markup(page):
    html = page.read_text("utf-8")
    assert "<script>" not in html
    assert "&lt;script&gt;alert(&quot;&amp;&quot;)&lt;/script&gt;" in html


@pytest.mark.browser
def test_a_browser_shows_every_picture(page, tmp_path):
    browser = shutil.which("chromium")
    assert browser, "Debian's package is called chromium"
    seen = page.with_name("seen.html")
    script = (
        "<script>onload = () => document.body.append('seen:' + "
        "[...document.images].map(i => i.naturalWidth + 'x' + i.naturalHeight))</script>"
    )
    seen.write_text(page.read_text("utf-8").replace("</body>", script + "</body>"), "utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    shot = tmp_path / "page.png"
    document = subprocess.run(
        [browser, *flags, "--dump-dom", seen.as_uri()], capture_output=True, text=True, timeout=60
    ).stdout
    assert "seen:240x180,30x40" in document
    command = [browser, *flags, "--window-size=900,700", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    colours = Image.open(shot).convert("RGB").getcolors(900 * 700)
    red = sum(count for count, (r, g, b) in colours if r > 240 and g < 20 and b < 20)
    assert red > 5_000, "the red picture is on the screen"
