"""Tables of requests: what a row says, and what is wrong with one."""

import zlib

import bulk_jobs
import pytest
import tiny

from dynamicrafter_jax import bulk
from dynamicrafter_jax.errors import UserError


def test_a_row_says_what_differs_from_the_config(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "\ufeffid,image,prompt,end_image,loop,seed,steps,eta,guidance_scale,image_guidance_scale,"
        "guidance_rescale,fps,spacing,negative_prompt,fit\n"
        'a,0.png,"a cat, black",,,,,,,,,,,,\n'
        "b,0.png,,1.png,,7,9,0,3,1.5,0.25,10,uniform,blurry,letterbox\n"
        "c,sub/0.png,,,yes,,,,1,,,,,,\n"
    )
    a, b, c = bulk_jobs.requests(table)
    assert (a.name, a.prompt, a.end_image, a.loop) == ("a", "a cat, black", None, False)
    defaults = tiny.micro().config.sampling
    assert a.settings.steps == bulk_jobs.STEPS
    assert a.settings.guidance_scale == defaults.guidance_scale
    assert (b.settings.seed, b.settings.steps, b.settings.eta) == (7, 9, 0.0)
    assert (b.settings.guidance_scale, b.settings.image_guidance_scale) == (3.0, 1.5)
    assert (b.settings.guidance_rescale, b.settings.fps) == (0.25, 10.0)
    assert (b.settings.spacing, b.settings.negative_prompt) == ("uniform", "blurry")
    assert (a.settings.fit, b.settings.fit) == ("crop", "letterbox")
    assert b.settings.num_passes == 3 and c.settings.num_passes == 1
    assert b.has_end and c.has_end and not a.has_end and c.loop
    assert b.end_image == str(tmp_path / "1.png") and c.image == str(tmp_path / "sub/0.png")


def test_json_keeps_its_types_and_odd_line_breaks(tmp_path):
    rows = [
        {"id": 1, "image": "0.png", "prompt": "a\u2028b", "eta": 0, "loop": True, "seed": 3},
        {"id": "2", "image": "0.png", "loop": False, "steps": "4", "seed": None},
    ]
    first, second = bulk_jobs.requests(bulk_jobs.table(tmp_path, rows))
    assert first.name == "1" and first.prompt == "a\u2028b" and first.loop
    assert first.settings.eta == 0.0 and first.settings.seed == 3
    assert not second.loop and second.settings.steps == 4 and second.settings.seed == 0


def test_draws_follow_from_the_id_and_samples_are_numbered(tmp_path):
    rows = [{"id": "x", "image": "0.png"}, {"id": "y", "image": "0.png", "num_samples": 3}]
    there = bulk_jobs.requests(bulk_jobs.table(tmp_path, rows))
    back = bulk_jobs.requests(bulk_jobs.table(tmp_path, rows[::-1], "back.jsonl"))
    assert sorted(there, key=lambda one: one.name) == sorted(back, key=lambda one: one.name)
    assert [one.name for one in there] == ["x", "y-0", "y-1", "y-2"]
    first = zlib.crc32(b"y") >> 8
    assert [one.sample_index for one in there[1:]] == [first, first + 1, first + 2]
    doubled = bulk_jobs.requests(tmp_path / "back.jsonl", num_samples=2, loop=True)
    assert [one.name for one in doubled] == ["y-0", "y-1", "y-2", "x-0", "x-1"]
    assert all(one.loop for one in doubled)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ({"steps": "0"}, "line 3: sampling.steps is 0: choose from 1 to 1000"),
        ({"steps": "2.5"}, "line 3: steps '2.5' is not a whole number"),
        ({"steps": 2.5}, "line 3: sampling.steps is 2.5: a whole number is needed"),
        ({"eta": "much"}, "line 3: eta 'much' is not a number"),
        ({"eta": 1.5}, "line 3: sampling.eta is 1.5"),
        ({"eta": "nan"}, "line 3: sampling.eta is nan"),
        ({"spacing": "random"}, "line 3: sampling.spacing is 'random'"),
        ({"guidance_scale": "inf"}, "line 3: sampling.guidance_scale is not a finite"),
        ({"fps": -1}, "line 3: sampling.fps is -1.0: at least 0"),
        ({"seed": 2**32}, "line 3: sampling.seed is 4294967296"),
        ({"loop": "perhaps"}, "line 3: loop 'perhaps' is neither true nor false"),
        ({"loop": True, "end_image": "1.png"}, "line 3: end_image and loop exclude each other"),
        ({"num_samples": 0}, "line 3: num_samples is 0"),
        ({"num_samples": True}, "line 3: num_samples is True"),
        ({"id": "a"}, "line 3: id 'a' stands twice"),
        ({"id": "c-1"}, "line 4: id 'c-1' stands twice"),
        ({"id": "../b"}, "line 3: id '../b' must be letters"),
        ({"image": ""}, "line 3: no 'image'"),
        ({"height": 64}, "line 3: unknown column height: use id, image"),
    ],
)
def test_what_is_wrong_names_its_line(tmp_path, cells, said):
    image = {"image": "0.png"}
    rows = [{"id": "a"} | image, {"id": "b"} | image | cells]
    rows.append({"id": "c", "num_samples": 2} | image)
    path = bulk_jobs.table(tmp_path, rows)
    path.write_text(path.read_text().replace("\n", "\n\n", 1))  # an empty line counts
    with pytest.raises(UserError) as refused:
        bulk_jobs.requests(path)
    assert said in str(refused.value) and str(path) in str(refused.value)


def test_tables_that_are_none(tmp_path):
    for name, data, said in (
        ("a.txt", b"id,image\n", "read from .csv or .jsonl"),
        ("a.jsonl", b'{"id": "a"\n', "line 1: not JSON"),
        ("a.jsonl", b"[1]\n", "line 1: a JSON object is needed"),
        ("a.csv", b"\xff\xfe", "is not UTF-8"),
        ("a.csv", b"id,image\na,b,c\n", "unknown column None"),
        ("a.csv", b"", "holds no rows"),
        ("a.csv", b'id,image\na,"' + b"x" * 200_000 + b'"\n', "line 1: field larger than"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=said):
            bulk_jobs.requests(tmp_path / name)
    with pytest.raises(UserError, match="cannot read"):
        bulk_jobs.requests(tmp_path / "missing.csv")


def test_an_end_needs_two_frames(tmp_path):
    section = tiny.micro().config.sampling.copy_and_resolve_references()
    section.num_frames = 1
    path = bulk_jobs.table(tmp_path, [{"id": "a", "image": "0.png", "loop": True}])
    with pytest.raises(UserError, match=r"line 1: .*num_frames of at least 2"):
        bulk.read_requests(path, section)
