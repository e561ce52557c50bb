"""A tokenizer of CLIP's kind for a tiny vocabulary: each word of the scenes is one token."""

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from spark_vision.demo.captions import COLOURS_ZH, RELATIONS_ZH, SHAPES_ZH
from spark_vision.demo.scenes import COLOURS, SHAPES, SIZES

CONTEXT_LENGTH = 48

# Longest first, so that no word's pieces are joined the way a shorter word would have them.
_ENGLISH = sorted(
    [
        *(*COLOURS, *SHAPES, *SIZES),
        *("a", "an", "and", "of", "to", "the", "photo", "picture", "image"),
        *("left", "right", "above", "below", "over", "under"),
    ],
    key=lambda word: (-len(word), word),
)
_CHINESE = [
    *("一个", "小的", "大的", "图里有"),
    *COLOURS_ZH.values(),
    *SHAPES_ZH.values(),
    *RELATIONS_ZH.values(),
]
_END = "</w>"


def make_tokenizer() -> CLIPTokenizer:
    """Make the tokenizer; any other word falls apart into pieces, at worst into bytes.

    Chinese words stand next to each other, so they are joined from whole characters wherever they
    occur, and not only where a word ends.

    Returns:
        A byte-level BPE tokenizer that lowers case, as that of every CLIP checkpoint.

    Raises:
        AssertionError: A word would fall apart.
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges: dict[tuple[str, str], None] = {}
    for word in _ENGLISH:
        _join(merges, [*word[:-1], word[-1] + _END])
    characters = {char for word in [*_CHINESE, "在的张片照"] for char in word}
    for character in sorted(characters):
        bytes_of = [*_spelt(character)]
        _join(merges, bytes_of)
        _join(merges, [*bytes_of[:-1], bytes_of[-1] + _END])
    for word in _CHINESE:
        spelt = [_spelt(character) for character in word]
        _join(merges, spelt)
        _join(merges, [*spelt[:-1], spelt[-1] + _END])
    tokens = [
        *alphabet,
        *(letter + _END for letter in alphabet),
        *("".join(pair) for pair in merges),
        *("<|startoftext|>", "<|endoftext|>"),
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=list(merges), model_max_length=CONTEXT_LENGTH
    )
    for word in [*_ENGLISH, *_CHINESE]:
        pieces = tokenizer.tokenize(word)
        assert len(pieces) == 1, f"{word!r} falls apart into {pieces}"
    return tokenizer


def _spelt(text: str) -> str:
    """The text's bytes, each as the printable character that stands for it in the vocabulary."""
    ((spelt, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)
    return spelt


def _join(merges: dict[tuple[str, str], None], pieces: list[str]) -> None:
    joined = pieces[0]
    for piece in pieces[1:]:
        merges.setdefault((joined, piece))
        joined += piece
