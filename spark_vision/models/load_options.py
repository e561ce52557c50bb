"""How a model is loaded, beyond its dtype and its device."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadOptions:
    """Options of a load; the models of different ones are not shared.

    Attributes:
        flash_attention: Use the flash-attn package if it is installed and the device and family
            support it.
        torch_compile: Compile the model when it computes its first batch; only an ImageEmbedder
            can be compiled.
        vllm_arguments: Arguments of the vLLM engine that computes, as a JSON object; None:
            transformers computes.
    """

    flash_attention: bool = False
    torch_compile: bool = False
    vllm_arguments: str | None = None
