"""Which checkpoint an operator supports, and the error if it does not."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import checkpoints
from spark_vision.errors import InvalidOptionError, UnsupportedCheckpointError
from spark_vision.models.checkpoint_files import open_folder
from spark_vision.models.families import FAMILIES, check_operator, load_model
from spark_vision.models.preprocessing import load_preprocessor
from spark_vision.models.tokenizer import load_tokenizer
from spark_vision.operators import (
    OPERATORS,
    ClipImageEmbedding,
    ClipImageTags,
    ClipTextEmbedding,
    ClipVectorTags,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
    TagOperator,
)

CPU = torch.device("cpu")


def config_only(folder, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return open_folder(folder)


@pytest.mark.parametrize("model_type", ["bert", "llava", "clip_vision_model"])
def test_an_unknown_family_is_refused_with_the_supported_ones(tmp_path, model_type):
    checkpoint = config_only(tmp_path, model_type=model_type)
    with pytest.raises(UnsupportedCheckpointError, match=f"'{model_type}'; supported: .*siglip"):
        check_operator(checkpoint, ImageViTEmbedding())
    with pytest.raises(UnsupportedCheckpointError, match=f"'{model_type}'; supported"):
        load_model(checkpoint, "float32", CPU)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("operator", OPERATORS.values())
def test_an_operator_of_another_family_is_refused_with_the_right_one(
    tmp_path, model_type, operator
):
    checkpoint = config_only(tmp_path, model_type=model_type)
    if model_type in ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit"):
        fitting = [ImageViTEmbedding]
    elif model_type in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
        fitting = [QwenVLImageUnderstanding]
    else:
        fitting = [ClipImageEmbedding, ClipTextEmbedding, ClipImageTags, ClipVectorTags]
    is_of_tags = issubclass(operator, TagOperator)
    made = operator(tags=["a"]) if is_of_tags else operator()
    if operator in fitting and not is_of_tags:
        check_operator(checkpoint, made)
        return
    hint = "use " + " or ".join(each.__name__ for each in fitting)
    refused = "has no weights" if operator in fitting else f"{operator.__name__} cannot .*{hint}$"
    with pytest.raises(UnsupportedCheckpointError, match=refused):
        check_operator(checkpoint, made)


@pytest.mark.parametrize(
    ("config_class", "operator", "own"),
    [
        ("ViTConfig", ImageViTEmbedding(), lambda config: config.hidden_size),
        ("Dinov2Config", ImageViTEmbedding(), lambda config: config.hidden_size),
        ("Dinov2WithRegistersConfig", ImageViTEmbedding(), lambda config: config.hidden_size),
        ("DINOv3ViTConfig", ImageViTEmbedding(), lambda config: config.hidden_size),
        ("CLIPConfig", ClipImageEmbedding(), lambda config: config.projection_dim),
        ("CLIPConfig", ClipTextEmbedding(), lambda config: config.projection_dim),
        ("ChineseCLIPConfig", ClipTextEmbedding(), lambda config: config.projection_dim),
        ("SiglipConfig", ClipImageEmbedding(), lambda config: config.vision_config.hidden_size),
        ("SiglipConfig", ClipTextEmbedding(), lambda config: config.text_config.projection_size),
        ("Siglip2Config", ClipImageEmbedding(), lambda config: config.vision_config.hidden_size),
        ("Siglip2Config", ClipTextEmbedding(), lambda config: config.text_config.projection_size),
    ],
)
def test_missing_config_values_are_the_defaults_of_transformers(
    tmp_path, config_class, operator, own
):
    config = getattr(transformers, config_class)()
    dimension = check_operator(config_only(tmp_path, model_type=config.model_type), operator)
    assert dimension == own(config)


@pytest.mark.parametrize(
    ("write", "operator"),
    [
        (checkpoints.write_vit, ImageViTEmbedding(pooling="pooler")),
        (checkpoints.write_vit, ImageViTEmbedding(pooling="tokens")),
        (checkpoints.write_dinov2, ImageViTEmbedding()),
        (checkpoints.write_dinov3, ImageViTEmbedding(pooling="mean")),
        (checkpoints.write_clip, ClipImageEmbedding()),
        (checkpoints.write_chinese_clip, ClipImageEmbedding()),
        (checkpoints.write_siglip, ClipImageEmbedding()),
        (checkpoints.write_siglip2, ClipImageEmbedding()),
    ],
)
def test_the_dimension_is_that_of_the_vectors(tmp_path, write, operator):
    checkpoint = open_folder(write(tmp_path / "checkpoint"))
    preprocessor = load_preprocessor(checkpoint, None)
    pixels = preprocessor(torch.zeros(3, 40, 40, dtype=torch.uint8))[None]
    model = load_model(checkpoint, "float32", CPU)
    vectors = model.embed_images(pixels, preprocessor.scaling, operator.effective_pooling)
    assert vectors.shape[-1] == check_operator(checkpoint, operator)


@pytest.mark.parametrize(
    "write", [checkpoints.write_clip, checkpoints.write_siglip, checkpoints.write_siglip2]
)
def test_the_dimension_is_that_of_the_text_vectors(tmp_path, write):
    checkpoint = open_folder(write(tmp_path / "checkpoint"))
    vectors = load_model(checkpoint, "float32", CPU).embed_texts(load_tokenizer(checkpoint)(["a"]))
    assert vectors.shape == (1, check_operator(checkpoint, ClipTextEmbedding()))


@pytest.mark.parametrize("safetensors", [True, False])
@pytest.mark.parametrize("without", [{"pooler": False}, {"classifier": True}])
def test_a_pooler_that_was_not_trained_is_refused(tmp_path, without, safetensors):
    folder = checkpoints.write_vit(tmp_path / "vit", safetensors=safetensors, **without)
    checkpoint = open_folder(folder)
    with pytest.raises(UnsupportedCheckpointError, match=r"no trained pooler.*pooling='cls'"):
        check_operator(checkpoint, ImageViTEmbedding(pooling="pooler"))
    model = load_model(checkpoint, "float32", CPU)
    scaling = load_preprocessor(checkpoint, None).scaling
    with pytest.raises(ValueError, match="pooler"):
        model.embed_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), scaling, "pooler")


@pytest.mark.parametrize("safetensors", [True, False])
def test_a_trained_pooler_is_seen_in_the_header(tmp_path, safetensors):
    folder = checkpoints.write_vit(tmp_path / "vit", safetensors=safetensors)
    check_operator(open_folder(folder), ImageViTEmbedding(pooling="pooler"))


@pytest.mark.parametrize(
    ("write", "model_type"),
    [
        (checkpoints.write_dinov2, "dinov2"),
        (checkpoints.write_dinov2_with_registers, "dinov2_with_registers"),
        (checkpoints.write_dinov3, "dinov3_vit"),
    ],
)
def test_the_pooler_of_dino_is_refused_since_it_is_the_cls_token(tmp_path, write, model_type):
    checkpoint = open_folder(write(tmp_path / "dino"))
    message = f"'{model_type}', which has no trained pooler: .* CLS token; use pooling='cls'"
    with pytest.raises(UnsupportedCheckpointError, match=message):
        check_operator(checkpoint, ImageViTEmbedding(pooling="pooler"))
    model = transformers.AutoModel.from_pretrained(checkpoint.folder).eval()
    with torch.no_grad():
        output = model(torch.rand(2, 3, 56, 56))
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])


@pytest.mark.parametrize("model_type", ["siglip", "siglip2"])
def test_a_siglip_without_its_pooling_head_is_refused(tmp_path, model_type):
    vision = {"vision_use_head": False}
    checkpoint = config_only(tmp_path, model_type=model_type, vision_config=vision)
    with pytest.raises(UnsupportedCheckpointError, match="vision_use_head"):
        check_operator(checkpoint, ClipImageEmbedding())


def test_a_model_of_gray_images_is_refused(tmp_path):
    checkpoint = config_only(tmp_path, model_type="vit", num_channels=1)
    with pytest.raises(UnsupportedCheckpointError, match="1 channels; only RGB"):
        check_operator(checkpoint, ImageViTEmbedding())


def test_a_processor_file_that_cannot_be_read_is_refused(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit")
    (folder / "preprocessor_config.json").write_text("[]")
    operator = ImageViTEmbedding(image_processor_kwargs={"size": 224})
    with pytest.raises(UnsupportedCheckpointError, match=r"preprocessor_config\.json"):
        check_operator(open_folder(folder), operator)


def test_an_unknown_processor_setting_is_refused_before_any_model(tmp_path):
    checkpoint = open_folder(checkpoints.write_vit(tmp_path / "vit"))
    operator = ImageViTEmbedding(image_processor_kwargs={"sizes": 224})
    with pytest.raises(InvalidOptionError, match=r"'sizes'.*allowed: .*size"):
        check_operator(checkpoint, operator)


@pytest.mark.parametrize(
    "write",
    [
        checkpoints.write_vit,
        checkpoints.write_dinov2,
        checkpoints.write_dinov3,
        checkpoints.write_siglip,
        checkpoints.write_siglip2,
    ],
)
def test_missing_weights_are_refused_by_name(tmp_path, write):
    folder = write(tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    dropped = next(name for name in weights if "norm" in name and name.endswith("bias"))
    del weights[dropped]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedCheckpointError, match=r"lacks 1 weights .*norm.*bias"):
        load_model(open_folder(folder), "float32", CPU)


def test_weights_of_another_shape_are_refused(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit")
    weights = load_file(folder / "model.safetensors")
    weights["layernorm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedCheckpointError, match=f"cannot load {folder} as ViTModel"):
        load_model(open_folder(folder), "float32", CPU)


def test_a_truncated_file_of_weights_is_refused(tmp_path):
    folder = checkpoints.write_dinov2(tmp_path / "dinov2")
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnsupportedCheckpointError, match=f"cannot load {folder}"):
        load_model(open_folder(folder), "float32", CPU)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    folder = checkpoints.write_vit(tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    witness = tmp_path / "it_ran"

    class Malicious:
        def __reduce__(self):
            return (type(witness).touch, (witness,))

    torch.save({"layernorm.weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedCheckpointError, match="contain more than tensors") as raised:
        load_model(open_folder(folder), "float32", CPU)
    # Torch itself advises to load such a file without the check.
    assert "weights_only" not in str(raised.value)
    assert not witness.exists()


def test_code_inside_a_checkpoint_never_runs(tmp_path):
    folder = checkpoints.write_clip(tmp_path / "clip")
    witness = tmp_path / "it_ran"
    (folder / "remote.py").write_text(f"open({str(witness)!r}, 'w')\nclass Remote: pass\n")
    for name, auto_class in (
        ("config.json", "AutoModel"),
        ("preprocessor_config.json", "AutoImageProcessor"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ):
        settings = json.loads((folder / name).read_text())
        reference = ["remote.Remote", None] if auto_class == "AutoTokenizer" else "remote.Remote"
        settings["auto_map"] = {auto_class: reference}
        (folder / name).write_text(json.dumps(settings))
    checkpoint = open_folder(folder)
    load_model(checkpoint, "float32", CPU)
    load_preprocessor(checkpoint, None)
    load_tokenizer(checkpoint)
    assert not witness.exists()


def test_siglip_without_sentencepiece_names_the_package_to_install(tmp_path, monkeypatch):
    folder = checkpoints.write_siglip(tmp_path / "siglip")
    monkeypatch.setattr("spark_vision.models.tokenizer.find_spec", lambda name: None)
    with pytest.raises(UnsupportedCheckpointError, match="pip install sentencepiece"):
        load_tokenizer(open_folder(folder))


def test_a_tokenizer_that_cannot_be_loaded_is_refused(tmp_path):
    folder = checkpoints.write_clip(tmp_path / "clip")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(UnsupportedCheckpointError, match=f"tokenizer of {folder}"):
        load_tokenizer(open_folder(folder))


def test_loading_leaves_nothing_to_train_and_no_message(tmp_path, capfd):
    checkpoint = open_folder(checkpoints.write_vit(tmp_path / "vit", classifier=True))
    capfd.readouterr()
    model = load_model(checkpoint, "float32", CPU)
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""
    pixels = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    vectors = model.embed_images(pixels, load_preprocessor(checkpoint, None).scaling, "cls")
    assert not vectors.requires_grad
