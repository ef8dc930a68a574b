"""Draws the sample pictures and writes samples.jsonl beside them: `python data/samples/make.py`.

Each picture is drawn large and stored small, so that its small print is hard to read; crops are cut from the large one.
"""

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parent
SCALE = 3  # the drawing is this much larger than the stored picture
INK, PAPER, GREY, RED, BLUE, GREEN = "#22262b", "#fbfaf6", "#9aa3ab", "#c0392b", "#2c6fae", "#3d8b5f"


class Canvas:
    """A picture drawn SCALE times as large as it is stored; all lengths are in stored pixels."""

    def __init__(self, width: int, height: int, background: str) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), background)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, x0, y0, x1, y1, fill=None, outline=None, width=1, radius=0) -> None:
        corners = (x0 * SCALE, y0 * SCALE, x1 * SCALE - 1, y1 * SCALE - 1)
        self.draw.rounded_rectangle(corners, radius * SCALE, fill, outline, width * SCALE)

    def disc(self, x, y, radius, fill=None, outline=None, width=1) -> None:
        corners = ((x - radius) * SCALE, (y - radius) * SCALE, (x + radius) * SCALE, (y + radius) * SCALE)
        self.draw.ellipse(corners, fill, outline, width * SCALE)

    def line(self, points, fill=INK, width=1.0) -> None:
        self.draw.line([(x * SCALE, y * SCALE) for x, y in points], fill, round(width * SCALE), joint="curve")

    def polygon(self, points, fill) -> None:
        self.draw.polygon([(x * SCALE, y * SCALE) for x, y in points], fill)

    def text(self, x, y, words, size, fill=INK, anchor="mm") -> None:
        font = ImageFont.load_default(size * SCALE)
        self.draw.text((x * SCALE, y * SCALE), words, fill, font, anchor)

    def save(self, name: str) -> None:
        size = (self.image.width // SCALE, self.image.height // SCALE)
        small = self.image.resize(size, Image.Resampling.LANCZOS)
        small.save(FOLDER / name, optimize=True)

    def save_crop(self, name: str, box: tuple[int, int, int, int]) -> None:
        cut = self.image.crop(tuple(side * SCALE for side in box))
        cut.save(FOLDER / name, optimize=True)


def bar_chart() -> Canvas:
    canvas = Canvas(400, 280, PAPER)
    canvas.text(200, 20, "Visitors of the town museum", 15)
    counts = {"Jan": 142, "Feb": 167, "Mar": 231, "Apr": 264, "May": 318, "Jun": 295}
    for level in range(0, 400, 100):
        y = 240 - level / 2
        canvas.line([(45, y), (385, y)], "#dfe3e6")
        canvas.text(38, y, str(level), 9, GREY, "rm")
    for idx, (month, count) in enumerate(counts.items()):
        x = 65 + 55 * idx
        canvas.box(x, 240 - count / 2, x + 34, 240, BLUE if month != "May" else "#1d4e7c")
        canvas.text(x + 17, 233 - count / 2, str(count), 7, INK)
        canvas.text(x + 17, 254, month, 11)
    canvas.line([(45, 240), (385, 240)], INK, 1.3)
    return canvas


def receipt() -> Canvas:
    canvas = Canvas(240, 360, "#6f7f78")
    canvas.polygon([(30, 15), (214, 22), (208, 345), (24, 338)], "#5d6b65")
    canvas.box(24, 14, 208, 338, "#fffefa")
    canvas.text(116, 38, "CORNER GROCER", 14)
    canvas.text(116, 56, "12 Mill Lane", 8, GREY)
    rows = [
        ("Bread, rye", "3.20"),
        ("Oat milk 1 l", "2.35"),
        ("Apples 0.8 kg", "2.88"),
        ("Cheese", "5.40"),
        ("Tea, mint", "1.95"),
    ]
    for idx, (item, price) in enumerate(rows):
        y = 92 + 26 * idx
        canvas.text(38, y, item, 9, INK, "lm")
        canvas.text(194, y, price, 7, INK, "rm")
    canvas.line([(38, 222), (194, 222)], GREY)
    canvas.text(38, 242, "TOTAL", 12, INK, "lm")
    canvas.text(194, 242, "15.78", 12, INK, "rm")
    for idx, width in enumerate([2, 1, 3, 1, 1, 2, 3, 1, 2, 1, 1, 3, 2, 1, 2, 3, 1, 1, 2, 1, 3, 1, 2, 2]):
        canvas.box(56 + 5 * idx, 278, 56 + 5 * idx + width, 312, INK)
    return canvas


def street() -> Canvas:
    canvas = Canvas(420, 280, "#cfe3ee")
    canvas.box(0, 220, 420, 280, "#8d9298")
    canvas.box(0, 214, 420, 224, "#b9bdc0")
    houses = [(10, 70, "#d9b08c", BLUE, "25"), (148, 45, "#c98f7a", GREEN, "27"), (286, 80, "#e2cf9f", RED, "29")]
    for x, top, wall, door, number in houses:
        canvas.box(x, top, x + 124, 216, wall)
        canvas.polygon([(x - 6, top), (x + 62, top - 34), (x + 130, top)], "#7a4a3f")
        for window_x in (x + 14, x + 80):
            canvas.box(window_x, top + 18, window_x + 30, top + 48, "#f4f7f8", INK)
            canvas.line([(window_x + 15, top + 18), (window_x + 15, top + 48)])
            canvas.line([(window_x, top + 33), (window_x + 30, top + 33)])
        canvas.box(x + 47, 150, x + 79, 216, door, INK)
        canvas.disc(x + 73, 186, 2, "#f2d27a")
        canvas.box(x + 55, 156, x + 71, 167, "white", INK, radius=1)
        canvas.text(x + 63, 161.5, number, 8)
    for x in range(0, 420, 60):
        canvas.box(x + 10, 250, x + 40, 254, "#e8e8e2")
    return canvas


def departures() -> Canvas:
    canvas = Canvas(420, 240, "#15202b")
    canvas.text(20, 24, "Departures", 18, "#f5c542", "lm")
    canvas.text(400, 24, "13:52", 15, "white", "rm")
    for x, words, anchor in (
        (20, "Time", "lm"),
        (80, "Destination", "lm"),
        (330, "Train", "mm"),
        (385, "Platform", "mm"),
    ):
        canvas.text(x, 52, words, 8, GREY, anchor)
    trains = [
        ("13:58", "Ashford", "R 14", "3"),
        ("14:05", "Brookfield", "IC 7", "11"),
        ("14:12", "Castle Hill", "R 21", "2"),
        ("14:20", "Ashford", "IC 9", "6"),
        ("14:31", "Dunmore", "R 30", "8"),
    ]
    for idx, (time, town, train, platform) in enumerate(trains):
        y = 78 + 32 * idx
        canvas.box(12, y - 14, 408, y + 14, "#1e2d3b" if idx % 2 == 0 else "#243646", radius=2)
        canvas.text(20, y, time, 13, "white", "lm")
        canvas.text(80, y, town, 13, "white", "lm")
        canvas.text(330, y, train, 8, "white")
        canvas.text(385, y, platform, 8, "#f5c542")
    return canvas


def gauges() -> Canvas:
    canvas = Canvas(420, 180, "#3b4750")
    for idx, (name, value, unit) in enumerate((("Inlet", 4.2, "bar"), ("Boiler", 6.8, "bar"), ("Outlet", 2.5, "bar"))):
        x, y = 75 + 135 * idx, 82
        canvas.disc(x, y, 58, PAPER, "#1d252b", 4)
        for mark in range(11):
            angle = math.radians(135 + 27 * mark)
            inner, outer = (44, 50) if mark % 2 else (41, 50)
            canvas.line(
                [
                    (x + inner * math.cos(angle), y + inner * math.sin(angle)),
                    (x + outer * math.cos(angle), y + outer * math.sin(angle)),
                ]
            )
            if mark % 2 == 0:
                canvas.text(x + 33 * math.cos(angle), y + 33 * math.sin(angle), str(mark), 7)
        angle = math.radians(135 + 27 * value)
        canvas.line([(x, y), (x + 38 * math.cos(angle), y + 38 * math.sin(angle))], RED, 2)
        canvas.disc(x, y, 4, INK)
        canvas.text(x, y + 26, unit, 7, GREY)
        canvas.text(x, 160, name, 13, "white")
    return canvas


def jars() -> Canvas:
    canvas = Canvas(400, 220, "#efe6d8")
    canvas.box(0, 176, 400, 190, "#8a6242")
    shelf = [
        ("Basil", "#5f8f4e", "03/27"),
        ("Paprika", "#b5432c", "11/26"),
        ("Turmeric", "#d99a20", "08/27"),
        ("Pepper", "#4a4440", "05/28"),
    ]
    for idx, (name, colour, date) in enumerate(shelf):
        x = 25 + 92 * idx
        canvas.box(x, 62, x + 70, 176, "#f7fbfb", "#a9b7ba", 1, 8)
        canvas.box(x + 4, 84, x + 66, 172, colour, radius=6)
        canvas.box(x + 6, 46, x + 64, 64, "#6d737a", radius=3)
        canvas.box(x + 9, 104, x + 61, 146, "white", radius=2)
        canvas.text(x + 35, 118, name, 11)
        canvas.text(x + 35, 136, f"best before {date}", 5)
    return canvas


def parking_sign() -> Canvas:
    canvas = Canvas(300, 300, "#bcd6e6")
    canvas.box(0, 236, 300, 300, "#7fa06a")
    canvas.box(145, 60, 155, 262, "#80868b")
    canvas.box(88, 22, 212, 196, "white", "#2c6fae", 4, 8)
    canvas.box(120, 36, 180, 96, BLUE, radius=6)
    canvas.text(150, 66, "P", 46, "white")
    canvas.text(150, 116, "Mon - Fri  8 - 18 h", 9)
    canvas.text(150, 138, "max. 90 min", 8)
    canvas.text(150, 158, "with parking disc", 7, GREY)
    canvas.text(150, 178, "Sat, Sun free", 8)
    return canvas


def tram_map() -> Canvas:
    canvas = Canvas(400, 260, PAPER)
    canvas.text(16, 20, "Tram lines", 14, INK, "lm")
    lines = {
        RED: [(30, 190, "Harbour"), (110, 190, "Mill"), (190, 130, "Market"), (270, 130, "Library"), (360, 70, "Zoo")],
        BLUE: [(50, 70, "Airfield"), (120, 70, "Lake"), (190, 130, ""), (250, 200, "Stadium"), (350, 200, "Forest")],
    }
    beside = {"Market": (24, -13), "Library": (0, 15), "Stadium": (0, 15)}  # names that a line would cross
    for colour, stops in lines.items():
        canvas.line([(x, y) for x, y, _ in stops], colour, 5)
    for stops in lines.values():
        for x, y, name in stops:
            canvas.disc(x, y, 6, "white", INK, 2)
            dx, dy = beside.get(name, (0, -14))
            canvas.text(x + dx, y + dy, name, 8)
    for x, colour, number in ((30, RED, "1"), (50, BLUE, "2")):
        y = 215 if number == "1" else 95
        canvas.box(x - 8, y - 8, x + 8, y + 8, colour, radius=3)
        canvas.text(x, y, number, 10, "white")
    return canvas


ANSWER_MARK = {"pattern": r"[Aa]nswer: (.*)$", "kind": "answer", "truth": "privileged"}
SAMPLES = [
    {
        "id": "chart",
        "draw": bar_chart,
        "domain": "chart",
        "crop": (275, 58, 329, 106),
        "question": "How many visitors did the museum have in May?",
        "answer": "318",
        "boxes": [{"x0": 280, "y0": 66, "x1": 324, "y1": 98, "label": "top of the May bar"}],
        "caption": "A bar chart of six months, January to June. The highest bar is May; the number above it is 318.",
        "hint": "the number above the fifth bar from the left",
        "reference": "The May bar is the fifth from the left. The number above it is 318. Answer: 318",
        "marks": [ANSWER_MARK],
    },
    {
        "id": "receipt",
        "draw": receipt,
        "domain": "document",
        "crop": (30, 106, 202, 130),
        "question": "What did the oat milk cost?",
        "answer": "2.35",
        "boxes": [{"x0": 34, "y0": 108, "x1": 198, "y1": 128, "label": "oat milk"}],
        "caption": "A receipt of five items: rye bread 3.20, oat milk 2.35, apples 2.88, cheese 5.40, "
        "mint tea 1.95; total 15.78.",
        "hint": "the second line of the list, at its right end",
        "reference": "Oat milk is the second item. Its price, at the right, is 2.35. Answer: 2.35",
        "marks": [ANSWER_MARK],
    },
    {
        "id": "street",
        "draw": street,
        "domain": "scene",
        "crop": (195, 150, 227, 174),
        "question": "What is the number on the green door?",
        "answer": "27",
        "boxes": [{"x0": 195, "y0": 150, "x1": 227, "y1": 216, "label": "green door"}],
        "caption": "Three houses in a row. Their doors are blue, green and red; the plates read 25, 27 and 29.",
        "hint": "the plate on the door of the middle house",
        "reference": "The green door belongs to the middle house. Its plate reads 27. Answer: 27",
        "marks": [ANSWER_MARK],
    },
    {
        "id": "departures",
        "draw": departures,
        "domain": "document",
        "question": "From which platform does the 14:05 train leave?",
        "answer": "11",
        "boxes": [{"x0": 12, "y0": 96, "x1": 408, "y1": 124, "label": "14:05 Brookfield"}],
        "caption": "A departure board with five trains. The 14:05 to Brookfield is train IC 7 from platform 11.",
        "hint": "the second row, last column",
        "reference": "The 14:05 is in the second row and goes to Brookfield. Its platform is 11. Answer: 11",
    },
    {
        "id": "gauges",
        "draw": gauges,
        "domain": "instrument",
        "question": "Which gauge shows the highest pressure?",
        "answer": "Boiler",
        "boxes": [{"x0": 150, "y0": 22, "x1": 270, "y1": 170, "label": "Boiler gauge"}],
        "caption": "Three round gauges in bar. Inlet shows about 4.2, Boiler about 6.8, Outlet about 2.5.",
        "hint": "compare how far the three red needles have turned",
        "reference": "Inlet is near 4, Boiler near 7 and Outlet between 2 and 3. Answer: Boiler",
    },
    {
        "id": "jars",
        "draw": jars,
        "domain": "scene",
        "crop": (126, 104, 178, 146),
        "question": "Until which month is the paprika best? Answer as MM/YY.",
        "answer": "11/26",
        "boxes": [{"x0": 126, "y0": 104, "x1": 178, "y1": 146, "label": "label of the paprika jar"}],
        "caption": "Four spice jars on a shelf: basil, paprika, turmeric, pepper. "
        "The paprika label says best before 11/26.",
        "hint": "the small print on the label of the second jar",
        "reference": "Paprika is the second jar. The small print says best before 11/26. Answer: 11/26",
        "marks": [ANSWER_MARK],
    },
    {
        "id": "parking",
        "draw": parking_sign,
        "domain": "sign",
        "question": "How long may one park here on a Tuesday morning? A: 30 min, B: 60 min, C: 90 min, D: no limit",
        "answer": "C",
        "boxes": [{"x0": 100, "y0": 106, "x1": 200, "y1": 166, "label": "times and limit"}],
        "caption": "A parking sign: Monday to Friday 8 to 18 h, at most 90 min with a parking disc; "
        "Saturday and Sunday free.",
        "hint": "the lines under the letter P",
        "reference": "On weekdays the sign allows at most 90 minutes. Answer: C",
    },
    {
        "id": "tram",
        "draw": tram_map,
        "domain": "map",
        "question": "At which stop do the two lines meet?",
        "answer": "Market",
        "boxes": [{"x0": 176, "y0": 106, "x1": 240, "y1": 142, "label": "crossing of the lines"}],
        "caption": "A map of two tram lines. Line 1 is red, line 2 blue; both call at Market, "
        "between Mill and Library.",
        "hint": "where red and blue cross, near the middle",
        "history": [
            {"role": "user", "text": "Please answer with the name of the stop."},
            {"role": "assistant", "text": "I will."},
        ],
        "reference": "The red and the blue line cross near the middle, at Market. Answer: Market",
    },
]


def main() -> None:
    rows = []
    for sample in SAMPLES:
        row = {key: value for key, value in sample.items() if key not in ("draw", "crop")}
        canvas = sample["draw"]()
        canvas.save(f"{row['id']}.png")
        row["images"] = [f"{row['id']}.png"]
        if "crop" in sample:
            row["crop"] = f"{row['id']}-crop.png"
            canvas.save_crop(row["crop"], sample["crop"])
        rows.append(json.dumps(row))
    (FOLDER / "samples.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
