"""What all operators have: a checkpoint, a device, a rule for failed rows, a source of images."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeGuard

from spark_vision.errors import InvalidOptionError
from spark_vision.operators.options import normalize_options, option
from spark_vision.operators.places import normalize_root, normalize_schemes
from spark_vision.operators.reach import normalize_hosts, normalize_networks

IMAGE_SOURCE_TYPES = ("image_url", "image_base64", "image_binary")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What one image may cost before it is refused on its row.

    The pixel cap is the size at which Pillow warns of a decompression bomb. It also bounds what
    decoding takes: 4 bytes of memory for each pixel of the cap, and 64 MiB.

    Example:
        >>> limits = ImageLimits(max_bytes=20 * 2**20, fetch_seconds=10)
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base", limits=limits)
        >>> dino.limits.max_bytes
        20971520
    """

    max_bytes: int = option(100 * 2**20, "Most encoded bytes of one image.", minimum=1)
    max_pixels: int = option(89_478_485, "Most pixels (width × height) of one image.", minimum=1)
    fetch_seconds: float = option(
        30.0,
        "Time to fetch one image, with connecting, redirects and retries; files on local disks "
        "are asked between pieces of it.",
        exclusive_minimum=0,
    )
    decode_seconds: float = option(
        30.0, "Time to decode one image, where it has a process of its own.", exclusive_minimum=0
    )
    fetch_concurrency: int = option(16, "Images that one task fetches at a time.", minimum=1)
    host_concurrency: int = option(
        16, "Images that one task fetches from one host at a time.", minimum=1
    )

    def __post_init__(self) -> None:
        normalize_options(self)


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """What every operator has: a checkpoint, a device, and a rule for rows that fail.

    A class also describes itself, so that nothing else asks which class it is.

    Attributes:
        reads: What it takes of a row: `image`, `text`, `prompt`, in the order of a call.
        function: The column function that takes it: `embed_image`, `embed_text`, `caption_image`.
        families: The modules of `spark_vision.models` whose checkpoints it can use.
        work: What computes it on an executor, as `module:name`. For images an `ImageWork`, called
            with the operator and the task; for texts a function, as `embedding.open_texts` is.
        is_slow: Whether a row takes so long, a second or more, that none is to be computed twice.
    """

    reads: ClassVar[tuple[str, ...]]
    function: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    work: ClassVar[str]
    is_slow: ClassVar[bool] = False

    dtype: str = option("float32", "Precision of the model's computation.", allowed=DTYPES)
    batch_size: int = option(32, "Rows that the model computes at once.", minimum=1)
    model_path: str | None = option(
        "/opt/las/models", "Folder of checkpoints, looked into before the Hugging Face hub."
    )
    model_name: str = option(
        "facebook/dinov2-large", "Checkpoint: a folder, or a name on the Hugging Face hub."
    )
    revision: str | None = option(None, "Branch, tag or commit of a checkpoint on the hub.")
    device: str = option("auto", "Where the model computes.", allowed=("auto", "cuda", "cpu"))
    rank: int | None = option(
        0, "Which of the GPUs that Spark gave the task; it has no meaning on a CPU.", minimum=0
    )
    model_sharing: str = option(
        "executor",
        "Who holds the model: one process for all tasks of an executor, or each Python worker.",
        allowed=("executor", "worker"),
    )
    on_error: str = option(
        "null",
        "A failed row's value: null, zero (a zero vector, an empty caption), or raise, which fails "
        "the job.",
        allowed=("null", "zero", "raise"),
    )
    max_failure_rate: float | None = option(
        None,
        "Share of rows, at most 1, that may fail before the job does: of a task's rows, and of a "
        "table write's; judged from 100 rows on, null ones left out.",
        exclusive_minimum=0,
    )

    def __post_init__(self) -> None:
        normalize_options(self)
        if self.max_failure_rate is not None and self.max_failure_rate > 1:
            raise InvalidOptionError(
                f"{type(self).__name__}.max_failure_rate got {self.max_failure_rate}; allowed: a "
                "number above 0, 1 or less, or none"
            )

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint's name as a folder or the hub knows it."""
        return self.model_name

    @property
    @abstractmethod
    def value_fields(self) -> Mapping[str, str]:
        """The fields that a row's value has beside `status` and `error`, and their types in SQL.

        The first one is the value itself.
        """

    @property
    def gives_vectors(self) -> bool:
        """Whether the value is a vector, or a list of them, of the model's length."""
        return next(iter(self.value_fields.values())).startswith("array<")

    @property
    def deciding_options(self) -> Mapping[str, str]:
        """Those options, as texts, that decide a value beside checkpoint and dtype."""
        return {}

    @property
    def effective_pooling(self) -> str | None:
        """How the model's tokens become a vector; None where it gives no vectors."""
        return None

    @property
    def processor_overrides(self) -> Mapping[str, Any]:
        """Settings that override those of the checkpoint's image processor."""
        return {}

    @property
    def reading_options(self) -> Hashable:
        """What decides how an image is read: operators of equal ones can share what was read."""
        return None

    @property
    def reads_urls(self) -> bool:
        """Whether strings in the image column are addresses, which lead to the bytes."""
        return False

    @property
    def lacks_prompt(self) -> bool:
        """Whether each row must bring a prompt."""
        return False


@dataclass(frozen=True, kw_only=True)
class ImageOperator(Operator, ABC):
    """What every operator over images has: a source and its limits."""

    reads: ClassVar[tuple[str, ...]] = ("image",)

    image_src_type: str = option(
        "image_url",
        "How to read a string column; binary columns and image structs are always bytes.",
        allowed=IMAGE_SOURCE_TYPES,
    )
    limits: ImageLimits = option(
        ImageLimits(), "Bytes, pixels and seconds that one image may cost."
    )
    allow_paths: tuple[str, ...] = option(
        (),
        "Folders and buckets that strings of the column may be read below, such as /data/photos or "
        "s3://bucket/photos.",
    )
    allow_hosts: tuple[str, ...] = option(
        (), "Hosts that http and https may reach although their addresses are not public."
    )
    allow_networks: tuple[str, ...] = option(
        (), "Networks, such as 10.0.0.0/8, that http and https may reach although not public."
    )
    allow_schemes: tuple[str, ...] = option(
        (), "Schemes of fsspec, beside those that are known, that strings of the column may have."
    )
    storage_options: Mapping[str, Any] | None = option(
        None, "Options for fsspec, such as credentials; never shown or logged.", secret=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        schemes = normalize_schemes(f"{owner}.allow_schemes", self.allow_schemes)
        roots = [normalize_root(f"{owner}.allow_paths", root, schemes) for root in self.allow_paths]
        object.__setattr__(self, "allow_schemes", schemes)
        object.__setattr__(self, "allow_paths", tuple(roots))
        hosts = normalize_hosts(owner, self.allow_hosts)
        object.__setattr__(self, "allow_hosts", hosts)
        networks = normalize_networks(owner, self.allow_networks)
        object.__setattr__(self, "allow_networks", networks)

    @property
    def reading_options(self) -> Hashable:
        """What decides how an image is read, and what its string may reach."""
        return (
            self.image_src_type,
            self.limits,
            self.storage_options,
            self.allow_paths,
            self.allow_hosts,
            self.allow_networks,
            self.allow_schemes,
        )

    @property
    def reads_urls(self) -> bool:
        """Whether strings in the image column are addresses, which lead to the bytes."""
        return self.image_src_type == "image_url"


def reads_images(operator: Operator) -> "TypeGuard[ImageOperator]":
    """Whether an operator takes images."""
    return "image" in operator.reads
