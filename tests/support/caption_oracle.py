"""What transformers' own processor and `generate` write about one image, row by row."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers


@cache
def parts(folder: Path | str) -> tuple[Any, Any]:
    """Load a checkpoint's processor and model in float32, as any user of transformers would."""
    processor = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return processor, model.eval()


def inputs_of(folder: Path | str, image: torch.Tensor, prompt: str) -> Any:
    """Prepare one image (uint8 `[3, height, width]`) with its prompt."""
    processor, _ = parts(folder)
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return processor(text=[text], images=[image], return_tensors="pt")


def generated_tokens(
    folder: Path | str, image: torch.Tensor, prompt: str, max_new_tokens: int, **settings: Any
) -> list[int]:
    """Generate for one row alone, greedily; the token that ends the caption is the last."""
    _, model = parts(folder)
    inputs = inputs_of(folder, image, prompt)
    with torch.inference_mode():
        output = model.generate(
            **inputs, do_sample=False, max_new_tokens=max_new_tokens, **settings
        )
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def caption(
    folder: Path | str, image: torch.Tensor, prompt: str, max_new_tokens: int, **settings: Any
) -> str:
    """Write about one row alone, greedily."""
    processor, _ = parts(folder)
    tokens = generated_tokens(folder, image, prompt, max_new_tokens, **settings)
    return processor.batch_decode([tokens], skip_special_tokens=True)[0]
