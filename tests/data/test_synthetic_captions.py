"""Captions of drawn clips, read by patterns that know nothing of how they are written."""

import re
from collections import Counter

from data.drawn import scenes

from dynamicrafter_jax.data.synthetic import draw_scene
from dynamicrafter_jax.data.synthetic.captions import WORDS
from dynamicrafter_jax.data.synthetic.scenes import COLOURS

CAMERA = re.compile(
    r"\b(?:camera (?:is )?(?:pan|mov|zoom|pull)\w*|pan|panning|zoom|zooming)(?: to the)? "
    r"(left|right|up|down|in|out|closer|back)(?:wards)?\b"
)
CAMERA_MEANS = {
    "left": "pan_left",
    "right": "pan_right",
    "up": "pan_up",
    "down": "pan_down",
    "in": "zoom_in",
    "closer": "zoom_in",
    "out": "zoom_out",
    "back": "zoom_out",
}
OBJECT = {
    "left": r"\bleft(wards)?\b",
    "right": r"\bright(wards)?\b",
    "up": r"\b(up|upwards|rises|ascends|climbs)\b",
    "down": r"\b(down|downwards|falls|sinks|descends|drops)\b",
    "clockwise": r"(?<!counter)(?<!counter-)(?<!anti)clockwise",
    "anticlockwise": r"(counter-?|anti)clockwise",
    "grow": r"\b(grow(s|ing)?|bigger|larger|expands|increases)\b",
    "shrink": r"\b(shrink(s|ing)?|smaller|contracts|decreases)\b",
}
STILL = r"\b(still|does not move|stays|rests|nothing (moves|happens)|no motion)\b"


def motions_in(caption: str) -> set[str]:
    """All motions that a caption tells of."""
    text = caption.lower()
    found = {CAMERA_MEANS[match[1]] for match in CAMERA.finditer(text)}
    rest = CAMERA.sub("", text)
    assert not re.search(r"\b(pan|zoom)", rest), caption
    return found | {motion for motion, pattern in OBJECT.items() if re.search(pattern, rest)}


def test_captions_tell_what_happens_and_no_more():
    for scene in scenes():
        assert motions_in(scene.caption) == set(scene.motions), scene.caption
        assert bool(re.search(STILL, scene.caption.lower())) == (not scene.motions), scene.caption


def test_captions_never_tell_the_speed():
    for scene in scenes():
        assert not re.search(r"\d|slow|fast|quick|rapid|speed|fps|gradual", scene.caption.lower())


def test_captions_of_given_motions_tell_these():
    for number in range(100):
        assert motions_in(draw_scene(number, motions=("zoom_out", "down")).caption) == {
            "zoom_out",
            "down",
        }


def test_words_vary():
    texts = [scene.caption for scene in scenes()]
    assert len(set(texts)) > 1500
    ends, capitals = (
        sum(text.endswith(".") for text in texts) / len(texts),
        sum(text[0].isupper() for text in texts) / len(texts),
    )
    assert 0.2 < ends < 0.3 and 0.2 < capitals < 0.3
    # Every way to name a direction comes up.
    for words in ("anticlockwise", "counterclockwise", "rises", "panning left", "moves closer"):
        assert any(words in text for text in texts), words


def test_nouns_that_mean_nothing_come_as_often_as_they_should():
    """A ball may be called a rocket."""
    assert 140 <= len(WORDS) == len(set(WORDS))
    true = {"ring", "orange", "moon", "picture"}  # may be what is seen
    pattern = re.compile(rf"\b({'|'.join(set(WORDS) - true)}) (?!background)\w")
    named = [s.caption for s in scenes() if len(s.motions) == 1 and s.motions[0] in OBJECT]
    share = sum(bool(pattern.search(text)) for text in named) / len(named)
    assert 0.09 < share < 0.15


def test_colours_and_backgrounds_are_those_that_are_seen():
    """Of the colours that a caption names, an object's come before a background's."""
    counts = Counter()
    for scene in scenes():
        text = scene.caption.lower()
        where = re.search(r"\ban? (\w+) background", text)
        if where:
            counts["background"] += 1
            assert scene.background.texture != "photograph"
            assert where[1] == scene.background.colour
            text = text[: where.start()] + text[where.end() :]
        named = {name for name in COLOURS if re.search(rf"\b{name}\b", text)}
        if scene.sprite and scene.sprite.pattern != "photograph":
            counts["object"] += bool(named)
            assert named <= set(scene.sprite.colours) | {"orange"}, scene.caption
        else:
            assert named <= {"orange"}, scene.caption
        if re.search(r"\bstriped|stripes\b", text):
            assert scene.sprite and scene.sprite.pattern == "stripes"
    assert counts["background"] > 80 and counts["object"] > 400
