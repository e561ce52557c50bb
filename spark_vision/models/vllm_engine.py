"""Captions by vLLM, which batches the rows of all calls that are in progress.

vLLM gets the token ids of `caption_inputs`, with a single placeholder for the image, and the image
at the model's size. So its own processor only scales pixels and repeats the placeholder. The
engine's core is a process of its own; an event loop in a thread of this one exchanges rows with it.
"""

import asyncio
import copy
import itertools
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import Any, TypeVar

import torch
from PIL import Image

from spark_vision.errors import ModelServerError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import Checkpoint
from spark_vision.models.loading import choose_dtype
from spark_vision.models.pixel_batches import join_patches
from spark_vision.models.protocols import (
    CaptionBatch,
    GeneratedTokens,
    GenerationSettings,
    PixelScaling,
)
from spark_vision.models.token_choice import stop_tokens

# Fields of a generation_config that change a caption and that vLLM does not have, or not with the
# same meaning; and the value of each that changes nothing, besides None.
UNSUPPORTED_FIELDS: Mapping[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "remove_invalid_values": False,
    "sequence_bias": None,
    "stop_strings": None,
    "suppress_tokens": None,
    "watermarking_config": None,
}
# The image has the operator's size, which may be outside of the checkpoint's bounds. Other values
# for each image would make vLLM load a processor for each of them.
ANY_SIZE = {"size": {"shortest_edge": 1, "longest_edge": 2**31 - 1}}
# How often a call asks whether its result is still of use.
ASK_SECONDS = 0.5

Value = TypeVar("Value")


def load(
    checkpoint: Checkpoint, dtype: str, device: torch.device, arguments: Mapping[str, Any]
) -> "VllmCaptioner":
    """Start an engine with a Qwen-VL checkpoint.

    Args:
        checkpoint: A checkpoint that vLLM supports.
        dtype: float32, float16, bfloat16 or auto.
        device: The only GPU that the engine sees; on a CPU, what vLLM was built for.
        arguments: Further arguments of `AsyncEngineArgs`.

    Raises:
        ModelServerError: vLLM cannot be imported.
        UnsupportedCheckpointError: The generation_config has a field of `UNSUPPORTED_FIELDS`.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(str(checkpoint.folder), local_files_only=True)
    generation = _generation_config(checkpoint, config)
    # A forked core would hold the descriptors of this process, and a lock of one of its threads.
    os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"] = "spawn"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    if device.type == "cuda":
        visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        index = device.index or 0
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)
    try:
        from vllm import AsyncEngineArgs
    except ImportError as error:
        raise ModelServerError(
            f"engine='vllm', but {sys.executable} cannot import vLLM: {error}; install it there, "
            "or name the interpreter of an environment with vLLM by spark.vision.model.vllmPython"
        ) from error
    defaults = {"disable_log_stats": True, "generation_config": "vllm", "mm_processor_cache_gb": 0}
    engine_arguments = AsyncEngineArgs(
        model=str(checkpoint.folder),
        dtype=str(choose_dtype(dtype, device)).removeprefix("torch."),
        limit_mm_per_prompt={"image": 1, "video": 0},
        **{**defaults, **arguments},
    )
    return VllmCaptioner(engine_arguments, config, generation)


class VllmCaptioner:
    """A running engine; used by several threads.

    Args:
        engine_arguments: An `AsyncEngineArgs`.
        config: The checkpoint's transformers config.
        generation: The checkpoint's generation_config.
    """

    def __init__(self, engine_arguments: Any, config: Any, generation: Any) -> None:
        # vLLM computes in a process of its own.
        self.device = torch.device("cpu")
        self._stops = stop_tokens(generation)
        self._penalty = float(generation.repetition_penalty or 1.0)
        self._image_token_id = int(config.image_token_id)
        self._merge_size = int(config.vision_config.spatial_merge_size)
        self._has_left: Callable[[], bool] = lambda: False
        # The number of rows that have ended, shared by the copies of `until`.
        self._progress = [0]
        self._request_ids = map(str, itertools.count())
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True).start()
        self._engine: Any = self._submit(_start(engine_arguments)).result()

    @property
    def ended_row_count(self) -> int:
        """The number of rows of all calls that have ended, which shows that the engine works."""
        return self._progress[0]

    def until(self, has_left: Callable[[], bool]) -> "VllmCaptioner":
        """Return this captioner for one client, whose rows are aborted once it has left."""
        captioner = copy.copy(self)
        captioner._has_left = has_left
        return captioner

    def generate(
        self, batch: CaptionBatch, scaling: PixelScaling, settings: GenerationSettings
    ) -> GeneratedTokens:
        """Generate a text about each image of a batch.

        Args:
            batch: As for `ImageCaptioner.generate`.
            scaling: The checkpoint's, which vLLM's processor applies itself.
            settings: How to generate.

        Returns:
            As `ImageCaptioner.generate`, but `finite` is always True: vLLM does not report NaN.

        Raises:
            ModelServerError: The engine has ended.
            RuntimeError: vLLM rejected a row, or failed on it, or the client has left; the other
                rows are aborted.
        """
        rows = [
            self._submit(self._write(token_ids, image, self._sampling(settings, seed)))
            for token_ids, image, seed in self._rows(batch)
        ]
        try:
            waiting = set(rows)
            while waiting:
                done, waiting = wait(waiting, ASK_SECONDS, FIRST_EXCEPTION)
                for row in done:
                    row.result()
                    self._progress[0] += 1
                if self._has_left():
                    raise ConnectionError("the client has left")
            outputs = [row.result() for row in rows]
        except Exception as error:
            if self._engine.errored:
                raise ModelServerError(f"vLLM's engine has ended: {error}") from error
            # vLLM hides an unexpected error behind one without a message.
            cause = error.__cause__ or error
            raise RuntimeError(f"vLLM: {type(cause).__name__}: {cause}") from error
        finally:
            for row in rows:
                row.cancel()
        lengths = [self._length(output.token_ids) for output in outputs]
        return GeneratedTokens(
            torch.nn.utils.rnn.pad_sequence(
                [torch.tensor(list(output.token_ids)) for output in outputs], batch_first=True
            ),
            torch.tensor(lengths),
            torch.tensor([output.finish_reason == "length" for output in outputs]),
            torch.ones(len(outputs), dtype=torch.bool),
        )

    def _submit(self, work: "Coroutine[Any, Any, Value]") -> "Future[Value]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _rows(self, batch: CaptionBatch) -> Iterator[tuple[list[int], Image.Image, int]]:
        """Return each row's token ids without padding, its image and its seed."""
        counts = batch.grids.prod(dim=1).tolist()
        parts = torch.split(batch.patches, counts)
        for row, (patches, grid) in enumerate(zip(parts, batch.grids.tolist(), strict=True)):
            token_ids = batch.token_ids[row, batch.attention_mask[row] == 1].tolist()
            pixels = join_patches(patches, grid[1], grid[2], self._merge_size)
            yield token_ids, Image.fromarray(pixels.numpy()), int(batch.seeds[row])

    def _sampling(self, settings: GenerationSettings, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        penalty = settings.repetition_penalty
        return SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature if settings.do_sample else 0.0,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=self._penalty if penalty is None else penalty,
            seed=seed if settings.do_sample else None,
            # Only the generation_config's, as in transformers, and not the tokenizer's.
            stop_token_ids=self._stops,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    async def _write(self, token_ids: list[int], image: Any, sampling: Any) -> Any:
        """Return vLLM's only completion of a row."""
        prompt = {
            "prompt_token_ids": self._with_one_placeholder(token_ids),
            "multi_modal_data": {"image": image},
            "mm_processor_kwargs": ANY_SIZE,
        }
        # The last of its outputs; with FINAL_ONLY there is no other.
        async for output in self._engine.generate(prompt, sampling, next(self._request_ids)):
            final = output
        if list(final.prompt_token_ids) != token_ids:
            raise RuntimeError(
                f"vLLM made {len(final.prompt_token_ids)} tokens of a prompt with "
                f"{len(token_ids)}: it resized the image, or supports this checkpoint differently"
            )
        completion = final.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended the caption: {completion.finish_reason}")
        return completion

    def _with_one_placeholder(self, token_ids: list[int]) -> list[int]:
        image = self._image_token_id
        before = [None, *token_ids]
        return [
            each
            for each, last in zip(token_ids, before, strict=False)
            if (each, last) != (image, image)
        ]

    def _length(self, token_ids: list[int]) -> int:
        ends = (place for place, each in enumerate(token_ids) if each in self._stops)
        return next(ends, len(token_ids))


async def _start(engine_arguments: Any) -> Any:
    # Within the event loop that it is used in.
    from vllm import AsyncLLMEngine

    return AsyncLLMEngine.from_engine_args(engine_arguments)


def _generation_config(checkpoint: Checkpoint, config: Any) -> Any:
    from transformers import GenerationConfig

    found: Any = GenerationConfig
    if (checkpoint.folder / "generation_config.json").exists():
        generation = found.from_pretrained(str(checkpoint.folder), local_files_only=True)
    else:
        generation = found.from_model_config(config)
    fields = [
        name
        for name, neutral in UNSUPPORTED_FIELDS.items()
        if getattr(generation, name, None) not in (None, neutral)
    ]
    if fields:
        raise UnsupportedCheckpointError(
            f"the generation_config of {checkpoint.folder} has {', '.join(fields)}, which "
            "engine='vllm' does not support; remove that, or use engine='transformers'"
        )
    return generation
