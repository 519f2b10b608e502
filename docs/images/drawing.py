"""Boxes, arrows and words as SVG, in two themes: what `make_diagram.py` draws with."""

import base64
import html
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

SANS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace"

Point = tuple[float, float]


class Theme(NamedTuple):
    """Colours; streams and what works along time have one for lines and one for areas."""

    page: str
    ink: str
    muted: str
    line: str
    panel: str
    context: tuple[str, str]
    detail: tuple[str, str]
    text: tuple[str, str]
    time: tuple[str, str]

    @property
    def plain(self) -> tuple[str, str]:
        """Line and fill of what belongs to no stream."""
        return self.line, self.panel


THEMES = {
    "": Theme(
        "#ffffff",
        "#1f2328",
        "#59636e",
        "#9aa4af",
        "#f3f5f7",
        ("#b35900", "#fff1dc"),
        ("#0b7a6f", "#dcf5f0"),
        ("#6a3fc0", "#f0e8ff"),
        ("#1f6feb", "#e2efff"),
    ),
    "_dark": Theme(
        "#0d1117",
        "#e6edf3",
        "#9aa4af",
        "#6e7885",
        "#1a2029",
        ("#f0a63c", "#33240d"),
        ("#3fc7b5", "#0d2d2a"),
        ("#b69cf5", "#271d40"),
        ("#6cb0ff", "#10263f"),
    ),
}


class Drawing:
    """SVG elements in one theme, in pixels from the top left."""

    def __init__(self, theme: Theme, width: int, height: int, title: str) -> None:
        """Starts with an empty page, which the title describes to who can't see it."""
        self.theme, self.width, self.height, self.title = theme, width, height, title
        self.elements: list[str] = []
        self.rect(0.5, 0.5, width - 1, height - 1, (theme.line, theme.page), radius=10)

    def rect(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        colours: tuple[str, str],
        *,
        radius: float = 7,
        stroke: float = 1.25,
    ) -> None:
        """Draws a rectangle with (line, fill) colours."""
        line, fill = colours
        self.elements.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{radius:g}" '
            f'fill="{fill}" stroke="{line}" stroke-width="{stroke:g}"/>'
        )

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = 14,
        colour: str | None = None,
        bold: bool = False,
        mono: bool = False,
        anchor: str = "middle",
    ) -> None:
        """Writes one line of text with its baseline at y."""
        style = ' font-weight="600"' if bold else ""
        if mono:
            style += f' font-family="{MONO}"'
        self.elements.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{colour or self.theme.ink}"{style}>{html.escape(text)}</text>'
        )

    def shape(self, x: float, y: float, text: str, *, anchor: str = "middle") -> None:
        """Writes a tensor's shape."""
        self.words(x, y, text, size=12.5, mono=True, colour=self.theme.muted, anchor=anchor)

    def box(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        lines: tuple[str, ...],
        colours: tuple[str, str],
    ) -> None:
        """Draws a box with a bold line and plain ones below it."""
        self.rect(x, y, w, h, colours)
        top = y + h / 2 - 9 * (len(lines) - 1) + 5
        for i, line in enumerate(lines):
            size = 14 if i == 0 else 12.5
            colour = self.theme.ink if i == 0 else self.theme.muted
            self.words(x + w / 2, top + 18 * i, line, size=size, bold=i == 0, colour=colour)

    def tile(
        self,
        x: float,
        y: float,
        w: float,
        h: float,
        parts: list[tuple[str, str]],
        label: str,
        sign: str,
    ) -> None:
        """Draws parts side by side, a label below, and a sign on the last part."""
        width = w / len(parts)
        for i, colours in enumerate(parts):
            self.rect(x + i * width, y, width, h, colours, radius=2)
        self.words(x + w - width / 2, y + h / 2 + 5, sign, bold=True)
        self.words(x + w / 2, y + h + 14, label, size=11.5, colour=self.theme.muted)

    def arrow(
        self,
        points: Sequence[Point],
        colour: str,
        *,
        head: bool = True,
        dashed: bool = False,
    ) -> None:
        """Draws straight lines through points, with rounded corners and a head at the end."""
        path = f"M{points[0][0]:g} {points[0][1]:g}"
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            start, end = _towards(corner, before, 8), _towards(corner, after, 8)
            path += f" L{start[0]:g} {start[1]:g} Q{corner[0]:g} {corner[1]:g}"
            path += f" {end[0]:g} {end[1]:g}"
        tip = _towards(points[-1], points[-2], 7) if head else points[-1]
        path += f" L{tip[0]:g} {tip[1]:g}"
        style = ' stroke-dasharray="5 5"' if dashed else ""
        self.elements.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{style}/>'
        )
        if head:
            self._head(points[-2], points[-1], colour)

    def _head(self, origin: Point, tip: Point, colour: str) -> None:
        base = _towards(tip, origin, 9)
        across = ((tip[1] - base[1]) * 0.5, (base[0] - tip[0]) * 0.5)
        corners = [
            tip,
            (base[0] + across[0], base[1] + across[1]),
            (base[0] - across[0], base[1] - across[1]),
        ]
        points = " ".join(f"{x:g},{y:g}" for x, y in corners)
        self.elements.append(f'<polygon points="{points}" fill="{colour}"/>')

    def stack(
        self, x: float, y: float, w: float, h: float, colours: tuple[str, str], count: int = 5
    ) -> None:
        """Draws the frames of a clip behind one another; the first is in front, at (x, y)."""
        for i in reversed(range(count)):
            self.rect(x + 5 * i, y - 5 * i, w, h, colours, radius=3, stroke=1)

    def image(self, x: float, y: float, w: float, h: float, picture: np.ndarray) -> None:
        """Embeds a picture."""
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, format="JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode()
        self.elements.append(
            f'<image x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" '
            f'href="data:image/jpeg;base64,{data}"/>'
        )

    def circle(self, x: float, y: float, radius: float, colours: tuple[str, str]) -> None:
        """Draws a circle around (x, y) with (line, fill) colours."""
        line, fill = colours
        self.elements.append(
            f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{fill}" stroke="{line}" '
            f'stroke-width="1.25"/>'
        )

    def triangle(self, x: float, y: float, size: float, colour: str) -> None:
        """Draws the sign for playing around (x, y)."""
        corners = f"{x - size / 2:g},{y - size * 0.6:g} {x - size / 2:g},{y + size * 0.6:g}"
        self.elements.append(
            f'<polygon points="{corners} {x + size / 2:g},{y:g}" fill="{colour}"/>'
        )

    def speckle(self, x: float, y: float, w: float, h: float, seed: int = 0) -> None:
        """Fills a rectangle with the look of noise."""
        random = np.random.RandomState(seed)
        for _ in range(int(w * h / 26)):
            left, top = x + 2 + random.rand() * (w - 6), y + 2 + random.rand() * (h - 6)
            opacity = 0.25 + 0.55 * random.rand()
            self.elements.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="2.2" height="2.2" '
                f'fill="{self.theme.muted}" opacity="{opacity:.2f}"/>'
            )

    def svg(self) -> str:
        """Returns the whole file."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" font-family="{SANS}" role="img">\n'
            f"<title>{html.escape(self.title)}</title>\n" + "\n".join(self.elements) + "\n</svg>\n"
        )


def _towards(point: Point, other: Point, distance: float) -> Point:
    dx, dy = other[0] - point[0], other[1] - point[1]
    length = max((dx**2 + dy**2) ** 0.5, 1e-9)
    return point[0] + dx / length * distance, point[1] + dy / length * distance
