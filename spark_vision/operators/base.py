"""The options that all operators share: checkpoint, device, failed rows, source of images."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, ClassVar, TypeGuard, TypeVar

from spark_vision.errors import InvalidOptionError
from spark_vision.operators.hosts import normalize_hosts, normalize_networks
from spark_vision.operators.locations import normalize_root, normalize_schemes
from spark_vision.operators.options import normalize_options, option

IMAGE_SOURCE_TYPES = ("image_url", "image_base64", "image_binary")
DTYPES = ("float32", "tf32", "float16", "bfloat16", "auto")
PRECISION = (
    "Precision of the model's computation. tf32: float32, with products rounded to TF32 on a GPU "
    "with a model server. auto: bfloat16 on devices that compute it in hardware, else float32."
)
# Each fetch has a thread.
MAX_FETCH_COUNT = 512
_VECTORS = ("array<float>", "array<array<float>>")

Other = TypeVar("Other", bound="Operator")


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """Limits on the cost of one image; an image above them fails on its row.

    The default of `max_pixels` is the size at which Pillow warns of a decompression bomb. It also
    limits the memory for decoding: 4 bytes per pixel of `max_pixels`, plus 64 MiB.

    Example:
        >>> limits = ImageLimits(max_bytes=20 * 2**20, fetch_seconds=10)
        >>> dino = ImageViTEmbedding(model_name="facebook/dinov2-base", limits=limits)
        >>> dino.limits.max_bytes
        20971520
    """

    max_bytes: int = option(100 * 2**20, "Maximum size of one encoded image, in bytes.", minimum=1)
    max_pixels: int = option(89_478_485, "Maximum pixels (width × height) of one image.", minimum=1)
    fetch_seconds: float = option(
        30.0,
        "Timeout for fetching one image, including connecting, redirects and retries; on local "
        "disks it is checked between reads.",
        exclusive_minimum=0,
    )
    decode_seconds: float = option(
        30.0,
        "Timeout for decoding one image, where it is decoded in a separate process.",
        exclusive_minimum=0,
    )
    fetch_concurrency: int = option(
        16,
        "Maximum number of images that a task fetches at the same time, per core of the task "
        "(spark.task.cpus).",
        minimum=1,
    )
    host_concurrency: int = option(
        16,
        "Maximum number of images that a task fetches from one host at the same time, per core of "
        "the task.",
        minimum=1,
    )

    def __post_init__(self) -> None:
        normalize_options(self)

    def for_cores(self, count: int) -> "ImageLimits":
        """Return the limits of a task with so many cores, at most `MAX_FETCH_COUNT` fetches."""
        fetch_count = min(self.fetch_concurrency * count, MAX_FETCH_COUNT)
        return replace(
            self,
            fetch_concurrency=max(self.fetch_concurrency, fetch_count),
            host_concurrency=self.host_concurrency * count,
        )


@dataclass(frozen=True, kw_only=True)
class Operator(ABC):
    """Base class of all operators: a checkpoint, a device, and a rule for failed rows.

    Each class describes itself, so that no other code needs `isinstance` checks.

    Attributes:
        reads: The inputs that it reads from a row: `image`, `text`, `prompt`, `vector`, in call
            order.
        function: The column function that accepts it, such as `embed_image`.
        families: The modules of `spark_vision.models` whose checkpoints it supports.
        work: The implementation on an executor, as `module:name`. For images an `ImageWork`,
            called with the operator and the task; for texts and vectors a function like
            `embedding.embed_texts`.
        is_slow: Whether a row takes a second or more, so that no row should be computed twice.
    """

    reads: ClassVar[tuple[str, ...]]
    function: ClassVar[str]
    families: ClassVar[tuple[str, ...]]
    work: ClassVar[str]
    is_slow: ClassVar[bool] = False

    dtype: str = option("float32", PRECISION, allowed=DTYPES)
    batch_size: int = option(32, "Number of rows per model batch.", minimum=1)
    model_path: str | None = option(
        "/opt/las/models", "Folder of checkpoints, searched before the Hugging Face hub."
    )
    model_name: str = option(
        "facebook/dinov2-large", "Checkpoint: a folder, or a name on the Hugging Face hub."
    )
    revision: str | None = option(None, "Branch, tag or commit of a checkpoint on the hub.")
    device: str = option("auto", "Device of the model.", allowed=("auto", "cuda", "cpu"))
    rank: int | None = option(
        0, "Index into the GPUs that Spark assigned to the task; ignored on a CPU.", minimum=0
    )
    model_sharing: str = option(
        "executor",
        "Where the model is loaded: in one process shared by all tasks of an executor, or in each "
        "Python worker.",
        allowed=("executor", "worker"),
    )
    on_error: str = option(
        "null",
        "Value of a failed row: null, zero (a zero vector, an empty caption, no tags), or raise, "
        "which fails the job.",
        allowed=("null", "zero", "raise"),
    )
    max_failure_rate: float | None = option(
        None,
        "Maximum fraction of failed rows, at most 1; above it the job fails. Checked per task and "
        "per table write, from 100 rows on; null rows do not count.",
        exclusive_minimum=0,
    )

    def __post_init__(self) -> None:
        normalize_options(self)
        if self.max_failure_rate is not None and self.max_failure_rate > 1:
            allowed = "a number above 0 and at most 1, or none"
            raise self._refusal("max_failure_rate", self.max_failure_rate, allowed)

    def _refusal(self, option: str, given: object, allowed: str) -> InvalidOptionError:
        return InvalidOptionError(f"{type(self).__name__}.{option} got {given}; allowed: {allowed}")

    def convert(self, kind: type[Other], **options: Any) -> Other:
        """Return an operator of another class, with the options that both classes have.

        Args:
            kind: Its class.
            **options: Further options; they replace those of this operator.
        """
        names = {field.name for field in fields(kind)}
        shared = {field.name for field in fields(self)} & names
        return kind(**{**{name: getattr(self, name) for name in shared}, **options})

    def load_work(self) -> Callable[..., Any]:
        """Import what computes this operator on an executor; see `work`."""
        module, _, name = self.work.partition(":")
        return getattr(import_module(module), name)  # type: ignore[no-any-return]

    @property
    def checkpoint_name(self) -> str:
        """The checkpoint's name as a folder or on the hub."""
        return self.model_name

    @property
    @abstractmethod
    def value_fields(self) -> Mapping[str, str]:
        """The result fields besides `status` and `error`, with their SQL types.

        The first field is the value itself.
        """

    @property
    def returns_vectors(self) -> bool:
        """Whether the value is a vector, or a list of vectors, of the model's dimension."""
        return next(iter(self.value_fields.values())) in _VECTORS

    @property
    def identity_options(self) -> Mapping[str, str]:
        """The options, as strings, that determine a value besides checkpoint and dtype."""
        return {}

    @property
    def effective_pooling(self) -> str | None:
        """The pooling of the model's tokens; None where the model has no vectors."""
        return None

    @property
    def class_texts(self) -> tuple[str, ...]:
        """The texts that vectors of images are compared with."""
        return ()

    @property
    def processor_overrides(self) -> Mapping[str, Any]:
        """Settings that override those of the checkpoint's image processor."""
        return {}

    @property
    def flash_attention(self) -> bool:
        """Whether to use the flash-attn package where it is installed and supported."""
        return False

    @property
    def torch_compile(self) -> bool:
        """Whether to compile the model by torch.compile."""
        return False

    @property
    def engine(self) -> str:
        """What computes the model: `transformers` or `vllm`."""
        return "transformers"

    @property
    def reading_options(self) -> Hashable:
        """The options that determine how an image is read; equal ones allow sharing a read."""
        return None

    @property
    def reads_urls(self) -> bool:
        """Whether strings in the image column are paths or URLs of the images."""
        return False

    @property
    def requires_prompt(self) -> bool:
        """Whether each row must provide a prompt."""
        return False


@dataclass(frozen=True, kw_only=True)
class ImageOperator(Operator, ABC):
    """Base class of operators that read images: the source and its limits.

    Attributes:
        isolates_decoding: Whether every image is decoded in a separate process, and not only those
            in the rarer formats; slower, but no image can end the worker.
    """

    reads: ClassVar[tuple[str, ...]] = ("image",)
    isolates_decoding: ClassVar[bool] = False

    image_src_type: str = option(
        "image_url",
        "How to interpret a string column; binary columns and image structs are always bytes.",
        allowed=IMAGE_SOURCE_TYPES,
    )
    limits: ImageLimits = option(ImageLimits(), "Limits per image, in bytes, pixels and seconds.")
    allow_paths: tuple[str, ...] = option(
        (),
        "Folders and buckets from which paths in the column may be read, such as /data/photos or "
        "s3://bucket/photos.",
    )
    allow_hosts: tuple[str, ...] = option(
        (), "Hosts that may be reached over HTTP(S) although their addresses are not public."
    )
    allow_networks: tuple[str, ...] = option(
        (), "Non-public networks that may be reached over HTTP(S), such as 10.0.0.0/8."
    )
    allow_schemes: tuple[str, ...] = option(
        (), "Additional fsspec schemes that URLs in the column may have."
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
        """The options that determine how an image is read, and from where."""
        return (
            self.image_src_type,
            self.limits,
            self.storage_options,
            self.allow_paths,
            self.allow_hosts,
            self.allow_networks,
            self.allow_schemes,
            self.fast_decode,
        )

    @property
    def reads_urls(self) -> bool:
        """Whether strings in the image column are paths or URLs of the images."""
        return self.image_src_type == "image_url"

    @property
    def fast_decode(self) -> bool:
        """Whether a large JPEG may be scaled down while it is decoded."""
        return False


def reads_images(operator: Operator) -> "TypeGuard[ImageOperator]":
    """Whether an operator reads images."""
    return "image" in operator.reads
