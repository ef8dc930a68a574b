"""Layouts of published grounded datasets: a mapping of their columns to ours.

`workbench import --layout NAME` applies a layout. Columns that it does not name are detected as usual. `--column
ours=theirs`, `--box-format` and `--box-units` take precedence. Releases of one dataset differ, so check `--preview`.
"""

from dataclasses import dataclass, field

from workbench.errors import require_one_of


@dataclass(frozen=True)
class Layout:
    """Columns of one dataset under their published names."""

    meaning: str
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)  # our column -> theirs, in order of preference
    box_format: str = "xyxy"
    box_units: str = "pixels"
    box_labels: str | None = None  # their column of names, one for each box
    # columns of choices, one each or one list; appended to the question as (A), (B), ...
    choices: tuple[str, ...] = ()

    @property
    def also_read(self) -> tuple[str, ...]:
        """Their columns that are merged into other columns of ours."""
        return (*self.choices, *(() if self.box_labels is None else (self.box_labels,)))


LAYOUTS = {
    "plain": Layout("TRL's, ms-swift's or your own columns"),
    "visual-cot": Layout(
        "a question about one image and the regions that answer it, corners in pixels (arXiv 2403.16999)",
        columns={
            "answer": ("answer",),
            "reference": ("full_answer", "reasoning"),
            "boxes": ("bboxs", "bboxes", "bbox"),
            "domain": ("dataset",),
        },
    ),
    "virl39k": Layout(
        "verifiable questions without boxes, the answer in \\boxed{} (arXiv 2504.08837)",
        columns={"id": ("qid",), "images": ("image",), "domain": ("category",)},
    ),
    "treebench": Layout(
        "multiple choice with a column for each choice, and every object that the answer rests on (arXiv 2507.07999)",
        columns={"id": ("index",), "boxes": ("target_instances", "bboxes", "bbox"), "domain": ("category",)},
        choices=("A", "B", "C", "D", "E", "F"),
    ),
    "vstar": Layout(
        "a small object to be found in a large image, corner and size in pixels, its name beside (arXiv 2312.14135)",
        columns={
            "id": ("question_id",),
            "question": ("text", "question"),
            "answer": ("label", "answer"),
            "boxes": ("bbox",),
            "domain": ("category", "test_type"),
        },
        box_format="xywh",
        box_labels="target_object",
        choices=("options",),
    ),
}


def load_layout(name: str) -> Layout:
    """Look up a layout. Raises ConfigError with the known names."""
    require_one_of("layout", name, LAYOUTS)
    return LAYOUTS[name]
