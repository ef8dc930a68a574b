"""Convert a recorded answer of workbench.traces to a TokenView."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from workbench.render.text import plain
from workbench.render.view import VIEW_ORDER, RegimeNote, TokenCell, TokenView, ViewImage
from workbench.traces.reader import TracedRollout
from workbench.traces.schema import TracedRegime
from workbench.types import Box


def token_view(traced: TracedRollout, *, run: str = "") -> TokenView:
    """Convert a recorded answer; `run` is the displayed name of its run."""
    row = traced.row
    meta = {"run": run, "step": row["step"], "rollout": row["rollout_idx"], "example": row["example_id"]}
    if row.get("process_rank"):
        meta["process"] = row["process_rank"]
    sampler_step = row.get("sampler_step")
    if sampler_step is not None and sampler_step != row["step"] - 1:
        meta["sampled"] = f"with the weights after step {sampler_step}"
    if row.get("finished") is False:
        meta["length"] = "without an end token"
    elif row.get("finish_reason") == "stop_string":
        meta["length"] = "ended by a stop string"
    annotations = dict(row.get("annotations") or ())
    if annotations:
        meta["annotations"] = ", ".join(
            f"{name.replace('_', ' ')} {plain(value)}" for name, value in annotations.items()
        )
    reward = row.get("reward")
    return TokenView(
        title=row.get("domain") or row["example_id"],
        question=row["question"] or "",
        answer=row["completion"] or "",
        tokens=tuple(_cell(position, traced) for position in traced.tokens),
        expected=row.get("answer"),
        right=None if reward is None else reward == 1.0,
        regimes={name: regime_note(regime) for name, regime in traced.regimes.items()},
        pictures=_pictures(traced),
        prompts={name: _prompt(row, name) for name in traced.views if row.get(f"prompt_{name}") is not None},
        contexts={
            name: view.context if policy in ("student", "teacher") else f"{policy}, {view.context}"
            for name, view in traced.views.items()
            for policy in [row.get(f"policy_{name}") or view.policy]
        },
        thresholds={key: value for key, value in dict(row.get("thresholds") or ()).items() if value is not None},
        meta={key: value for key, value in meta.items() if value != ""},
    )


def regime_note(regime: TracedRegime) -> RegimeNote:
    """Convert a recorded regime to its displayed description."""
    losses = tuple((loss.target, loss.divergence, loss.weight) for loss in regime.losses)
    return RegimeNote(regime.meaning, regime.target, regime.divergence, losses)


def _prompt(row: dict, name: str) -> str:
    """A view's prompt, preceded by earlier turns if there are any."""
    turns = [f"{turn['role']}: {turn['text']}" for turn in row.get(f"history_{name}") or ()]
    return "\n".join([*turns, row[f"prompt_{name}"]])


def _cell(position: dict, traced: TracedRollout) -> TokenCell:
    def by_view(column: str) -> dict:
        values = {name: position.get(f"{column}_{name}") for name in traced.views}
        return {name: value for name, value in values.items() if value is not None}

    return TokenCell(
        text=position["token_text"],
        token_id=position["token_id"],
        regime=position["regime"],
        target=position.get("target"),
        divergence=position.get("divergence"),
        weight=position.get("weight"),
        effective=position.get("effective_weight"),
        loss=position.get("loss"),
        token_type=position.get("token_type") or "",
        visibility=position.get("visibility"),
        logprobs=by_view("logprob"),
        entropies=by_view("entropy"),
        ranks=by_view("rank"),
        top_k={
            name: [(entry["text"], entry["logprob"]) for entry in entries] for name, entries in by_view("top_k").items()
        },
        sampled_logprob=position.get("sampler_logprob"),
        denoising_step=position.get("denoising_step"),
    )


def _pictures(traced: TracedRollout) -> tuple[ViewImage, ...]:
    """Each image file once, with the views that saw it. Boxes are in pixels of the example's first image."""
    first = next(iter(traced.images()), None)
    views_by_file: dict[Path, list[str]] = {}
    order = sorted(traced.views, key=lambda name: VIEW_ORDER.index(name) if name in VIEW_ORDER else len(VIEW_ORDER))
    for name in order:
        for file in traced.images(name):
            views_by_file.setdefault(file, []).append(name)
    boxes = tuple(Box(**box) for box in traced.row.get("evidence_boxes") or ())
    pictures = []
    for file, names in views_by_file.items():
        drawn = boxes if file == first else ()
        note = "The boxes are evidence, not part of the image that the views saw." if drawn else ""
        crop = None
        if file == first and any("crop" in view.context for view in traced.views.values()):
            crop, note_on_crop = _crop_of(traced.row, boxes)
            note = f"{note} {note_on_crop}".strip()
        pictures.append(ViewImage("seen by " + ", ".join(names), file, drawn, crop, note))
    return tuple(pictures)


def _crop_of(row: Mapping, boxes: tuple[Box, ...]) -> tuple[Box | None, str]:
    """The crop's outline in the first image, and a note on it."""
    crop_box = row.get("evidence_crop_box")
    if row.get("evidence_crop") is None:
        return (replace(boxes[0], label=""), "The crop is the first box.") if boxes else (None, "")
    if crop_box is None:
        return None, "The crop came with the data; its location is not recorded."
    return Box(**{**crop_box, "label": ""}), "Dashed: the crop."
