"""Built-in world: definition and drawing of a scene.

A scene is a 3 x 3 grid of cells, some of which hold a thing: a colored shape with a name plate that shows one letter,
its tag. A scene is drawn in two ways:

    full_view   288 pixels wide, the image of every policy. A large tag is legible, also after the model's processor has
                shrunk the image to 96 pixels. A small tag is replaced by a smudge.
    original    576 pixels wide, with all tags sharp. Only crops of it are shown.

All smudges have the same pixels. Two scenes that differ only in a small tag therefore have byte-identical full views,
and no model can read a small tag without evidence. Drawing it tiny instead would not suffice: a linear probe still
reads a letter that box filtering has shrunk to a height of three pixels.

Sizes are chosen so that after shrinking, a cell has four patches of 16 pixels and a large tag lies inside one of them.
In a crop shrunk to the same 96 pixels, a small tag does.
"""

from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
COLORS = {
    "red": (214, 45, 48),
    "green": (38, 158, 82),
    "blue": (45, 98, 214),
    "yellow": (240, 190, 28),
    "purple": (146, 70, 190),
    "black": (48, 50, 56),
}
TAGS = ("A", "C", "H", "L", "T", "X")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "center", "right"))

GRID = 3
CELL = 96  # pixels of one cell in the full view
VIEW_SIZE = GRID * CELL
ORIGINAL_SCALE = 2  # pixels of the original per pixel of the full view

# one pair per shape and color, so that training contains every shape and every color
WITHHELD = frozenset(zip(SHAPES, COLORS, strict=True))

GROUND, _CARD, _CARD_EDGE = (226, 224, 218), (249, 248, 245), (208, 205, 198)
_PLATE, _PLATE_EDGE, _INK, _SMUDGE = (255, 255, 255), (120, 120, 124), (20, 20, 24), (150, 150, 154)
_SMOOTH = 4  # supersampling factor
_PLATE_BOX = (50, 49, 94, 95)
_SHAPE_SIDE = 49  # side of the square in the top left corner of a cell that holds its shape, also when shifted
_GLYPHS = {  # 5 x 7 dots, each row a number of five bits
    "A": (0b01110, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001),
    "C": (0b01111, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b01111),
    "H": (0b10001, 0b10001, 0b10001, 0b11111, 0b10001, 0b10001, 0b10001),
    "L": (0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b10000, 0b11111),
    "T": (0b11111, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100, 0b00100),
    "X": (0b10001, 0b01010, 0b01010, 0b00100, 0b01010, 0b01010, 0b10001),
}
_UNIT_STAR = (
    *((0.0, -1.0), (0.24, -0.32), (0.95, -0.31), (0.38, 0.12), (0.59, 0.81)),
    *((0.0, 0.4), (-0.59, 0.81), (-0.38, 0.12), (-0.95, -0.31), (-0.24, -0.32)),
)
_UNIT_POLYGONS = {
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)),
    "star": tuple((1.08 * x, 1.08 * y + 0.05) for x, y in _UNIT_STAR),
    "diamond": ((0.0, -1.05), (0.8, 0.0), (0.0, 1.05), (-0.8, 0.0)),
    "cross": (
        *((-0.32, -0.95), (0.32, -0.95), (0.32, -0.32), (0.95, -0.32), (0.95, 0.32), (0.32, 0.32)),
        *((0.32, 0.95), (-0.32, 0.95), (-0.32, 0.32), (-0.95, 0.32), (-0.95, -0.32), (-0.32, -0.32)),
    ),
}


@dataclass(frozen=True)
class Thing:
    """An object. readable: False for a small tag, hidden in the full view; shift: of the shape, in pixels."""

    cell: int  # 0..8, row by row
    shape: str
    color: str
    tag: str
    readable: bool
    shift: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def location(self) -> str:
        return PLACES[self.cell]


@dataclass(frozen=True)
class Scene:
    """Things in the order of their cells, at most one in a cell, no two of the same color and shape."""

    things: tuple[Thing, ...]


def full_view(scene: Scene) -> Image.Image:
    """Draw the image of every policy: VIEW_SIZE pixels wide, with a smudge in place of every small tag."""
    return _draw(scene, 1, sharp=False)


def original(scene: Scene) -> Image.Image:
    """Draw the scene with every tag sharp, ORIGINAL_SCALE times as wide as the full view."""
    return _draw(scene, ORIGINAL_SCALE, sharp=True)


def crop(scene: Scene, cell: int) -> Image.Image:
    """Draw one cell of the original."""
    thing = next((thing for thing in scene.things if thing.cell == cell), None)
    image = Image.new("RGB", (ORIGINAL_SCALE * CELL, ORIGINAL_SCALE * CELL))
    _paste_cell(image, (0, 0), thing, ORIGINAL_SCALE, sharp=True)
    return image


def cell_box(cell: int) -> tuple[int, int, int, int]:
    """Return the corners x0, y0, x1, y1 of a cell in pixels of the full view."""
    row, column = divmod(cell, GRID)
    return (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL)


def _draw(scene: Scene, scale: int, *, sharp: bool) -> Image.Image:
    image = Image.new("RGB", (scale * VIEW_SIZE, scale * VIEW_SIZE))
    by_cell = {thing.cell: thing for thing in scene.things}
    for cell in range(GRID * GRID):
        x0, y0, _, _ = cell_box(cell)
        _paste_cell(image, (scale * x0, scale * y0), by_cell.get(cell), scale, sharp=sharp)
    return image


def _paste_cell(image: Image.Image, corner: tuple[int, int], thing: Thing | None, scale: int, *, sharp: bool) -> None:
    """Paste a cell into the image with its top left corner at `corner`.

    Shape and name plate are drawn and cached separately: no pixel shows parts of both, and their combinations are many.
    """
    if thing is None:
        image.paste(_draw_card(None, None, (0, 0), scale), corner)
        return
    image.paste(_draw_card(thing.shape, thing.color, thing.shift, scale), corner)
    plate = _draw_plate(thing.tag if sharp or thing.readable else None, thing.readable, scale)
    x0, y0, _, _ = _plate_area(scale)
    image.paste(plate, (corner[0] + x0, corner[1] + y0))


@cache
def _draw_card(shape: str | None, color: str | None, shift: tuple[int, int], scale: int) -> Image.Image:
    """Draw a cell without its name plate."""
    if shape is None:
        return _smoothed(_blank_card(scale))
    unit = scale * _SMOOTH
    part = _blank_card(scale).crop((0, 0, _SHAPE_SIDE * unit, _SHAPE_SIDE * unit))
    _draw_shape(ImageDraw.Draw(part), shape, COLORS[color], shift, unit)
    image = _draw_card(None, None, (0, 0), scale).copy()
    image.paste(_smoothed(part))
    return image


@cache
def _draw_plate(tag: str | None, large: bool, scale: int) -> Image.Image:
    """Draw the part of a cell with its name plate; a smudge if `tag` is None."""
    unit = scale * _SMOOTH
    image = _blank_card(scale).copy()
    draw = ImageDraw.Draw(image)
    plate = tuple(unit * corner for corner in _PLATE_BOX)
    draw.rounded_rectangle(plate, radius=5 * unit, fill=_PLATE, outline=_PLATE_EDGE, width=unit)
    if tag is None:
        _draw_smudge(draw, unit)
    else:
        _draw_glyph(draw, tag, (6 if large else 2) * unit, unit)
    return _smoothed(image).crop(_plate_area(scale))


def _plate_area(scale: int) -> tuple[int, int, int, int]:
    """Return the pixels that the plate covers in a cell; its edge extends one drawn pixel beyond _PLATE_BOX."""
    x0, y0, x1, y1 = _PLATE_BOX
    return (scale * x0, scale * y0, scale * x1 + 1, scale * y1 + 1)


@cache
def _blank_card(scale: int) -> Image.Image:
    """Draw an empty cell at _SMOOTH times its final size."""
    unit = scale * _SMOOTH
    image = Image.new("RGB", (CELL * unit, CELL * unit), GROUND)
    card = tuple(unit * corner for corner in (2, 2, CELL - 2, CELL - 2))
    ImageDraw.Draw(image).rounded_rectangle(card, radius=7 * unit, fill=_CARD, outline=_CARD_EDGE, width=unit)
    return image


def _smoothed(image: Image.Image) -> Image.Image:
    return image.resize((image.width // _SMOOTH, image.height // _SMOOTH), Image.Resampling.BOX)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, fill: tuple, shift: tuple[int, int], unit: int) -> None:
    center_x, center_y, radius = (25 + shift[0]) * unit, (25 + shift[1]) * unit, 19 * unit
    edge = tuple(int(0.7 * part) for part in fill)
    if shape == "circle":
        corners = (center_x - radius, center_y - radius, center_x + radius, center_y + radius)
        draw.ellipse(corners, fill=fill, outline=edge, width=unit)
        return
    points = [(round(center_x + radius * x), round(center_y + radius * y)) for x, y in _UNIT_POLYGONS[shape]]
    draw.polygon(points, fill=fill, outline=edge, width=unit)


def _draw_glyph(draw: ImageDraw.ImageDraw, tag: str, dot: int, unit: int) -> None:
    x0, y0 = 72 * unit - 5 * dot // 2, 72 * unit - 7 * dot // 2
    for row, bits in enumerate(_GLYPHS[tag]):
        for column in range(5):
            if bits >> (4 - column) & 1:
                left, top = x0 + column * dot, y0 + row * dot
                draw.rectangle((left, top, left + dot - 1, top + dot - 1), fill=_INK)


def _draw_smudge(draw: ImageDraw.ImageDraw, unit: int) -> None:
    """Draw a soft gray spot, darker in the middle; the same for every tag."""
    for step in range(8):
        share = step / 7
        width, height = (15 - 9 * share) * unit, (11 - 7 * share) * unit
        fill = tuple(round(255 + (part - 255) * (0.15 + 0.85 * share)) for part in _SMUDGE)
        draw.ellipse((72 * unit - width, 72 * unit - height, 72 * unit + width, 72 * unit + height), fill=fill)
