"""The shipped dinov2 and clip find unseen scenes by meaning, through Spark columns."""

import pytest

from spark_vision.demo import write_scenes
from training.retrieval_scores import retrieval_scores

# Training is not part of the package, and a change of it is rare.
pytestmark = pytest.mark.slow

COUNT = 120
# Some points below what the checkpoints reach on scenes of any seed: benchmarks/README.md has it.
FLOORS = {
    "clip: caption to picture": 0.95,
    "clip: picture to caption": 0.95,
    "clip: Chinese caption to picture": 0.95,
    "clip: picture to Chinese caption": 0.95,
    "clip: caption without sizes to picture": 0.86,
    "clip: picture to another of its scene": 0.9,
    "clip: caption before its turned relation": 0.86,
    "dinov2: picture to another of its scene": 0.88,
}


@pytest.fixture(scope="module")
def scores(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, COUNT, seed=20_011, renderings=2)
    return {score.name: score for score in retrieval_scores(spark, folder)}


@pytest.mark.slow
def test_every_search_finds_unseen_scenes(scores):
    assert set(scores) == set(FLOORS)
    shares = {name: score.share for name, score in scores.items()}
    assert {name: share for name, share in shares.items() if share < FLOORS[name]} == {}


def test_searches_among_shuffled_pictures_find_nothing(scores):
    for name, score in scores.items():
        # A turned relation is a choice of two; the control of a search is one of all scenes.
        chance, margin = (0.5, 0.15) if "turned" in name else (1 / COUNT, 0.02)
        assert abs(score.control - chance) < margin, (name, score)


def test_wrong_number_of_renderings_is_refused(spark, tmp_path):
    write_scenes(tmp_path, 2, seed=0, renderings=3)
    with pytest.raises(ValueError, match="two renderings"):
        retrieval_scores(spark, tmp_path)
