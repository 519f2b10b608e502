"""Draws the diagrams of README.md and docs/architecture.md, each for light and dark pages.

    python docs/images/make_diagram.py

Shapes and sizes are read from the 512 config and its networks, so the pictures can't disagree
with the code. Needs nothing but the package itself.
"""

from importlib import resources
from pathlib import Path

from drawing import THEMES, Drawing, Theme

from dynamicrafter_jax.config import load_config, networks_of
from dynamicrafter_jax.media import read_picture
from dynamicrafter_jax.media.cropping import cover
from dynamicrafter_jax.sampling.settings import SamplingSettings
from dynamicrafter_jax.sampling.stages import latent_shape

FOLDER = Path(__file__).parent
PHOTOGRAPH = "rocket.jpg"
PROMPT = ("a rocket lifting off", "from its launch pad")

CONFIG = load_config("i2v_512")
MODELS = networks_of(CONFIG)
SETTINGS = SamplingSettings.from_config(CONFIG.sampling)
LATENTS = latent_shape(MODELS, SETTINGS)


def times(*sizes: int) -> str:
    """Returns sizes as 16 x 40 x 64."""
    return " × ".join(map(str, sizes))


def dual_stream(theme: Theme) -> str:
    """The whole path, from a prompt and an image to a video."""
    t, h, w, z = LATENTS
    height, width = SETTINGS.height, SETTINGS.width
    vision, projector, text = MODELS.image_encoder, MODELS.projector, MODELS.text_encoder
    words, context, detail = theme.text, theme.context, theme.detail
    draw = Drawing(theme, 1080, 540, "How a prompt and an image become a video")

    draw.rect(24, 50, 168, 60, theme.plain)
    draw.words(108, 40, "prompt", bold=True)
    for i, line in enumerate(PROMPT):
        draw.words(108, 77 + 18 * i, line)
    draw.arrow([(192, 80), (236, 80)], words[0])
    draw.box(236, 48, 150, 64, ("CLIP text tower", "frozen"), words)
    draw.shape(311, 130, times(text.context_length, text.width))
    draw.arrow([(386, 80), (676, 80)], words[0])
    draw.words(236, 38, "what should happen", bold=True, anchor="start", colour=words[0])

    asset = resources.files("dynamicrafter_jax") / "assets" / PHOTOGRAPH
    with resources.as_file(asset) as path:
        draw.image(24, 212, 168, 105, cover(read_picture(path), 210, 336))
    draw.rect(24, 212, 168, 105, (theme.line, "none"), radius=0)
    draw.words(108, 202, "image", bold=True)
    draw.shape(108, 336, times(height, width, 3))
    draw.arrow([(192, 240), (212, 240), (212, 206), (236, 206)], context[0])
    draw.arrow([(192, 289), (212, 289), (212, 336), (236, 336)], detail[0])

    draw.words(236, 164, "1. what the image means", bold=True, anchor="start", colour=context[0])
    draw.box(236, 174, 150, 64, ("CLIP vision tower", "frozen"), context)
    tokens = 1 + (vision.image_size // vision.patch_size) ** 2
    draw.shape(311, 256, times(tokens, vision.width))
    draw.arrow([(386, 206), (424, 206)], context[0])
    queries = f"{projector.num_queries} queries a frame"
    draw.box(424, 174, 150, 64, ("projector", queries), context)
    draw.shape(499, 256, times(projector.video_length, projector.num_queries, projector.output_dim))
    draw.arrow([(574, 206), (676, 206)], context[0])

    draw.words(236, 294, "2. what it looks like", bold=True, anchor="start", colour=detail[0])
    draw.box(236, 304, 150, 64, ("VAE encoder", "frozen"), detail)
    draw.shape(311, 386, times(h, w, z))
    draw.arrow([(386, 336), (424, 336)], detail[0])
    draw.stack(424, 322, 64, 40, detail)
    draw.words(466, 384, "the same for each frame", size=12.5, colour=theme.muted)
    draw.arrow([(510, 336), (596, 336), (596, 372)], detail[0])

    draw.stack(424, 424, 64, 40, theme.plain)
    draw.speckle(424, 424, 64, 40)
    draw.shape(466, 482, times(t, h, w, z))
    draw.words(404, 449, "noise", bold=True, anchor="end")
    draw.arrow([(510, 438), (596, 438), (596, 410)], theme.line)
    draw.circle(596, 391, 15, theme.plain)
    draw.words(596, 396, "c", bold=True)
    draw.words(624, 382, "concat", size=12.5, colour=theme.muted, anchor="start")
    draw.arrow([(611, 391), (676, 391)], theme.line)

    draw.rect(676, 24, 196, 450, theme.plain, radius=10)
    draw.words(774, 49, "U-Net", bold=True, size=16)
    draw.rect(692, 62, 164, 36, words)
    draw.words(774, 85, "attention to text")
    draw.arrow([(774, 98), (774, 188)], theme.line, head=False)
    draw.circle(774, 143, 13, (theme.line, theme.page))
    draw.words(774, 149, "+", size=18, bold=True)
    draw.words(796, 148, "added", size=12.5, colour=theme.muted, anchor="start")
    draw.rect(692, 188, 164, 36, context)
    draw.words(774, 211, "attention to image")
    for i, size in enumerate((104, 74, 50, 34, 34, 34, 50, 74, 104)):
        draw.rect(698.5 + 17.5 * i, 300 - size / 2, 11, size, (theme.line, theme.page), radius=2)
    draw.words(774, 387, "all frames at once,", size=12.5, colour=theme.muted)
    draw.words(774, 404, "within frames", size=12.5, colour=theme.muted)
    draw.words(774, 421, "and along time", size=12.5, colour=theme.muted)

    loop = f"solver step, {SETTINGS.steps} times"
    draw.arrow([(774, 474), (774, 512), (466, 512), (466, 490)], theme.line)
    draw.words(620, 505, loop, bold=True)
    draw.arrow([(872, 391), (908, 391)], theme.line)
    draw.box(908, 359, 148, 64, ("VAE decoder", "frozen"), detail)
    draw.arrow([(982, 359), (982, 300)], detail[0])
    draw.stack(916, 196, 112, 70, (theme.line, theme.panel))
    draw.triangle(972, 231, 15, theme.muted)
    draw.words(982, 162, "video", bold=True)
    draw.shape(982, 288, times(t, height, width, 3))
    return draw.svg()


def unet(theme: Theme) -> str:
    """The U-Net, level by level, and one of its blocks."""
    network, (_, h, w, _) = MODELS.unet, LATENTS
    draw = Drawing(theme, 1080, 600, "The U-Net level by level, and one of its blocks")
    res, spatial, temporal, conv = theme.plain, theme.context, theme.time, (theme.line, theme.page)
    last = len(network.channel_mult) - 1
    per_level = network.num_res_blocks + 1
    pitch, tile = 46, (38, 40)
    indent = pitch * (per_level - 1)
    left, right = 150, 1056 - tile[0] - indent

    for level, multiplier in enumerate(network.channel_mult):
        y, x_down, x_up = 52 + 92 * level, left + indent * level, right - indent * level
        width = f"{multiplier * network.model_channels} channels"
        draw.words(24, y + 8, f"level {level}", bold=True, anchor="start")
        draw.words(24, y + 26, width, size=12.5, colour=theme.muted, anchor="start")
        draw.shape(24, y + 43, times(h >> level, w >> level), anchor="start")
        attends = 2**level in network.attention_resolutions
        block = [res, spatial, temporal] if attends else [res]
        for i in range(per_level):
            if i:
                parts, sign = block, ""
            else:
                parts, sign = ([conv, temporal], "") if level == 0 else ([conv], "↓")
            draw.tile(x_down + pitch * i, y, *tile, parts, str(per_level * level + i), sign)
            upsamples = level > 0 and i == per_level - 1
            number = str(per_level * (last - level) + i)
            parts, sign = ([*block, conv], "↑") if upsamples else (block, "")
            draw.tile(x_up + pitch * i, y, *tile, parts, number, sign)
        draw.arrow(
            [(x_down + indent + tile[0] + 6, y + 20), (x_up - 6, y + 20)], theme.line, dashed=True
        )
        if level < last:
            x = x_down + indent + tile[0] / 2
            draw.arrow([(x, y + 58), (x, y + 90)], theme.line)
            x = x_up + tile[0] / 2
            draw.arrow([(x, y + 90), (x, y + 58)], theme.line)

    y = 52 + 92 * last
    middle = (left + indent * last + indent + right - indent * last + tile[0]) / 2
    x_down, x_up = left + indent * (last + 1) + tile[0] / 2, right - indent * last + tile[0] / 2
    draw.tile(middle - 28, y + 62, 56, 40, [res, spatial, temporal, res], "middle", "")
    draw.arrow([(x_down, y + 58), (x_down, y + 82), (middle - 30, y + 82)], theme.line)
    draw.arrow([(middle + 30, y + 82), (x_up, y + 82), (x_up, y + 58)], theme.line)
    skips = "skip connections, one for each block"
    draw.words(middle, 66, skips, size=12.5, colour=theme.muted)
    draw.words(left, 36, "input blocks", bold=True, anchor="start")
    draw.words(right + indent + tile[0], 36, "output blocks", bold=True, anchor="end")

    top = 492
    boxes = (
        ("res-block", "3×3 convolutions", "shifted by timestep and fs", res),
        ("temporal convolutions", "four along time", "of three frames each", res),
        ("spatial transformer", "within each frame; attends", "to text and image", spatial),
        ("temporal transformer", "at each pixel,", "attends along time", temporal),
    )
    for i, (*lines, colours) in enumerate(boxes):
        x = 24 + 262 * i
        draw.box(x, top, 246, 84, tuple(lines), colours)
        if i:
            draw.arrow([(x - 16, top + 42), (x, top + 42)], theme.line)
    draw.words(24, top - 12, "one block", bold=True, anchor="start")
    return draw.svg()


def rooms(theme: Theme) -> str:
    """The files of the package, and which imports which."""
    draw = Drawing(theme, 1430, 580, "The rooms of the package and the direction of imports")
    plain, line = theme.plain, theme.line
    columns = [24 + 190 * i for i in range(6)]
    for x, entry in zip(
        columns,
        (
            ("train.py", "videos to a model"),
            ("sample.py, app/", "images to videos"),
            ("evaluate.py", "how good they are"),
            ("plan.py", "what TPUs would need"),
            ("artifact/", "sampling, exported"),
            ("convert.py", "release files"),
        ),
        strict=True,
    ):
        draw.box(x, 30, 170, 62, entry, theme.text)
    for x, room in zip(
        columns[2:5],
        (
            ("evaluation/", "protocol, clips, report"),
            ("planning/", "programs, counted"),
            ("artifact/", "in one program"),
        ),
        strict=True,
    ):
        draw.box(x, 142, 170, 62, room, plain)
    draw.box(columns[0], 142, 170, 62, ("training/", "step, state, watching"), plain)
    draw.box(columns[1], 142, 170, 62, ("pipeline.py", "image to video"), plain)
    draw.box(columns[5], 142, 170, 174, ("weights/", "release files, models"), plain)
    draw.box(columns[0], 254, 170, 62, ("data/", "videos to clips, cache"), plain)
    draw.box(columns[1], 254, 740, 62, ("sampling/", "encode, denoise, decode"), plain)
    draw.box(columns[1], 366, 740, 62, ("conditioning.py", "how text and image enter"), plain)
    draw.box(columns[0], 478, 360, 62, ("diffusion/", "functions of arrays"), theme.context)
    draw.box(columns[2], 478, 740, 62, ("models/", "Flax modules"), theme.detail)

    centre = [x + 85 for x in columns]
    arrows = [[(x, 92), (x, 142)] for x in centre]
    arrows += [
        [(centre[0], 204), (centre[0], 254)],
        [(centre[2], 204), (centre[2], 254)],
        [(centre[3], 204), (centre[3], 254)],
        [(centre[4], 204), (centre[4], 254)],
        [(centre[1], 204), (centre[1], 254)],
        [(centre[2], 316), (centre[2], 366)],
        [(centre[1], 428), (centre[1], 478)],
        [(centre[2], 428), (centre[2], 478)],
        [(centre[5], 316), (centre[5], 478)],
    ]
    for points in arrows:
        draw.arrow(points, line)

    draw.rect(1174, 30, 232, 510, plain, radius=10)
    draw.words(1290, 56, "used by those on the left", bold=True)
    leaves = (
        ("sharding.py", "meshes: the only file with axes"),
        ("attention/", "which kernel runs where"),
        ("metrics/", "numbers of sets of videos"),
        ("media/", "images in, video out"),
        ("tokenizer.py", "text to ids"),
        ("runtime/", "files, processes, provenance"),
        ("cli/", "flags, and errors in a line"),
        ("config.py, errors.py", "the same manners everywhere"),
    )
    for i, (name, what) in enumerate(leaves):
        draw.words(1190, 96 + 56 * i, name, size=13, bold=True, anchor="start")
        draw.words(1190, 113 + 56 * i, what, size=12.5, colour=theme.muted, anchor="start")
    return draw.svg()


def main() -> None:
    """Writes every diagram in both themes."""
    for suffix, theme in THEMES.items():
        for draw in (dual_stream, unet, rooms):
            (FOLDER / f"{draw.__name__}{suffix}.svg").write_text(draw(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
