import io
import json
import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from data.listed import encoded
from PIL import Image

from dynamicrafter_jax.data.tfds.builder import prepare
from dynamicrafter_jax.data.tfds.source import choose_features, film, open_tfds, words
from dynamicrafter_jax.data.videos.decoding import open_video
from dynamicrafter_jax.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_worker_gets_a_name_not_the_data(tmp_path):
    prepare(encoded(20), "clips", tmp_path)
    ours = open_tfds("clips", data_dir=tmp_path)
    first = ours[3]
    sent = pickle.dumps(ours)
    assert len(sent) < 500
    assert pickle.loads(sent)[3] == first
    with pytest.raises(IndexError):
        ours[20]


def picture(value: int, form: str = "PNG") -> bytes:
    """A file of a smooth picture that differs from others by its brightness."""
    rows, columns = np.mgrid[:32, :48]
    pixels = np.stack([rows * 3, columns * 2, np.full_like(rows, value)], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, form, quality=95)
    return file.getvalue()


def pixels(file: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


class Actions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As TFDS's own data sets: videos are sequences of pictures, captions are labels."""

    name = "actions"
    VERSION = tfds.core.Version("2.0.0")
    # TFDS looks for the sums of downloads beside the code, by a package that it does not require.
    code_path = None
    video: Any = None

    def _info(self):
        video = self.video or tfds.features.Sequence(tfds.features.Image(encoding_format="png"))
        labels = tfds.features.ClassLabel(names=["ApplyEyeMakeup", "brush_hair"])
        features = tfds.features.FeaturesDict({"video": video, "label": labels})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(3):
            frames = [picture(40 * i + frame) for frame in range(4 + i)]
            yield i, {"video": frames, "label": i % 2}


def check_actions(folder: Path) -> None:
    ours = pickle.loads(pickle.dumps(open_tfds("actions", data_dir=folder, fps=12.5)))
    assert len(ours) == 3
    assert [ours[i].caption for i in range(3)] == [
        "apply eye makeup",
        "brush hair",
        "apply eye makeup",
    ]
    assert ours[2].name == f"{folder}/actions train[2]"
    with open_video(ours[2].file, ours[2].name) as reader:
        assert (reader.num_frames, reader.fps) == (6, 12.5)
        frames = reader.read([0, 3, 5], 32, 48)
    for frame, number in zip(frames, (0, 3, 5), strict=True):
        np.testing.assert_array_equal(frame, pixels(picture(80 + number)))


def make_actions(folder: Path) -> Path:
    builder = Actions(data_dir=os.fspath(folder))
    builder.download_and_prepare(file_format="array_record")
    return Path(builder.data_dir)


def test_pictures_become_videos(tmp_path):
    make_actions(tmp_path)
    check_actions(tmp_path)


def test_video_features_with_tensorflow(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    video = tfds.features.Video(shape=(None, 32, 48, 3), encoding_format="png")
    monkeypatch.setattr(Actions, "video", video)
    make_actions(tmp_path)
    check_actions(tmp_path)


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_video_features_without_tensorflow(tmp_path):
    folder = make_actions(tmp_path)
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["video"] = {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",
        "video": {"shape": {"dimensions": ["-1", "32", "48", "3"]}, "dtype": "uint8"},
    }
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"^the TFDS data set actions needs tensorflow: pip inst.*"):
        open_tfds("actions", data_dir=tmp_path)


def test_only_random_access(tmp_path):
    info = make_actions(tmp_path) / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match="has no random access: prepare it again"):
        open_tfds("actions", data_dir=tmp_path)


def test_damage_is_told(tmp_path):
    shard = prepare(encoded(4), "clips", tmp_path) / "clips-train.array_record-00000-of-00001"
    third = encoded(4)[2].file
    assert isinstance(third, bytes)
    data = shard.read_bytes()
    assert data.count(third) == 1
    shard.write_bytes(data.replace(third, third[::-1]))
    ours = open_tfds("clips", data_dir=tmp_path)
    assert ours[1] == encoded(4)[1]
    with pytest.raises(UserError, match=r"/clips train\[2\] can't be read: Corrupted"):
        ours[2]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("nope", {}, "holds no TFDS data set nope: check the name and TFDS_DATA_DIR, or prepare"),
        ("clips:9.0.0", {}, "holds no TFDS data set clips:9.0.0: check the name"),
        ("two words", {}, "^TFDS can't open two words: Parsing builder name string"),
        ("clips", {"split": "test"}, "clips/1.0.0 has no split 'test': choose from train$"),
        (
            "clips",
            {"video": "name"},
            r"^'name' is not a video feature of .* clips: choose from \['video'\]$",
        ),
        (
            "clips",
            {"caption": "x"},
            r"^'x' is not a caption feature of .*: choose from \['caption', 'name'\]",
        ),
    ],
)
def test_data_sets_that_cannot_be_opened(tmp_path, name, settings, message):
    prepare(encoded(1), "clips", tmp_path)
    with pytest.raises(UserError, match=message):
        open_tfds(name, data_dir=tmp_path, **settings)


TEXT = tfds.features.Text()
FILE = tfds.features.Tensor(shape=(), dtype=np.object_)
FRAMES = tfds.features.Sequence(tfds.features.Image())
LABEL = tfds.features.ClassLabel(names=["Run", "Walk"])
OTHER = tfds.features.Tensor(shape=(3,), dtype=np.float32)


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        ({"a": FILE, "b": TEXT}, ("a", "b", "", ())),
        ({"a": FRAMES, "b": LABEL, "c": OTHER}, ("a", "b", "", ("Run", "Walk"))),
        ({"a": FRAMES, "id": TEXT, "caption": TEXT, "url": TEXT}, ("a", "caption", "id", ())),
        ({"a": FRAMES, "id": TEXT, "sounds": TEXT}, ("a", "sounds", "id", ())),
        ({"a": FRAMES, "id": TEXT, "label": LABEL}, ("a", "label", "id", ("Run", "Walk"))),
        ({"image_sequence": FRAMES}, ("image_sequence", "", "", ())),
    ],
)
def test_features_are_found_by_their_types(features, expected):
    assert choose_features("them", features, None, None) == expected


def test_features_may_be_named():
    features = {"left": FRAMES, "right": FRAMES, "title": TEXT, "story": TEXT, "name": TEXT}
    assert choose_features("them", features, "right", "story") == ("right", "story", "name", ())
    assert choose_features("them", features, "left", "name") == ("left", "name", "", ())


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": FRAMES, "b": FRAMES}, r"has 2 features that can be its video: \['a', 'b'\]$"),
        ({"a": OTHER, "b": TEXT}, r"has 0 features that can be its video: \[\]$"),
        ({"a": FILE, "b": TEXT, "c": TEXT}, r"has 2 .* can be its caption: \['b', 'c'\]$"),
        ({"a": FILE, "b": LABEL, "c": LABEL}, "has 2 features that can be its caption"),
    ],
)
def test_features_that_leave_it_open(features, message):
    with pytest.raises(UserError, match=message):
        choose_features("them", features, None, None)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("brush_hair", "brush hair"),
        ("TVShow", "tv show"),
        ("playing ice-hockey", "playing ice hockey"),
        ("YoYo2", "yo yo2"),
        ("run", "run"),
    ],
)
def test_labels_are_read_as_words(label, expected):
    assert words(label) == expected


def test_film_of_jpegs_is_what_they_show():
    frames = [picture(20 * i, "JPEG") for i in range(5)]
    with open_video(film("film", frames, 30), "film") as reader:
        assert (reader.num_frames, reader.fps) == (5, 30)
        shown = reader.read([1, 4], 32, 48)
    for frame, number in zip(shown, (1, 4), strict=True):
        # Colour is stored at half the size, and decoders differ in how they enlarge it.
        assert np.abs(frame.astype(int) - pixels(frames[number])).mean() < 2


def test_film_of_what_is_no_picture():
    assert film("film", [], 25) == b""
    with pytest.raises(UserError, match=r"^film holds pictures that are neither PNG nor JPEG$"):
        film("film", [b"BM, a bitmap"], 25)
    with pytest.raises(UserError, match=r"^the first picture of film is truncated or damaged"):
        film("film", [picture(0)[:20]], 25)


def test_importing_waits_until_it_is_needed():
    code = (
        "import sys, dynamicrafter_jax.data.sources as s; early = 'tensorflow_datasets' in "
        "sys.modules; import dynamicrafter_jax.data.tfds.source; "
        "print(early, sys.modules.keys() & {'jax', 'tensorflow'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False set()\n"
