"""Stands for vLLM where that cannot run: its interface, as far as the package uses it.

A real Qwen-VL of transformers generates, in a child process like vLLM's EngineCore: it outlives its
parent. Requests that wait together are answered last come, first served. An image that begins with
one of these colours makes trouble.
"""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

from vllm.sampling_params import RequestOutputKind, SamplingParams

__all__ = ["AsyncEngineArgs", "AsyncLLMEngine", "SamplingParams"]

REJECTED, FAILED, FATAL, ENDLESS = (250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)


class EngineDeadError(Exception):
    pass


class EngineGenerateError(Exception):
    pass


@dataclass
class AsyncEngineArgs:
    model: str
    dtype: str = "auto"
    limit_mm_per_prompt: dict = field(default_factory=dict)
    generation_config: str = "auto"
    disable_log_stats: bool = False
    mm_processor_cache_gb: float = 4
    max_model_len: int | None = None


class AsyncLLMEngine:
    @classmethod
    def from_engine_args(cls, engine_args):
        return cls(engine_args)

    def __init__(self, engine_args):
        from transformers import AutoConfig, AutoProcessor

        self.args = engine_args
        self.errored = False
        self.aborted = []
        self.prompts = []
        self._waiting = {}
        self._loop = asyncio.get_running_loop()
        self._processor = AutoProcessor.from_pretrained(engine_args.model)
        self._image_token = AutoConfig.from_pretrained(engine_args.model).image_token_id
        method = os.environ["VLLM_WORKER_MULTIPROCESSING_METHOD"]
        self._connection, theirs = multiprocessing.Pipe()
        self.core = multiprocessing.get_context(method).Process(
            target=run_engine_core, args=(theirs, engine_args), name="EngineCore"
        )
        self.core.start()
        theirs.close()
        ready = self._connection.recv()
        if ready != "ready":
            raise RuntimeError(f"Engine core initialization failed: {ready}")
        threading.Thread(target=self._receive, daemon=True).start()

    async def generate(self, prompt, sampling_params, request_id):
        if self.errored:
            raise EngineDeadError
        self.prompts.append((prompt, sampling_params))
        image = prompt["multi_modal_data"]["image"]
        if image.getpixel((0, 0)) == REJECTED:
            raise ValueError("The decoder prompt is too long")
        inputs = self.preprocess(image, prompt["mm_processor_kwargs"])
        merged_count = int(inputs["image_grid_thw"].prod()) // 4
        token_ids = []
        for each in prompt["prompt_token_ids"]:
            token_ids += [each] * (merged_count if each == self._image_token else 1)
        future = self._waiting[request_id] = self._loop.create_future()
        self._connection.send((request_id, token_ids, dict(inputs), image, sampling_params))
        try:
            new_ids, reason = await future
        except asyncio.CancelledError:
            self.aborted.append(request_id)
            raise
        except EngineDeadError:
            raise
        except Exception as error:
            raise EngineGenerateError from error
        assert sampling_params.output_kind is RequestOutputKind.FINAL_ONLY
        completion = SimpleNamespace(token_ids=new_ids, finish_reason=reason)
        yield SimpleNamespace(prompt_token_ids=token_ids, outputs=[completion], finished=True)

    def waiting_count(self):
        return sum(not future.done() for future in self._waiting.values())

    def preprocess(self, image, kwargs):
        return self._processor.image_processor(images=[image], return_tensors="pt", **kwargs)

    def _receive(self):
        with contextlib.suppress(EOFError, OSError):
            while True:
                request_id, result = self._connection.recv()
                self._loop.call_soon_threadsafe(self._answer, request_id, result)
        self.errored = True
        for request_id in list(self._waiting):
            self._loop.call_soon_threadsafe(self._answer, request_id, EngineDeadError("dead"))

    def _answer(self, request_id, result):
        future = self._waiting.pop(request_id)
        if future.cancelled():
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


def run_engine_core(connection, engine_args):
    """Answer requests; like vLLM's, this process does not notice the end of its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if engine_args.max_model_len == 1:
            raise ValueError("max_model_len is too small")
        generate = load(engine_args)
    except Exception as error:
        connection.send(str(error))
        time.sleep(600)
    connection.send("ready")
    waiting = []
    while True:
        try:
            while not waiting or connection.poll(0.2):
                waiting.append(connection.recv())
        except EOFError:
            time.sleep(600)
        request_id, token_ids, inputs, image, sampling_params = waiting.pop()
        colour = image.getpixel((0, 0))
        if colour == FATAL:
            os.kill(os.getpid(), signal.SIGKILL)
        if colour == ENDLESS:
            continue
        if colour == FAILED:
            result = RuntimeError("CUDA error of this row")
        else:
            result = generate(token_ids, inputs, sampling_params)
        connection.send((request_id, result))


def load(engine_args):
    import torch
    import transformers

    torch.set_num_threads(1)
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        engine_args.model, dtype=getattr(torch, engine_args.dtype)
    ).eval()
    eos = None if engine_args.generation_config == "vllm" else model.generation_config.eos_token_id
    model.generation_config = transformers.GenerationConfig()

    def generate(token_ids, inputs, sampling_params):
        stops = list(sampling_params.stop_token_ids)
        if not sampling_params.ignore_eos:
            stops += eos
        ids = torch.tensor([token_ids])
        torch.manual_seed(sampling_params.seed or 0)
        sampled = sampling_params.temperature > 0
        drawing = {
            "temperature": sampling_params.temperature,
            "top_k": sampling_params.top_k,
            "top_p": sampling_params.top_p,
        }
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == model.config.image_token_id).int(),
                max_new_tokens=sampling_params.max_tokens,
                repetition_penalty=sampling_params.repetition_penalty,
                eos_token_id=stops,
                pad_token_id=0,
                do_sample=sampled,
                **(drawing if sampled else {}),
                **inputs,
            )
        new_ids = output[0, len(token_ids) :].tolist()
        return new_ids, "stop" if new_ids[-1] in stops else "length"

    return generate
