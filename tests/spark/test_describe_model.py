"""A model is described before any row is computed, from a folder or by a task."""

import subprocess
import sys

import pytest
import transformers
from pyspark.sql import SparkSession

from spark_vision import (
    ClipImageEmbedding,
    ClipTextEmbedding,
    ImageViTEmbedding,
    QwenVLImageUnderstanding,
    describe_model,
)
from spark_vision.errors import InputTypeError, SessionError, UnsupportedCheckpointError
from spark_vision.spark import driver_checks


def test_a_folder_is_described_as_its_own_configuration_does(checkpoints):
    config = transformers.AutoConfig.from_pretrained(checkpoints / "dinov2")
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    model = describe_model(dino)
    assert (model.model_type, model.dimension) == ("dinov2", config.hidden_size)
    other = describe_model(ImageViTEmbedding(model_name=str(checkpoints / "dinov2-other")))
    assert (other.model_type, other.dimension) == (model.model_type, model.dimension)
    assert other.fingerprint != model.fingerprint
    clip = describe_model(ClipTextEmbedding(model_name=str(checkpoints / "clip")))
    config = transformers.AutoConfig.from_pretrained(checkpoints / "clip")
    assert (clip.model_type, clip.dimension) == ("clip", config.projection_dim)
    qwen = describe_model(QwenVLImageUnderstanding(model_name=str(checkpoints / "qwen")))
    assert (qwen.model_type, qwen.dimension) == ("qwen2_5_vl", None)


def test_a_folder_needs_no_session(checkpoints):
    code = (
        "import sys; from spark_vision import ImageViTEmbedding, describe_model;"
        f"print(describe_model(ImageViTEmbedding(model_name={str(checkpoints / 'dinov2')!r})));"
        "assert not any(name.startswith('pyspark.sql') for name in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ModelIdentity(model_type='dinov2', dimension=48, fingerprint='")


def test_what_only_an_executor_has_is_described_by_a_task(spark, checkpoints, monkeypatch):
    dino = ImageViTEmbedding(model_name=str(checkpoints / "dinov2"))
    known = describe_model(dino)
    monkeypatch.setattr(driver_checks, "find_checkpoint", lambda operator: None)
    assert describe_model(dino) == describe_model(dino, spark) == known
    with pytest.raises(UnsupportedCheckpointError, match="ClipImageEmbedding"):
        describe_model(ClipImageEmbedding(model_name=str(checkpoints / "dinov2")))


def test_without_the_checkpoint_and_without_a_session_the_error_names_both(monkeypatch):
    monkeypatch.setattr(SparkSession, "getActiveSession", classmethod(lambda cls: None))
    monkeypatch.setattr(driver_checks, "find_checkpoint", lambda operator: None)
    with pytest.raises(SessionError, match="'owner/name' is not on the driver, and there is no"):
        describe_model(ImageViTEmbedding(model_name="owner/name"))


def test_what_is_no_operator_is_refused():
    with pytest.raises(InputTypeError, match=r"write ImageViTEmbedding\(\.\.\.\)"):
        describe_model(ImageViTEmbedding)
