"""Text vectors against the family's own transformers model and tokenizer, used directly."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import checkpoints
from oracles import same
from spark_vision.models.checkpoints import resolve_checkpoint
from spark_vision.models.families import load_model
from spark_vision.models.protocols import ImageEmbedder, TextEmbedder
from spark_vision.models.tokenizer import CHARACTERS_PER_TOKEN, load_tokenizer
from spark_vision.operators import ClipTextEmbedding

WRITERS = {
    "clip": checkpoints.write_clip,
    "chinese_clip": checkpoints.write_chinese_clip,
    "siglip": checkpoints.write_siglip,
    "siglip2_fixed_resolution": lambda folder: checkpoints.write_siglip(folder, second=True),
    "siglip2": checkpoints.write_siglip2,
}
TEXTS = [
    "a red circle",
    "A RED Circle left of the house",
    "one blue square",
    "yellow",
    "",
    "  two   spaces ",
    "绿色三角形",
    "in 3 boxes, near it!",
    "green triangle above a tree " * 10,
]


@pytest.fixture(scope="module", params=WRITERS)
def folder(request, tmp_path_factory):
    return WRITERS[request.param](tmp_path_factory.mktemp("checkpoints") / request.param)


def ours(folder, texts):
    checkpoint = resolve_checkpoint(ClipTextEmbedding(model_name=str(folder)))
    model = load_model(checkpoint, "float32", torch.device("cpu"))
    return model.embed_texts(load_tokenizer(checkpoint)(texts))


def theirs(folder, texts):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    if folder.name == "siglip2_fixed_resolution":
        texts = [text.lower() for text in texts]
    tokens = tokenizer(
        texts,
        padding="max_length" if folder.name.startswith("siglip") else True,
        max_length=checkpoints.CONTEXT_LENGTH,
        truncation=True,
        return_tensors="pt",
    )
    with torch.no_grad():
        return model.get_text_features(**tokens).pooler_output


def test_text_vectors_are_those_of_the_family_itself(folder):
    vectors = ours(folder, TEXTS)
    assert vectors.dtype == torch.float32
    assert vectors.is_contiguous()
    assert same(vectors, theirs(folder, TEXTS))


def test_the_vector_check_sees_other_texts(folder):
    others = [text.replace("red", "blue").replace("green", "yellow") for text in TEXTS]
    assert not same(ours(folder, others), theirs(folder, TEXTS))


def test_a_text_vector_does_not_depend_on_its_batch(folder):
    together = ours(folder, TEXTS)
    apart = torch.cat([ours(folder, [text]) for text in TEXTS])
    normalize = torch.nn.functional.normalize
    assert (normalize(together, dim=-1) - normalize(apart, dim=-1)).abs().max() <= 1e-5


def test_a_long_text_is_truncated_to_the_models_context(folder):
    checkpoint = resolve_checkpoint(ClipTextEmbedding(model_name=str(folder)))
    tokens = load_tokenizer(checkpoint)(TEXTS)
    assert tokens["input_ids"].shape == (len(TEXTS), checkpoints.CONTEXT_LENGTH)


LONG_TEXTS = {
    "words": "a red circle, near it! ",
    "one word": "a",
    "no words": "!?,;. ",
    "CJK": "绿色三角形图里有几个人",
    "combining marks": "e\u0301",
    "marks on one letter": "\u0301",
    "emoji": "🎈👩‍👩‍👧",
    "capitals whose lower case is longer": "İΣ ",
    "control characters": "\x00\x1fa",
}
MAX_CHARACTERS = CHARACTERS_PER_TOKEN * checkpoints.CONTEXT_LENGTH


@pytest.mark.parametrize("start", ["", "the house ", " " * 3000, "\u0301 x"])
@pytest.mark.parametrize("kind", LONG_TEXTS)
def test_a_cut_long_text_has_the_same_tokens(folder, kind, start):
    if folder.name == "siglip" and kind == "combining marks":
        pytest.skip("its vocabulary lacks the letter, so that the whole text is one unknown token")
    tokenizer = load_tokenizer(resolve_checkpoint(ClipTextEmbedding(model_name=str(folder))))
    text = start + LONG_TEXTS[kind] * (5 * MAX_CHARACTERS // len(LONG_TEXTS[kind]))
    cut = tokenizer([text])
    tokenizer._max_characters = len(text)
    whole = tokenizer([text])
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in cut)


def test_spaces_after_a_text_add_no_token(folder):
    tokenizer = load_tokenizer(resolve_checkpoint(ClipTextEmbedding(model_name=str(folder))))
    if folder.name.startswith("siglip2"):
        pytest.skip("its tokenizer keeps spaces, which then fill the model")
    assert torch.equal(
        tokenizer(["a red circle" + " " * 1_000_000])["input_ids"],
        tokenizer(["a red circle"])["input_ids"],
    )


def test_only_the_start_of_a_very_long_text_is_tokenized(folder):
    tokenizer = load_tokenizer(resolve_checkpoint(ClipTextEmbedding(model_name=str(folder))))
    true, seen = tokenizer._tokenizer, []

    def spy(texts, **options):
        seen.extend(map(len, texts))
        return true(texts, **options)

    tokenizer._tokenizer = spy
    tokenizer(["green " * 1_000_000, "red"])
    assert seen == [MAX_CHARACTERS, 3]


def test_siglip_texts_have_the_length_that_it_was_trained_on(folder):
    checkpoint = resolve_checkpoint(ClipTextEmbedding(model_name=str(folder)))
    token_count = load_tokenizer(checkpoint)(["red"])["input_ids"].shape[1]
    fixed = folder.name.startswith("siglip")
    assert (token_count == checkpoints.CONTEXT_LENGTH) == fixed


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_letter_case_means_nothing_to_these_families(writer, tmp_path):
    folder = writer(tmp_path / "checkpoint")
    upper, lower = ours(folder, ["A RED CIRCLE", "a red circle"])
    assert torch.allclose(upper, lower, atol=1e-5)


def test_one_model_serves_images_and_texts(folder):
    checkpoint = resolve_checkpoint(ClipTextEmbedding(model_name=str(folder)))
    model = load_model(checkpoint, "float32", torch.device("cpu"))
    assert isinstance(model, ImageEmbedder)
    assert isinstance(model, TextEmbedder)
