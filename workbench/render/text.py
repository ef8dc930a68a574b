"""Format numbers, explain a token's regime in words, and make token text visible."""

import functools
import math
import re

from workbench.files.terminal import visible_sign
from workbench.render.view import SELF, STUDENT, TEACHER, RegimeNote, TokenCell
from workbench.types import PRIVILEGED

NONE = "–"
NO_TOP_K = (
    "The most likely tokens of each view are not recorded for this answer. A run records trace.top_k tokens per "
    "view for the first trace.top_k_rollouts answers of a step."
)
_CONTROL_TOKEN = re.compile(
    r"<\|[^|<>]+\|>|</?s>|\[(?:SEP|CLS|PAD|MASK|UNK|EOS|BOS)\]|"
    r"<(?:eos|bos|pad|unk|mask|image|fake_token_around_image|global-img|(?:start|end)_of_\w+|row_\d+_col_\d+)>"
)
_MOST_TEXTS = 2**14  # whose visible form is remembered: an answer repeats its tokens
_PICTURES = {" ": "·", "\n": "↵", "\r": "␍", "\t": "→"}


@functools.lru_cache(_MOST_TEXTS)
def is_control_token(text: str) -> bool:
    """Whether the text is a control token such as <|im_end|> or </s>."""
    return _CONTROL_TOKEN.fullmatch(text.strip()) is not None


@functools.lru_cache(_MOST_TEXTS)
def visible_text(text: str, *, special: bool = False) -> str:
    """A token's text with visible spaces, line breaks and invisible characters; control tokens in single guillemets."""
    if special or is_control_token(text):
        return f"‹{text.strip().strip('<>|[]') or 'empty'}›"
    return "".join(_PICTURES.get(sign) or visible_sign(sign) for sign in text) or "∅"


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign and a true minus; a dash for a missing one."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{value:.{digits}f}") == 0 else text


def plain(value: float | None, digits: int = 2) -> str:
    """A number without a plus sign; a dash for a missing one."""
    if value is None or not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}f}"
    return (text.lstrip("-") if float(text) == 0 else text).replace("-", "−")


def share(value: float) -> str:
    """A share as a percentage."""
    percent = 100 * value
    return f"{percent:.0f}%" if percent >= 10 or percent == 0 else f"{percent:.1f}%"


def explain(cell: TokenCell, thresholds: dict[str, float], regimes: dict[str, RegimeNote]) -> str:
    """Why the token is in its regime: the router's comparison with its recorded numbers."""
    note = RegimeNote(*regimes.get(cell.regime, ()))
    name = f"{cell.regime} ({note.meaning})" if note.meaning else cell.regime
    limits = _common_thresholds(thresholds)
    if cell.regime in ("LH", "LL", "HT", "HS") and "gap" in limits and cell.capability_gap is not None:
        return f"{_dopd_reason(cell, limits)}: {name}."
    if "logprob" in limits and STUDENT in cell.logprobs:
        value, limit = cell.logprobs[STUDENT], limits["logprob"]
        return f"student log-prob {plain(value)} {'≤' if value <= limit else '>'} {plain(limit)}: {name}."
    if {"ratio_low", "ratio_high"} <= limits.keys() and cell.ratio is not None:
        low, high = limits["ratio_low"], limits["ratio_high"]
        position = "inside" if low <= cell.ratio <= high else "outside"
        return f"ratio {plain(cell.ratio)} {position} {plain(low)} to {plain(high)}: {name}."
    if not limits:
        return f"{name}; no threshold was recorded."
    listed = ", ".join(f"{key} {plain(value)}" for key, value in sorted(limits.items()))
    return f"{name}; thresholds at this step: {listed}."


def _common_thresholds(thresholds: dict[str, float]) -> dict[str, float]:
    """The thresholds without the number of their micro-batch, if there is only one micro-batch."""
    numbers = {match[1] for key in thresholds if (match := re.search(r"_(\d+)$", key))}
    if len(numbers) != 1:
        return thresholds
    return {key.removesuffix(f"_{number}"): value for number in numbers for key, value in thresholds.items()}


def _dopd_reason(cell: TokenCell, limits: dict[str, float]) -> str:
    log_t, log_s = cell.logprobs[TEACHER], cell.logprobs[SELF]
    gap, mean_gap = abs(log_t - log_s), limits["gap"]
    is_low = cell.regime in ("LH", "LL")
    if (gap < mean_gap) != is_low and not math.isclose(gap, mean_gap, rel_tol=1e-3, abs_tol=1e-6):
        return (
            f"gap {plain(gap)} nats is {'low' if is_low else 'high'} after normalization (threshold {plain(mean_gap)})"
        )
    size = f"gap {plain(gap)} {'<' if is_low else '≥'} mean {plain(mean_gap)}"
    if not is_low:
        sign = "≥" if cell.regime == "HT" else "<"
        return f"{size}, and the teacher's log-prob {plain(log_t)} {sign} the privileged student's {plain(log_s)}"
    if "probability_sum" not in limits:
        return size
    prob_t, prob_s, mean_sum = math.exp(log_t), math.exp(log_s), limits["probability_sum"]
    is_likely = cell.regime == "LH"
    if (prob_t + prob_s >= mean_sum) != is_likely and not math.isclose(prob_t + prob_s, mean_sum, rel_tol=1e-3):
        return f"{size}, and the probabilities' sum is {'high' if is_likely else 'low'} after normalization"
    return f"{size}, and {prob_t:.2f} + {prob_s:.2f} {'≥' if is_likely else '<'} {plain(mean_sum)}"


def consequence(cell: TokenCell) -> str:
    """The effect of the supervision: its target, the target's probability, and whether the evidence explains it."""
    if cell.target is None or cell.weight == 0:
        return "No supervision here."
    best = (cell.top_k.get(cell.target) or [None])[0]
    parts = []
    if best is not None:
        verb = "reinforces" if best[0] == cell.text else "moves the student toward"
        parts.append(
            f"The loss {verb} “{visible_text(best[0].strip() or best[0])}”: probability {share(math.exp(best[1]))} "
            f"under {_title(cell.target)}."
        )
    if cell.visibility == PRIVILEGED and cell.target in (TEACHER, SELF):
        parts.append("Only the evidence determines this value, not the student's prompt.")
    elif cell.information_gap is not None and cell.capability_gap is not None:
        info, capability = abs(cell.information_gap), abs(cell.capability_gap)
        if info > capability and info >= 0.1:
            parts.append("The information gap is larger than the capability gap.")
    return " ".join(parts)


def _title(target: str) -> str:
    return {SELF: "the privileged student", TEACHER: "the teacher"}.get(target, target)
