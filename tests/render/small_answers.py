"""Tokens of a small DOPD answer, with log-probs under three views."""

from workbench.render import RegimeNote, TokenCell, TokenView

REGIMES = {
    "LH": RegimeNote("low gap, both sure: teacher, light", "teacher", "reverse KL, top-128"),
    "LL": RegimeNote("low gap, unsure: privileged self, weak", "self", "reverse KL, top-128"),
    "HT": RegimeNote("high gap, teacher leads: teacher, strong", "teacher", "JSD"),
    "HS": RegimeNote("high gap, self leads: privileged self, light", "self", "reverse KL, top-128"),
}
THRESHOLDS = {"gap": 0.55, "probability_sum": 1.20}


def cell(text="4", regime="LH", student=-0.5, self_=-0.2, teacher=-0.1, **fields):
    note = REGIMES.get(regime, RegimeNote())
    logprobs = {"student": student, "self": self_, "teacher": teacher}
    logprobs = {name: value for name, value in logprobs.items() if value is not None}
    return TokenCell(text, 7, regime, note.target, note.divergence, logprobs=logprobs, **fields)


def view(*tokens, **fields):
    given = {"title": "a run", "question": "which digit?", "answer": "4", "regimes": REGIMES, "thresholds": THRESHOLDS}
    return TokenView(tokens=tokens, **(given | fields))
