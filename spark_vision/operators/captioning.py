"""The operator that generates a text about each image, from a prompt."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from spark_vision.operators.base import DTYPES, PRECISION, ImageOperator
from spark_vision.operators.options import option

# Above it the models' own processors reject an image (`smart_resize`).
MAX_ASPECT_RATIO = 200
# What determines a caption, besides the model and the prompt.
_DECIDING = (
    "max_caption_length",
    "resized_height",
    "resized_width",
    "min_pixels",
    "max_pixels",
    "repetition_penalty",
    "do_sample",
    "engine",
)
_DECIDING_SAMPLES = ("temperature", "top_k", "top_p", "seed")
# vLLM raises a lower temperature to this, and rejects a higher one.
VLLM_TEMPERATURES = (0.01, 2.0)
# A tokenizer takes half a second for this many, and the context of most models is shorter.
MAX_PROMPT_CHARACTERS = 131_072


@dataclass(frozen=True, kw_only=True)
class QwenVLImageUnderstanding(ImageOperator):
    """Captions and answers from a Qwen-VL model: Qwen2-VL, Qwen2.5-VL or Qwen3-VL.

    Example:
        >>> photos = spark.read.format("binaryFile").load("/data/photos")
        >>> qwen = QwenVLImageUnderstanding(
        ...     model_name="Qwen/Qwen2.5-VL-7B-Instruct",
        ...     prompt="Describe this image in one sentence.",
        ...     max_caption_length=64,
        ... )
        >>> photos.limit(2).select("path", caption_image("content", qwen).alias("caption")).show()
    """

    reads = ("image", "prompt")
    function = "caption_image"
    families = ("qwen_vl",)
    work = "spark_vision.executor.captioning:Captions"
    is_slow = True

    dtype: str = option("bfloat16", PRECISION, allowed=DTYPES)
    batch_size: int = option(
        4,
        "The model gets groups of 8 times as many rows; it generates up to 64 captions together.",
        minimum=1,
    )
    model_name: str = option(
        "Qwen/Qwen2.5-VL-7B-Instruct", "Checkpoint: a folder, or a name on the Hugging Face hub."
    )
    rank: int | None = option(
        None,
        "Index into the GPUs that Spark assigned to the task; none: the first. Ignored on a CPU.",
        minimum=0,
    )
    prompt: str | None = option(
        "请给出这张图片的详细描述。",
        "Prompt for each image; none: each row must provide one.",
    )
    max_caption_length: int = option(256, "Maximum tokens of a caption.", minimum=1)
    use_flash_attention_2: bool = option(
        True,
        "Use the flash-attn package where it is installed and the GPU supports it; otherwise "
        "torch's own attention.",
    )
    engine: str = option(
        "transformers",
        "What generates the captions: transformers, or vLLM in an environment of its own (see the "
        "page on vLLM).",
        allowed=("transformers", "vllm"),
    )
    resized_height: int | None = option(
        None,
        "Height in pixels to which every image is resized, rounded to a multiple of the model's "
        "patch size and kept within min_pixels and max_pixels; requires resized_width.",
        minimum=1,
    )
    resized_width: int | None = option(
        None, "Width in pixels, like resized_height; requires it.", minimum=1
    )
    min_pixels: int | None = option(
        None,
        "Minimum pixels (width × height) of the model's input; none: the checkpoint's.",
        minimum=1,
    )
    max_pixels: int | None = option(
        None,
        "Maximum pixels (width × height) of the model's input; none: the checkpoint's.",
        minimum=1,
    )
    do_sample: bool = option(
        False, "Sample each token; otherwise take the most probable one (greedy)."
    )
    temperature: float = option(
        1.0, "Divides the logits before a token is sampled.", exclusive_minimum=0
    )
    top_k: int = option(
        50, "Sample from this many of the most probable tokens; 0: from all.", minimum=0
    )
    top_p: float = option(
        1.0,
        "Sample from the most probable tokens whose probabilities add up to this, at most 1.",
        exclusive_minimum=0,
    )
    repetition_penalty: float | None = option(
        None,
        "Divides the logits of tokens that occurred already; none: the checkpoint's.",
        exclusive_minimum=0,
    )
    seed: int = option(
        0,
        "Seed for sampling, combined with the image and the prompt; independent of the batch.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.resized_height, self.resized_width
        size = f"{height} with resized_width={width}"
        if (height is None) != (width is None):
            raise self._refusal("resized_height", size, "both or neither")
        if height and width and max(height, width) > MAX_ASPECT_RATIO * min(height, width):
            allowed = f"one at most {MAX_ASPECT_RATIO} times the other"
            raise self._refusal("resized_height", size, allowed)
        prompt = self.prompt or ""
        if any("\ud800" <= each <= "\udfff" for each in prompt):
            allowed = "text that UTF-8 can encode"
            raise self._refusal("prompt", "half of a surrogate pair", allowed)
        if len(prompt) > MAX_PROMPT_CHARACTERS:
            allowed = f"at most {MAX_PROMPT_CHARACTERS:,}"
            raise self._refusal("prompt", f"{len(prompt):,} characters", allowed)
        if self.engine == "vllm":
            self._check_vllm()
        if self.top_p > 1:
            raise self._refusal("top_p", self.top_p, "a number above 0 and at most 1")
        least, most = self.min_pixels, self.max_pixels
        if least is not None and most is not None and least > most:
            given = f"{least} with max_pixels={most}"
            raise self._refusal("min_pixels", given, "at most max_pixels")

    def _check_vllm(self) -> None:
        """Refuse what vLLM does not have, or would silently compute differently."""
        if self.model_sharing != "executor":
            given = f"'vllm' with model_sharing={self.model_sharing!r}"
            allowed = "model_sharing='executor', because vLLM runs in the executor's model server"
            raise self._refusal("engine", given, allowed)
        if self.dtype == "tf32":
            allowed = ", ".join(each for each in DTYPES if each != "tf32")
            raise self._refusal("engine", "'vllm' with dtype='tf32'", allowed)
        least, most = VLLM_TEMPERATURES
        if self.do_sample and not least <= self.temperature <= most:
            given = f"'vllm' with temperature={self.temperature}"
            raise self._refusal("engine", given, f"a number from {least} to {most:g}")

    @property
    def value_fields(self) -> Mapping[str, str]:
        """A caption, and whether it was truncated at its maximum length."""
        return {"caption": "string", "truncated": "boolean"}

    @property
    def identity_options(self) -> Mapping[str, str]:
        """The prompt, the size of the model's input, and how tokens are chosen."""
        names = [*_DECIDING, *(_DECIDING_SAMPLES if self.do_sample else ())]
        generation = {name: getattr(self, name) for name in names}
        return {"prompt": self.prompt or "", "generation": json.dumps(generation, sort_keys=True)}

    @property
    def flash_attention(self) -> bool:
        """Whether to use the flash-attn package where it is installed and supported."""
        return self.use_flash_attention_2

    @property
    def requires_prompt(self) -> bool:
        """Whether each row must provide a prompt."""
        return self.prompt is None
