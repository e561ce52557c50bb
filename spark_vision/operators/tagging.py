"""The operators that choose tags: zero-shot classification by a CLIP-like checkpoint."""

import json
from abc import ABC
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from spark_vision.errors import InvalidOptionError
from spark_vision.operators.embedding import ClipOperator, ImageVectorOperator
from spark_vision.operators.options import option

PLACEHOLDER = "{}"


@dataclass(frozen=True, kw_only=True)
class TagOperator(ClipOperator, ABC):
    """Base class of operators that choose tags."""

    tags: tuple[str, ...] = option((), "Tags to choose from: one or more, without duplicates.")
    template: str = option(
        "a photo of a {}", "Text that the model compares with an image; {} stands for the tag."
    )
    top_k: int = option(
        3, "Maximum number of tags per row; of fewer tags, all are returned.", minimum=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tags:
            raise self._refusal("tags", "no tag", "one or more strings")
        repeated = [tag for tag, count in Counter(self.tags).items() if count > 1]
        if repeated:
            raise self._refusal("tags", f"{repeated[0]!r} twice", "each tag once")
        if PLACEHOLDER not in self.template:
            allowed = f"a text with {PLACEHOLDER} in the place of the tag"
            raise self._refusal("template", repr(self.template), allowed)
        for text in self.class_texts:
            # A tokenizer cannot read it, nor a table store it.
            if any("\ud800" <= character <= "\udfff" for character in text):
                owner = type(self).__name__
                raise InvalidOptionError(
                    f"{owner} got the tag text {text!r}; allowed: text that UTF-8 can encode"
                )

    @property
    def class_texts(self) -> tuple[str, ...]:
        """The text of each tag, which is the template with the tag in it."""
        return tuple(self.template.replace(PLACEHOLDER, tag) for tag in self.tags)

    @property
    def value_fields(self) -> Mapping[str, str]:
        """The best tags with their scores, in descending order."""
        return {"tags": "array<struct<tag: string, score: float>>"}

    @property
    def identity_options(self) -> Mapping[str, str]:
        """Tags, template and number of tags."""
        return {
            **super().identity_options,
            "tags": json.dumps(self.tags, ensure_ascii=False),
            "template": self.template,
            "top_k": str(self.top_k),
        }


@dataclass(frozen=True, kw_only=True)
class ClipImageTags(TagOperator, ImageVectorOperator):
    """Tags of images by a CLIP-like checkpoint, from a list of any tags.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> tagger = ClipImageTags(
        ...     model_name="openai/clip-vit-base-patch32", tags=["circle", "square", "star"]
        ... )
        >>> photos.select("path", tag_image("content", tagger).alias("tags")).show()
    """

    function = "tag_image"
    work = "spark_vision.executor.tagging:ImageTags"


@dataclass(frozen=True, kw_only=True)
class ClipVectorTags(TagOperator):
    """The same tags from vectors that `ClipImageEmbedding` computed; no image is read.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> clip = ClipImageEmbedding(model_name="openai/clip-vit-base-patch32")
        >>> vectors = photos.select("path", embed_image("content", clip).alias("embedding"))
        >>> tagger = ClipVectorTags(model_name=clip.model_name, tags=["circle", "square", "star"])
        >>> vectors.select("path", tag_vectors("embedding", tagger).alias("tags")).show()
    """

    reads = ("vector",)
    function = "tag_vectors"
    work = "spark_vision.executor.tagging:tag_vectors"
