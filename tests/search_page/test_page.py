"""What a browser may ask for: searches, pictures by token, and nothing else."""

import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from urllib.parse import quote

import pytest
from PIL import Image

from scene_gallery import MARKUP
from spark_vision.search_page.gallery_source import FoundPicture
from spark_vision.search_page.page import MAX_UPLOAD_BYTES
from spark_vision.search_page.pictures import Pictures
from spark_vision.search_page.server import is_local

FILE = "application/octet-stream"


@pytest.fixture
def search(request_page):
    def search(text, **where):
        return request_page("/search", {"text": text, "where": where}).body["results"]

    return search


@pytest.fixture
def found(search):
    """The rows with hostile contents, by caption."""
    return {each["caption"]: each for each in search("a star", objects="9")}


def names(results):
    return [each["title"].rsplit("/")[-1] for each in results]


@pytest.mark.parametrize("place", [0, 8, 20])
@pytest.mark.parametrize("language", ["caption", "caption_zh"])
def test_a_description_finds_its_scene(scenes, search, place, language):
    line = (scenes.folder / "scenes.jsonl").read_text("utf-8").splitlines()[place]
    truth = json.loads(line)
    results = search(truth[language], objects=str(len(truth["objects"])))
    renderings = {each.file for each in scenes.truths if each.scene == scenes.truths[place].scene}
    assert names(results)[0] in renderings
    assert [each["score"] for each in results] == sorted(
        (each["score"] for each in results), reverse=True
    )


def test_there_are_sixteen_results_with_what_belongs_to_them(search, scenes):
    results = search("a star")
    assert len(results) == 16
    by_path = {row["id"]: row for row in scenes.records.to_pylist()}
    for each in results:
        row = by_path[each["title"]]
        assert each["caption"] == row["caption"]
        assert each["values"] == {"objects": str(row["objects"])}


def test_an_uploaded_scene_finds_itself_and_its_other_rendering(request_page, scenes):
    one, other = scenes.truths[4].file, scenes.truths[5].file
    data = (scenes.folder / one).read_bytes()
    assert names(request_page("/search-picture", data, kind=FILE).body["results"])[:2] == [
        one,
        other,
    ]
    where = quote(json.dumps({"objects": "9"}))
    limited = request_page(f"/search-picture?where={where}", data, kind=FILE).body["results"]
    assert {each["values"]["objects"] for each in limited} == {"9"}


def test_more_like_this_leaves_the_picture_itself_out(request_page, search, scenes):
    text = scenes.records["caption"][8].as_py()
    (chosen,) = [each for each in search(text) if each["title"].endswith(scenes.truths[8].file)]
    results = request_page("/similar", {"picture": chosen["picture"]}).body["results"]
    assert names(results)[0] == scenes.truths[9].file
    assert len(results) == 16
    assert chosen["title"] not in [each["title"] for each in results]


def test_the_tag_that_fits_a_picture_is_rated_best(request_page, search, scenes):
    place = next(at for at, each in enumerate(scenes.truths) if len(each.scene.objects) == 1)
    shape = scenes.truths[place].scene.objects[0].shape
    (chosen,) = [
        each
        for each in search(scenes.records["caption"][place].as_py())
        if each["title"].endswith(scenes.truths[place].file)
    ]
    request = {"picture": chosen["picture"], "tags": "circle, square，triangle、star; circle,"}
    rated = request_page("/tags", request).body["tags"]
    assert rated[0]["tag"] == shape
    assert sorted(each["tag"] for each in rated) == ["circle", "square", "star", "triangle"]
    assert sum(each["score"] for each in rated) == pytest.approx(1, abs=1e-5)
    for tags, said in ((" ,", "Type some tags"), ("word " * 150, "tokens")):
        message = request_page("/tags", request | {"tags": tags}).body["message"]
        assert said in message


@pytest.mark.parametrize(
    ("path", "body", "kind", "said"),
    [
        ("/search", {"text": "   "}, None, "Type what you are looking for"),
        ("/search-picture", b"not a picture", FILE, "not_an_image"),
        ("/search-picture", b"", FILE, "not_an_image"),
        ("/search", {"text": "a", "where": {"objects": "two"}}, None, "allowed: a number"),
    ],
)
def test_a_query_that_cannot_be_answered_gets_a_message(request_page, path, body, kind, said):
    answer = request_page(path, body, kind=kind)
    assert answer.status == 200
    assert said in answer.body["message"]


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("/search", {"text": 3}, None, 400),
        ("/search", {"text": "a" * 1001}, None, 400),
        ("/search", {"text": "a", "where": {"caption": "x"}}, None, 400),
        ("/search", {"text": "a", "where": [1]}, None, 400),
        ("/search", b"[1]", "application/json", 400),
        ("/search", b"[" * 60_000, "application/json", 400),
        ("/search", b" " * 70_000, "application/json", 413),
        ("/search-picture", bytes(MAX_UPLOAD_BYTES + 1), FILE, 413),
        ("/search-picture?where=3", b"", FILE, 400),
        # What a form of another site can send.
        ("/search", b'{"text": "a"}', "text/plain", 415),
        ("/search-picture", b"", "multipart/form-data", 415),
        ("/similar", {"picture": "0" * 64}, None, 404),
        ("/ask", {"picture": "/etc/passwd", "question": "What?"}, None, 404),
        ("/tags", {"picture": "/etc/passwd", "tags": "a"}, None, 404),
        ("/search", None, None, 405),
    ],
)
def test_a_malformed_request_is_refused(request_page, path, body, kind, status):
    assert request_page(path, body, kind=kind).status == status


def test_text_that_utf8_cannot_encode_is_a_query_like_others(request_page):
    assert request_page("/search", b'{"text": "\\ud800 star"}', kind="application/json").body[
        "results"
    ]


def test_a_picture_is_fetched_by_its_token(request_page, search, scenes):
    result = search("a star")[0]
    for kind, limit in (("thumbnail", 256), ("picture", 2048)):
        answer = request_page(f"/{kind}/{result['picture']}")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
        given = Image.open(io.BytesIO(answer.body))
        assert given.format == "JPEG"
        original = Image.open(result["title"].removeprefix("file:")).size
        scale = min(1, limit / max(original))
        assert given.size == pytest.approx([side * scale for side in original], abs=1)


def test_no_path_of_a_browser_leads_to_a_file(request_page, scenes):
    paths = [scenes.outside, scenes.folder / scenes.truths[0].file, "/etc/passwd"]
    for path in map(str, paths):
        tries = [path, quote(path, safe=""), f"..{path}", f"../../../../..{path}"]
        tries += ["../page.py", "%2e%2e%2fpage.py", "0" * 64]
        prefixes = ["/", "/thumbnail/", "/picture/", "/file=", "/gradio_api/file=", "/static/"]
        for prefix in prefixes:
            for each in tries:
                answer = request_page(prefix + each)
                assert answer.status in (404, 405), prefix + each


def test_a_row_that_leads_elsewhere_has_no_picture(request_page, found):
    for caption in ("outside", MARKUP):
        for kind in ("thumbnail", "picture"):
            answer = request_page(f"/{kind}/{found[caption]['picture']}")
            assert answer.status == 422
            assert answer.body["message"].startswith("blocked: ")
    token = found["outside"]["picture"]
    assert (
        "blocked" in request_page("/ask", {"picture": token, "question": "What?"}).body["message"]
    )


def test_a_broken_picture_has_its_status(request_page, found):
    answer = request_page(f"/thumbnail/{found['broken']['picture']}")
    assert answer.status == 422
    assert answer.body["message"].startswith("not_an_image: ")


def test_a_question_is_answered_about_the_chosen_picture(request_page, search, scenes):
    place = next(at for at, each in enumerate(scenes.truths) if len(each.scene.objects) == 1)
    chosen = search(scenes.records["caption"][place].as_py(), objects="1")[0]
    asked = {"picture": chosen["picture"], "question": "How many shapes are there?"}
    assert request_page("/ask", asked).body["answer"].lower().startswith(("one", "1"))
    assert "Type a question" in request_page("/ask", asked | {"question": " "}).body["message"]


def test_another_sites_name_for_this_machine_is_refused(request_page, port):
    assert request_page("/settings", host=f"rebound.example:{port}").status == 421
    assert request_page("/settings", host="127.0.0.1").status == 200
    assert request_page("/settings", host="[bad").status == 421


def test_every_answer_forbids_other_hosts_and_other_sites_frames(request_page):
    for path in ("/", "/page.js", "/settings", "/nothing"):
        headers = request_page(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers


def test_the_pages_files_name_no_other_host_and_set_no_markup():
    for name in ("page.html", "page.css", "page.js"):
        text = (files("spark_vision.search_page") / name).read_text("utf-8")
        assert not re.search(r"https?:|//\w+\.\w|@import|url\(", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval", text)


def test_two_users_at_once_get_their_own_results(search):
    texts = ["a large red circle", "a small blue square"] * 4
    alone = {text: search(text) for text in set(texts)}
    assert names(alone[texts[0]]) != names(alone[texts[1]])
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(search, texts))
    assert [names(each) for each in together] == [names(alone[text]) for text in texts]


def test_a_token_cannot_be_guessed_from_the_row(model, search, tmp_path):
    row = FoundPicture("id", 0.5, "/data/a.jpg", None, {})
    one, other = Pictures(model.reader, tmp_path), Pictures(model.reader, tmp_path)
    assert one.add(row) == one.add(row)
    assert one.add(row) != other.add(row)
    assert other.find(one.add(row)) is None


def test_thumbnails_are_made_once_and_take_bounded_space(model, scenes, tmp_path):
    copies = scenes.folder / "copies"
    copies.mkdir()
    pictures = Pictures(model.reader, tmp_path, max_bytes=20_000)
    made = {}
    for truth in scenes.truths[:12]:
        path = copies / truth.file
        path.write_bytes((scenes.folder / truth.file).read_bytes())
        row = FoundPicture(truth.file, 0.5, str(path), None, {})
        token = pictures.add(row)
        made[token] = row, pictures.thumbnail(token, row)
        path.unlink()
        assert pictures.thumbnail(token, row) == made[token][1]
        assert sum(each.stat().st_size for each in tmp_path.iterdir()) <= 20_000
    assert sum(len(data) for _, data in made.values()) > 20_000
    assert not list(copies.iterdir())


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a", False)],
)
def test_only_a_loopback_address_is_local(host, local):
    assert is_local(host) == local
