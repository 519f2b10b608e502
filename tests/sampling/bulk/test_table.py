"""Tables of requests: what a row says, and what is wrong with one."""

import zlib

import bulk_jobs
import pytest

from dynamicrafter_jax.config import load_config
from dynamicrafter_jax.errors import UserError
from dynamicrafter_jax.sampling import bulk


def test_a_row_says_what_differs_from_the_config(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text(
        "\ufeffid,image,prompt,end_image,loop,seed,steps,eta,guidance_scale,image_guidance_scale,"
        "guidance_rescale,fps,spacing,negative_prompt,fit,solver\n"
        'a,0.png,"a cat, black",,,,,,,,,,,,,\n'
        "b,0.png,,1.png,,7,9,0,3,1.5,0.25,10,uniform,blurry,letterbox,unipc\n"
        "c,sub/0.png,,,yes,,,,1,,,,,,,\n"
    )
    a, b, c = bulk_jobs.requests(table)
    assert (a.name, a.prompt, a.end_image, a.loop) == ("a", "a cat, black", None, False)
    defaults = load_config(bulk_jobs.CONFIG).sampling
    assert a.settings.steps == bulk_jobs.STEPS
    assert a.settings.guidance_scale == defaults.guidance_scale
    assert (b.settings.seed, b.settings.steps, b.settings.eta) == (7, 9, 0.0)
    assert (b.settings.guidance_scale, b.settings.image_guidance_scale) == (3.0, 1.5)
    assert (b.settings.guidance_rescale, b.settings.fps) == (0.25, 10.0)
    assert (b.settings.spacing, b.settings.negative_prompt) == ("uniform", "blurry")
    assert (a.settings.solver, b.settings.solver) == ("ddim", "unipc")
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
        ({"fps": -1}, "line 3: sampling.fps is -1.0: give at least 0"),
        ({"seed": 2**32}, "line 3: sampling.seed is 4294967296"),
        ({"loop": "perhaps"}, "line 3: loop 'perhaps' is neither true nor false"),
        ({"loop": True, "end_image": "1.png"}, "line 3: end_image and loop exclude each other"),
        ({"num_samples": 0}, "line 3: num_samples is 0"),
        ({"num_samples": True}, "line 3: num_samples is True"),
        ({"id": "a"}, "line 3: id 'a' occurs twice"),
        ({"id": "c-1"}, "line 4: id 'c-1' occurs twice"),
        ({"id": "A"}, "line 3: id 'A' and 'a' differ only in case"),
        ({"id": "../b"}, "line 3: id '../b' must be letters"),
        ({"id": "b" * 252}, "line 3: id 'bbbbbbbbbbbbbbbbbbbb'... is 1 bytes too long"),
        ({"id": "b" * 250, "num_samples": 2}, "line 3: id 'bbbbbbbbbbbbbbbbbbbb'... is 1 bytes"),
        ({"id": True}, "line 3: id is True: give text or a whole number"),
        ({"id": 1.5}, "line 3: id is 1.5: give text or a whole number"),
        ({"prompt": ["a cat"]}, "line 3: prompt is ['a cat']: put text between double quotes"),
        ({"prompt": {"en": "a cat"}}, "line 3: prompt is {'en': 'a cat'}: put text"),
        ({"prompt": False}, "line 3: prompt is False: put text"),
        ({"prompt": 5}, "line 3: prompt is 5: put text"),
        ({"prompt": "a\0cat"}, r"line 3: prompt is 'a\x00cat', with a null character"),
        ({"prompt": "\ud83d"}, r"line 3: prompt is '\ud83d', with half a character"),
        ({"negative_prompt": ["blurry"]}, "line 3: negative_prompt is ['blurry']: put text"),
        ({"image": ["0.png"]}, "line 3: image is ['0.png']: put text"),
        ({"end_image": 1}, "line 3: end_image is 1: put text"),
        ({"steps": True}, "line 3: sampling.steps is True: a whole number is needed"),
        ({"steps": [4]}, "line 3: sampling.steps is [4]: a whole number is needed"),
        ({"steps": "1_0"}, "line 3: steps '1_0' is not a whole number"),
        ({"eta": False}, "line 3: sampling.eta is False: a number is needed"),
        ({"fps": float("nan")}, "line 3: NaN is not a number in JSON: write a finite one"),
        ({"fps": "nan"}, "line 3: sampling.fps is not a finite number"),
        ({"fps": 10**400}, "line 3: sampling.fps is too large"),
        ({"loop": [True]}, "line 3: loop [True] is neither true nor false"),
        ({"image": ""}, "line 3: has no 'image'"),
        ({"heights": 64}, "line 3: unknown column heights: use id, image"),
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


READ: dict[str, tuple[str, str | None]] = {
    "commas in quotes": ('id,image,prompt\na,0.png,"a cat, black"\n', "a cat, black"),
    "quotes in quotes": ('id,image,prompt\na,0.png,"say ""hi"""\n', 'say "hi"'),
    "quotes within text": ('id,image,prompt\na,0.png,say "hi"\n', 'say "hi"'),
    "spaces after commas": ("id, image, prompt\na, 0.png, a cat\n", "a cat"),
    "spaces before quotes": ('id, image, prompt\na, 0.png, "a cat, black"\n', "a cat, black"),
    "a break in quotes": ('id,image,prompt\na,0.png,"a cat,\nblack, slim, fat"\n', None),
    "semicolons": ("id;image;prompt\na;0.png;a cat, black\n", "a cat, black"),
    "quoted semicolons": ('"id";"image";"prompt"\n"a";"0.png";"a; b"\n', "a; b"),
    "tabs": ("id\timage\tprompt\na\t0.png\ta cat, black\n", "a cat, black"),
    "capitals": ("ID, Image ,PROMPT,End Image\na,0.png,a cat,\n", "a cat"),
    "carriage returns": ("id,image,prompt\r\na,0.png,a cat\r\n", "a cat"),
    "carriage returns alone": ("id,image,prompt\ra,0.png,a cat\r", "a cat"),
    "empty rows and columns": (
        "\n,,,\nid,image,prompt,,\n\n,,,,\na,0.png,a cat,,,\n , \n",
        "a cat",
    ),
    "short rows": ("id,image,prompt\na,0.png\n", ""),
    "no end": ("id,image,prompt\na,0.png,a cat", "a cat"),
    "one line of JSON": ('{"id": "a", "image": "0.png", "prompt": "a cat"}', "a cat"),
    "lines of JSON": ('\r\n{"id": "a", "image": "0.png", "prompt": null}\r\n\r', ""),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("kind", READ)
def test_tables_are_read_as_spreadsheets_read_them(tmp_path, kind, encoding):
    text, prompt = READ[kind]
    path = tmp_path / ("a.JSONL" if "JSON" in kind else "a.CSV")
    path.write_bytes(text.encode(encoding))
    (request,) = bulk_jobs.requests(path)
    expected = "a cat,\nblack, slim, fat" if prompt is None else prompt
    assert (request.name, request.prompt, request.end_image) == ("a", expected, None)
    assert request.image == str(tmp_path / "0.png")


HEADER = "id,image,prompt\n"
OPENED = "line 2: a double quote is opened here"
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "never closed": (HEADER + 'a,0.png,"pans\nb,0.png,zooms\n', OPENED + " and never closed"),
    "closed a row later": (
        HEADER + 'a,0.png,"pans\nb,0.png,zooms"\nc,0.png,x\n',
        OPENED + ", and line 3 is within it, though it looks like a row",
    ),
    "closed where the next opens": (
        HEADER + 'a,0.png,"pans\nb,0.png,"zooms"\n',
        "line 2: more text follows the double quote that closes a cell in line 3",
    ),
    "closed at the start of a row": (
        '"id","image","prompt"\n"a","0.png","pans\n"b","0.png","zooms"\n',
        "line 2: more text follows the double quote that closes a cell in line 3",
    ),
    "never closed in the header": ('id,image,"prompt\na,0.png,b\n', "line 1: a double quote is"),
    "after a cell of two lines": (
        HEADER + 'a,0.png,"a\nb"\nb,0.png,"c\n',
        "line 4: a double quote is opened here and never closed",
    ),
    "wrong after a cell of two lines": (
        "id,image,prompt,steps\n" + 'a,0.png,"a\nb",\nb,0.png,c,0\n',
        "line 4: sampling.steps is 0",
    ),
    "backslashes": (HEADER + r'a,0.png,"he says \"hi\""', "line 2: more text follows"),
    "text after quotes": (HEADER + 'a,0.png,"Hello" says\n', 'written twice ("")'),
    "an unquoted comma": (
        HEADER + "a,0.png,a cat, black\n",
        "line 2: has 4 cells, but the header has 3: put text with a comma in it between double",
    ),
    "an unquoted semicolon": (
        HEADER.replace(",", ";") + "a;0.png;a cat; black\n",
        "line 2: has 4 cells, but the header has 3: put text with a semicolon",
    ),
    "a column twice": ("id,image,prompt,Prompt\n", "line 1: the column 'prompt' occurs twice"),
    "a column without a name": (
        ",id,image,\n0,a,0.png\n",
        "line 2: has text in a column without a name",
    ),
    "rows split otherwise": (HEADER + "a;0.png;a cat\n", "line 2: has no 'image'"),
    "another column": ("id,image,colour\na,0.png,red\n", "line 2: unknown column colour: use"),
    "null characters": (HEADER + "a,0.png,a\0cat\n", "line 2: holds a null character"),
    "UTF-16 without its mark": (
        (HEADER + "a,0.png,x\n").encode("utf-16-le"),
        "line 1: holds a null",
    ),
    "cut UTF-16": (HEADER.encode("utf-16") + b"a", "is not UTF-16"),
    "Latin-1": (
        (HEADER + "a,0.png,cat\nb,0.png,grün\n").encode("latin-1"),
        "line 3: is not UTF-8: byte 0xfc at position 10; save the file as UTF-8",
    ),
    "endless": (HEADER + f"a,0.png,{'x' * 200_000}\n", "line 2: is not CSV: field larger than"),
    "nothing": ("", "is empty (0 bytes)"),
    "only a header": (HEADER, "holds no rows"),
    "only a mark": (b"\xff\xfe", "holds no rows"),
    "cut JSON": ('{"id": "a"\n', "line 1: is not JSON: Expecting ',' delimiter at position"),
    "a list of JSON": ('[{"id": "a", "image": "0.png"}]\n', "line 1: a JSON object is needed"),
    "a text of JSON": ('\n"a"\n', "line 2: a JSON object is needed"),
    "null of JSON": ("null\n", "line 1: a JSON object is needed"),
    "JSON with a key twice": ('{"id": "a", "id": "b"}', "line 1: the key 'id' occurs twice"),
    "JSON with Infinity": ('{"id": "a", "fps": -Infinity}', "line 1: -Infinity is not a number"),
    "JSON without end": ("[" * 100_000, "line 1: is not JSON: "),
    "JSON of Latin-1": ('\n{"id": "ü"}'.encode("latin-1"), "line 2: is not UTF-8"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_tables_that_say_it_wrong_are_refused_by_their_line(tmp_path, kind):
    content, said = REFUSED[kind]
    path = tmp_path / ("a.jsonl" if "JSON" in kind else "a.csv")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as refused:
        bulk_jobs.requests(path)
    assert said in str(refused.value) and str(refused.value).count(str(path)) == 1
    assert "\n" not in str(refused.value)


def test_files_that_are_no_tables(tmp_path):
    (tmp_path / "a.txt").write_text(HEADER)
    for name, said in (("a.txt", "read from .csv or .jsonl"), ("none.csv", "does not exist")):
        with pytest.raises(UserError, match=said):
            bulk_jobs.requests(tmp_path / name)


def test_tables_that_people_had(tmp_path):
    with pytest.raises(UserError, match=r"unclosed_quote\.csv, line 2: a double quote is opened"):
        bulk_jobs.requests(bulk_jobs.CASES / "unclosed_quote.csv")
    first, *others = bulk_jobs.requests(bulk_jobs.CASES / "long_id.jsonl")
    assert (len(first.name.encode()), len(others)) == (240, 9)
    text = (bulk_jobs.CASES / "long_id.jsonl").read_text()
    (tmp_path / "longer.jsonl").write_text(text.replace('"r3"', f'"{"狗" * 86}ab"'))
    with pytest.raises(UserError, match=r"longer\.jsonl, line 5: id '狗.*is 9 bytes too long"):
        bulk_jobs.requests(tmp_path / "longer.jsonl")


def test_an_end_needs_two_frames(tmp_path):
    section = load_config(bulk_jobs.CONFIG).sampling.copy_and_resolve_references()
    section.num_frames = 1
    path = bulk_jobs.table(tmp_path, [{"id": "a", "image": "0.png", "loop": True}])
    with pytest.raises(UserError, match=r"line 1: .*num_frames of at least 2"):
        bulk.read_requests(path, section)
