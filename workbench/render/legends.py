"""Legends of the colors with numbers, one per quantity; CSS shows the one of the chosen quantity."""

from html import escape

from workbench.render import colors
from workbench.render.text import NONE, plain, share, signed
from workbench.render.view import LONG, RegimeNote, TokenView, finite


def legends(view: TokenView) -> str:
    """All legends of an answer, and that of the bars under its tokens."""
    if not view.tokens:
        return ""
    gaps = [*colors.values_of(view, "capability"), *colors.values_of(view, "information")]
    bound = colors.scale_bound(gaps)
    parts = [_regimes(view), _visibility(view)]
    for quantity in ("capability", "information"):
        parts.append(_ramp(view, quantity, "diverging", len(colors.DIVERGING), bound))
    mismatch = colors.values_of(view, "mismatch")
    parts.append(_ramp(view, "mismatch", "diverging", len(colors.DIVERGING), colors.scale_bound(mismatch)))
    for quantity in ("weight", "loss", "entropy", "denoising"):
        parts.append(
            _ramp(view, quantity, "growing", len(colors.GROWING), colors.scale_bound(colors.values_of(view, quantity)))
        )
    bars, (up, down) = "", colors.bar_range(gaps)
    if any(value is not None for value in gaps):
        recorded = [value for value in gaps if value is not None]
        low, high = "≤ −" if min(recorded) < -down else "−", "≥ +" if max(recorded) > up else "+"
        bars = (
            '<div class="wb-barkey"><button type="button" class="wb-chip wb-toggle" data-bars aria-pressed="'
            f'{"false" if len(view.tokens) > LONG else "true"}">gap '
            'bars</button><span><span class="wb-stroke wb-cap"></span>capability gap</span><span><span '
            f'class="wb-stroke wb-info"></span>information gap</span><span>from {low}{down:g} to {high}{up:g} '
            "nats</span></div>"
        )
    return f'<div class="wb-legends">{"".join(parts)}{bars}</div>'


def regime_shares(view: TokenView) -> dict[str, tuple[int, float, float | None]]:
    """Per regime: number of tokens, share of tokens, share of loss (None if losses are unknown or negative)."""
    losses = dict.fromkeys(view.all_regimes, 0.0)
    counts = dict.fromkeys(losses, 0)
    for token in view.tokens:
        counts[token.regime] += 1
        losses[token.regime] += finite(token.loss) or 0.0
    total, is_positive = sum(losses.values()), all(loss >= 0 for loss in losses.values())
    num = max(1, len(view.tokens))
    return {
        name: (counts[name], counts[name] / num, losses[name] / total if is_positive and total > 0 else None)
        for name in losses
    }


def _regimes(view: TokenView) -> str:
    slots, shares = colors.regime_slots(view.all_regimes), regime_shares(view)
    rows = "".join(_regime_row(name, note, slots[name], *shares[name]) for name, note in view.all_regimes.items())
    return (
        '<table class="wb-legend" data-for="regime"><thead><tr><th scope="col">regime</th><th scope="col">meaning</th>'
        '<th scope="col">target · divergence</th><th scope="col" class="wb-num">tokens</th>'
        f'<th scope="col" class="wb-num">of loss</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _regime_row(name: str, note: RegimeNote, slot: str, count: int, of_tokens: float, of_loss: float | None) -> str:
    how = " · ".join(part for part in (note.target, note.divergence) if part) or "none"
    if note.losses:  # ×0.6: the method's weight of this loss
        how = " + ".join(
            f"{target} · {by}{f' ×{weight:g}' if weight != 1 else ''}" for target, by, weight in note.losses
        )
    loss = NONE if of_loss is None else share(of_loss)
    bar = "" if not of_loss else f'<span class="wb-share" style="--share:{100 * of_loss:.1f}%"></span>'
    return (
        f'<tr{"" if count else " class=wb-absent"}><th scope="row"><span class="wb-swatch '
        f'wb-s-{slot}"></span>{escape(name)}</th><td>{escape(note.meaning) or NONE}</td><td '
        f'class=wb-how>{escape(how)}</td><td class="wb-num">{count} <span '
        f'class="wb-faint">({share(of_tokens)})</span></td><td class="wb-num">{loss}{bar}</td></tr>'
    )


def _visibility(view: TokenView) -> str:
    counts = {
        name: sum(1 for token in view.tokens if (token.visibility or "unknown") == name) for name in colors.VISIBILITY
    }
    meanings = {
        "privileged": "determined by the evidence only",
        "visible": "determined by the student's prompt",
        "unknown": "not marked in the data",
    }
    items = "".join(
        f'<span class="wb-item"><span class="wb-swatch wb-visibility-{name}"></span><b>{name}</b> {meanings[name]} '
        f'<span class="wb-faint">{counts[name]}</span></span>'
        for name in colors.VISIBILITY
    )
    return f'<div class="wb-legend wb-row" data-for="visibility">{items}</div>'


def _ramp(view: TokenView, quantity: str, scale: str, steps: int, bound: float) -> str:
    label, unit, _ = colors.QUANTITIES[quantity]
    label = f"student {label}" if quantity == "entropy" else label
    recorded = [value for value in colors.values_of(view, quantity) if value is not None]
    ends = (f"≤ −{bound:g}", f"≥ +{bound:g}") if scale == "diverging" else ("0", f"≥ {bound:g}")
    swatches = "".join(f'<span class="wb-step wb-{scale}-{step}"></span>' for step in range(steps))
    number = signed if scale == "diverging" else plain
    if recorded:
        low, mean, high = min(recorded), sum(recorded) / len(recorded), max(recorded)
        facts = f"mean {number(mean)}, from {number(low)} to {number(high)} {unit} over {len(recorded)} tokens"
        if quantity == "weight":
            facts += "; the router's weight of the token times the method's weight of the loss"
        if quantity == "mismatch":
            facts += "; the student's log-prob in training minus that when sampled"
    else:
        facts = "not recorded"
    return (
        f'<div class="wb-legend wb-row" data-for="{quantity}"><b>{label}</b>'
        f'<span class="wb-ramp"><span>{ends[0]}</span>'
        f'{swatches}<span>{ends[1]} {unit}</span></span><span class="wb-faint">{facts} </span></div>'
    )
