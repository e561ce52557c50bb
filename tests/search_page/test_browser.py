"""The page in a real browser: a person types, uploads, chooses and asks."""

from contextlib import ExitStack

import pytest

from browser import open_browser, requested_hosts
from scene_gallery import MARKUP, fill, serve
from spark_vision.search.milvus import MilvusIndex
from spark_vision.search_page.gallery_source import GalleryColumns
from spark_vision.search_page.index_gallery import IndexGallery

pytestmark = pytest.mark.browser
SECONDS = 60


@pytest.fixture(scope="module")
def address(scenes, model, tmp_path_factory):
    """A page over an index of Milvus Lite."""
    folder = tmp_path_factory.mktemp("lite")
    index = fill(MilvusIndex(str(folder / "scenes.db"), "scenes", index_type="FLAT"), scenes)
    (folder / "thumbnails").mkdir()
    source = IndexGallery(index, GalleryColumns(caption="caption", filters=("objects",)))
    with serve(source, model, folder / "thumbnails") as port:
        yield f"http://127.0.0.1:{port}/"
    index.close()


class Page:
    """A window with the page, as its user sees it."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.wait("document.body.dataset.ready")

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition):
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, SECONDS).until(lambda _: self.run(f"return {condition}"))

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def answered(self):
        self.wait("!document.querySelector('#status').textContent.startsWith('Searching')")
        self.wait(
            "[...document.querySelectorAll('.frame')].every(frame => frame.querySelector('.lost')"
            " || frame.querySelector('img')?.naturalWidth)"
        )
        return self.status

    def type(self, text):
        self.find("#text").clear()
        self.find("#text").send_keys(text + "\n")
        return self.answered()

    def upload(self, path):
        self.find("#file").send_keys(str(path))
        return self.answered()

    @property
    def status(self):
        return self.find("#status").text

    @property
    def captions(self):
        return [each.text for each in self.browser.find_elements("css selector", ".caption")]

    @property
    def titles(self):
        """The file of each result, as the page shows it when the result is chosen."""
        titles = []
        for card in self.browser.find_elements("css selector", ".card"):
            self.run("arguments[0].click()", card)
            titles.append(self.find("#chosen-values dd").text.rsplit("/")[-1])
            self.run("document.querySelector('#close').click()")
        return titles


@pytest.fixture
def open_page(address, tmp_path):
    """Opens the page in windows of their own users."""
    with ExitStack() as windows:
        opened = []

        def open_page(width=1440, height=900):
            profile = tmp_path / f"profile-{len(opened)}"
            browser = windows.enter_context(open_browser(profile, width, height))
            opened.append(Page(browser, address))
            return opened[-1]

        yield open_page
        for page in opened:
            assert requested_hosts(page.browser) == {address.split("/")[2]}
            errors = [each for each in page.browser.get_log("browser") if "422" not in str(each)]
            assert errors == []


def test_a_person_finds_a_scene_and_asks_about_it(open_page, scenes):
    page = open_page()
    place = next(at for at, each in enumerate(scenes.truths) if len(each.scene.objects) == 2)
    caption = scenes.records["caption"][place].as_py()
    assert f"to “{caption}”" in page.type(caption)
    assert page.captions[0] == caption
    assert len(page.captions) == 16

    page.find(".card").click()
    page.wait("document.querySelector('#chosen-picture img')?.naturalWidth > 0")
    assert page.find("#chosen-caption").text == caption
    page.find("#tags").send_keys("circle, square, triangle, star\n")
    page.wait("document.querySelectorAll('#rated dt').length === 4")
    shapes = {each.shape for each in scenes.truths[place].scene.objects}
    assert page.find("#rated dt").text in shapes
    page.find("#question").send_keys("How many shapes are there?\n")
    page.wait("!['', 'Thinking…'].includes(document.querySelector('#answer').textContent)")
    assert page.find("#answer").text.lower().startswith(("two", "2"))

    chosen = page.find("#chosen-values dd").text.rsplit("/")[-1]
    other = {scenes.truths[place].file, scenes.truths[place + 1].file} - {chosen}
    page.find("#similar").click()
    page.answered()
    assert {page.titles[0]} == other
    assert chosen not in page.titles


def test_an_uploaded_scene_finds_its_other_rendering(open_page, scenes, tmp_path):
    page = open_page()
    one, other = scenes.truths[6].file, scenes.truths[7].file
    assert one in page.upload(scenes.folder / one)
    assert page.titles[:2] == [one, other]
    assert page.run("return document.querySelector('#asked img').naturalWidth") > 0
    assert "incomplete" in page.upload(scenes.folder / "truncated.jpg")
    assert page.captions == []
    assert one in page.upload(scenes.folder / one)


def test_an_empty_query_gets_a_plain_message(open_page):
    page = open_page()
    assert page.type("") == "Type what you are looking for, or choose a picture."
    assert page.captions == []


def test_a_filter_and_hostile_rows(open_page):
    page = open_page()
    page.find("[name=objects]").send_keys("9")
    page.type("a star")
    assert set(page.captions) == {"outside", "broken", MARKUP}
    lost = " ".join(each.text for each in page.browser.find_elements("css selector", ".lost"))
    assert "blocked: " in lost
    assert "not_an_image: " in lost
    assert page.browser.title == "Search pictures"
    assert page.run("return document.querySelectorAll('main script, main img[src=x]').length") == 0


def test_two_users_at_once_see_their_own_results(open_page, scenes):
    first, second = open_page(), open_page()
    captions = [scenes.records["caption"][place].as_py() for place in (2, 10)]
    for page, caption in zip((first, second), captions, strict=True):
        page.find("#text").send_keys(caption + "\n")
    for page, caption in zip((first, second), captions, strict=True):
        assert caption in page.answered()
        assert page.captions[0] == caption


@pytest.mark.parametrize("width", [390, 1440])
def test_nothing_is_wider_than_the_window(open_page, scenes, width):
    page = open_page()
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.type(scenes.records["caption"][0].as_py())
    assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    page.find(".card").click()
    page.wait("document.querySelector('#chosen-picture img')?.naturalWidth > 0")
    box = page.run("return document.querySelector('#chosen').getBoundingClientRect().toJSON()")
    assert box["left"] >= 0
    assert box["right"] <= width
