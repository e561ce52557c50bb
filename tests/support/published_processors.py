"""The image processor settings that well-known checkpoints were published with.

Each is the `preprocessor_config.json` of the repository named, on huggingface.co, in the form it
has there: older ones say `"size": 224` and name a feature extractor.
"""

from typing import Any

_HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 256},
}
_OPENAI_CLIP = {
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "resample": 3,
    **_CLIP,
}

PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "google/vit-base-patch16-224": (
        "vit",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "ViTImageProcessor",
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 224, "width": 224},
            **_HALF,
        },
    ),
    "google/vit-large-patch16-224-in21k": (
        "vit",
        {"do_normalize": True, "do_resize": True, "resample": 2, "size": 224, **_HALF},
    ),
    "facebook/dinov2-base": ("dinov2", _DINOV2),
    "facebook/dinov2-large": ("dinov2", _DINOV2),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": (
        "dinov3_vit",
        {
            "data_format": "channels_first",
            "default_to_square": True,
            "do_center_crop": None,
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "DINOv3ViTImageProcessorFast",
            "image_std": [0.229, 0.224, 0.225],
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 224, "width": 224},
        },
    ),
    "openai/clip-vit-base-patch32": ("clip", {**_OPENAI_CLIP, "crop_size": 224, "size": 224}),
    "openai/clip-vit-large-patch14-336": ("clip", {**_OPENAI_CLIP, "crop_size": 336, "size": 336}),
    "google/siglip-base-patch16-224": (
        "siglip",
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "SiglipProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 224, "width": 224},
            **_HALF,
        },
    ),
    "google/siglip2-base-patch16-224": (
        "siglip",
        {
            "do_convert_rgb": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "SiglipImageProcessor",
            "processor_class": "SiglipProcessor",
            "resample": 2,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 224, "width": 224},
            **_HALF,
        },
    ),
    "OFA-Sys/chinese-clip-vit-base-patch16": (
        "chinese_clip",
        {
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ChineseCLIPFeatureExtractor",
            "do_center_crop": False,
            "resample": 3,
            "size": {"height": 224, "width": 224},
            **_CLIP,
        },
    ),
}

# Of google/siglip2-base-patch16-naflex, which returns patches in the place of an image.
PUBLISHED_NAFLEX: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_processor_type": "Siglip2ImageProcessor",
    "max_num_patches": 256,
    "patch_size": 16,
    "processor_class": "Siglip2Processor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    **_HALF,
}
