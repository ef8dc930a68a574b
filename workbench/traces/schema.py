"""Schema of a trace: the single definition of every column.

1. Tables: rollouts, tokens, the same two for probes (fixed answers, re-scored regularly), and aggregates (sums over
   positions of one step, domain, token type, visibility and regime: a query over a run need not read every position).
2. A name with {view} stands for one column per view of the method: logprob_{view} -> logprob_student, logprob_teacher.
3. A column with `sql` is not stored. The reader computes it, so a gap is always the difference of two recorded numbers.
4. Every file has a Header: version of the schema, method, views and regimes.

`python -m workbench.traces.schema` writes docs/traces.md from this file.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa

from workbench.errors import TraceError

VERSION = 7  # `workbench upgrade RUN` converts versions 5 and 6
READABLE = (VERSION,)
PREVIEW_LENGTH = 160  # characters
HEADER_KEY = "workbench.traces"
GAPS = {"capability_gap": ("teacher", "self"), "information_gap": ("self", "student")}  # between log-probs of two views
PROBE = "probe_"  # prefix of the tables that hold probes
_TYPE_NAMES = {"halffloat": "float16", "float": "float32", "double": "float64"}
_DOCUMENT = Path(__file__).parents[2] / "docs" / "traces.md"

_TEXT, _WHOLE, _REAL, _ROUGH, _SUM = pa.string(), pa.int32(), pa.float32(), pa.float16(), pa.float64()
_BOX = pa.struct([("x0", _REAL), ("y0", _REAL), ("x1", _REAL), ("y1", _REAL), ("label", _TEXT)])
_TURN = pa.struct([("role", _TEXT), ("text", _TEXT)])
_TOP_K = pa.struct([("token_id", _WHOLE), ("text", _TEXT), ("logprob", _REAL)])


@dataclass(frozen=True)
class Column:
    """A column. sql: expression that derives it from the columns `needs`; NULL if one of them is missing."""

    name: str
    dtype: pa.DataType
    unit: str
    meaning: str
    sql: str | None = None
    needs: tuple[str, ...] = ()


_KEY = (
    Column(
        "step", _WHOLE, "steps", "optimizer step that the batch was used for; of a probe, the step it was scored at"
    ),
    Column("process_rank", _WHOLE, "", "training process that wrote the row; 0 on a single device"),
    Column("rollout_idx", _WHOLE, "", "place of the rollout in the process's batch"),
)
_LEARNER = Column("learner", _TEXT, "", 'student that learns from it: "student", or a peer (models.peers)')

ROLLOUTS = (
    *_KEY,
    _LEARNER,
    Column("example_id", _TEXT, "", "id of the example"),
    Column("sample_idx", _WHOLE, "", "which of the example's rollouts"),
    Column("domain", _TEXT, "", "question family"),
    Column("origin", _TEXT, "", "file and row of the example"),
    Column("question", _TEXT, "", "the question"),
    Column("answer", _TEXT, "", "the right final answer; NULL if not known"),
    Column("reference", _TEXT, "", "a whole worked answer; NULL if there is none"),
    Column("completion", _TEXT, "", "sampled text, without special tokens"),
    Column(
        "completion_preview",
        _TEXT,
        "",
        f"the first {PREVIEW_LENGTH} characters of it: a list need not unpack whole answers",
    ),
    Column("sampled_by", _TEXT, "", 'policy that sampled it, or "dataset"'),
    Column(
        "sampler_step",
        _WHOLE,
        "steps",
        "the sampler had the student's weights after this step (0 = before training): the step before, or with "
        "sampling.ahead one earlier; NULL for sequences from the data",
    ),
    Column("finished", pa.bool_(), "", "false: truncated at sampling.max_completion_length"),
    Column("finish_reason", _TEXT, "", "what ended it: end_token, stop_string or length"),
    Column("reward", _REAL, "", "1 right, 0 wrong, NULL not known"),
    Column("num_positions", _WHOLE, "tokens", "length of the completion, its end token included"),
    Column("images", pa.list_(_TEXT), "path", "the example's images; a relative path starts at the traces folder"),
    Column("evidence_boxes", pa.list_(_BOX), "pixels", "privileged boxes, of the first image"),
    Column(
        "evidence_crop", _TEXT, "path", "first privileged crop (views list all); NULL if it is cut from the first box"
    ),
    Column("evidence_crop_box", _BOX, "pixels", "where that crop lies in the first image; NULL if not known"),
    Column("evidence_caption", _TEXT, "", "privileged description"),
    Column("evidence_hint", _TEXT, "", "privileged hint: where to look, without the answer"),
    Column("thresholds", pa.map_(_TEXT, pa.float64()), "nats or 1", "what the router compared with at this step"),
    Column(
        "annotations",
        pa.map_(_TEXT, pa.float64()),
        "",
        "values that the method records about the rollout, by name; shown above its tokens",
    ),
    Column("mean_capability_gap", _REAL, "nats", "mean over its positions; NULL if the method lacks one of the views"),
    Column("mean_information_gap", _REAL, "nats", "mean over its positions; NULL if the method lacks one of the views"),
    Column("mean_loss", _REAL, "nats", "mean over its positions"),
    Column("total_contribution", _REAL, "nats", "its part of the step's loss"),
    *(
        Column(f"{kind}_{name}", _REAL, "nats", f"{word} of its positions; {none} if none has it, NULL: not known")
        for name in GAPS
        for kind, word, none in (("min", "smallest", "inf"), ("max", "largest", "-inf"))
    ),
    Column("regime_counts", pa.map_(_TEXT, _WHOLE), "tokens", "positions in each regime that it has"),
    Column("token_types", pa.list_(_TEXT), "", "token types that its positions have"),
    Column("visibilities", pa.list_(_TEXT), "", "visibilities that its positions have"),
    Column("policy_{view}", _TEXT, "", "policy that scored it for the view; of several teachers the one of its domain"),
    Column("prompt_{view}", _TEXT, "", "text that the view was shown after its images"),
    Column("images_{view}", pa.list_(_TEXT), "path", "images that the view was shown"),
    Column("history_{view}", pa.list_(_TURN), "", "earlier turns that the view was shown"),
)

TOKENS = (
    *_KEY,
    _LEARNER,
    Column("position", _WHOLE, "tokens", "index in the completion, from 0"),
    Column("token_id", _WHOLE, "", "the sampled token"),
    Column("token_text", _TEXT, "", "its text, special tokens included"),
    Column(
        "token_type", _TEXT, "", "template, location, attribute, tag, answer or the data's own word; empty: not known"
    ),
    Column(
        "visibility", _TEXT, "", '"visible" or "privileged": does the plain prompt determine the token? NULL not known'
    ),
    Column(
        "denoising_step",
        _WHOLE,
        "steps",
        "step of a masked diffusion policy that committed the token, from 0; every view scored it in the canvas before "
        "that step. NULL: sampled from left to right",
    ),
    Column("sampler_logprob", _REAL, "nats", "log-prob when sampled; NULL for sequences from the data"),
    Column("regime", _TEXT, "", "kind of supervision that the router chose; each position has exactly one"),
    Column("weight", _REAL, "1", "what the router multiplied the regime's losses by; 0 = no supervision"),
    Column("advantage", _REAL, "1", "for losses whose target is a reward; NULL without one"),
    Column("loss_normalizer", _REAL, "1", "what the position's loss counts in the step's total"),
    Column("loss", _REAL, "nats", "weighted loss before averaging"),
    Column("logprob_{view}", _REAL, "nats", "log-prob of the sampled token under the view"),
    Column("entropy_{view}", _ROUGH, "nats", "entropy of the view's next-token distribution, to three digits"),
    Column("max_logprob_{view}", _REAL, "nats", "log-prob of the view's most likely token"),
    Column("rank_{view}", _WHOLE, "", "rank of the sampled token under the view, 0 = most likely"),
    Column("top_k_{view}", pa.list_(_TOP_K), "nats", "the view's most likely tokens; NULL if not recorded"),
    Column(
        "total_gap",
        _REAL,
        "nats",
        "capability gap plus information gap",
        "logprob_teacher - logprob_student",
        ("logprob_teacher", "logprob_student"),
    ),
    Column(
        "capability_gap",
        _REAL,
        "nats",
        "what the teacher knows better from the same evidence",
        "logprob_teacher - logprob_self",
        ("logprob_teacher", "logprob_self"),
    ),
    Column(
        "information_gap",
        _REAL,
        "nats",
        "what the evidence changes; the weights are the same if the view self is the live student",
        "logprob_self - logprob_student",
        ("logprob_self", "logprob_student"),
    ),
    Column(
        "effective_weight",
        _REAL,
        "1",
        "total weight of the position's losses, including the method's own weights: DOPD's light regimes have 1 in "
        "`weight` and less here. NULL if the trace does not record the weights",
        "weight * regimes.loss_weight",
        ("weight",),
    ),
    Column(
        "ratio",
        _REAL,
        "1",
        "importance ratio: the student's probability in training over that when sampled",
        "exp(logprob_student - sampler_logprob)",
        ("logprob_student", "sampler_logprob"),
    ),
    Column(
        "contribution", _REAL, "nats", "the position's part of the step's loss", "loss * loss_normalizer", ("loss",)
    ),
    Column("target", _TEXT, "", "what the regime pulls toward: a view, tokens or reward", "regimes.target"),
    Column("divergence", _TEXT, "", "the regime's divergence", "regimes.divergence"),
)

AGGREGATES = (
    *_KEY[:2],
    _LEARNER,
    Column("domain", _TEXT, "", "question family"),
    Column("token_type", _TEXT, "", "as in tokens"),
    Column("visibility", _TEXT, "", "as in tokens"),
    Column("regime", _TEXT, "", "as in tokens"),
    Column("num_positions", _WHOLE, "tokens", "how many positions the sums are over"),
    Column("loss", _SUM, "nats", "sum of the weighted losses before averaging"),
    Column("contribution", _SUM, "nats", "sum: the group's part of the step's loss"),
    Column("abs_loss", _SUM, "nats", "sum of the contributions' sizes; rewards make negative contributions too"),
    Column("capability_gap", _SUM, "nats", "sum; NULL if the method lacks one of the views"),
    Column("information_gap", _SUM, "nats", "sum; NULL if the method lacks one of the views"),
    Column("abs_capability_gap", _SUM, "nats", "sum of sizes; NULL if the method lacks one of the views"),
    Column("abs_information_gap", _SUM, "nats", "sum of sizes; NULL if the method lacks one of the views"),
    Column(
        "num_information_dominated",
        _WHOLE,
        "tokens",
        "positions whose information gap is larger in size than their capability gap; NULL if a gap is not known",
    ),
    Column("information_dominated_abs_loss", _SUM, "nats", "abs_loss of those positions; NULL if a gap is not known"),
    Column("entropy_{view}", _SUM, "nats", "sum of the view's entropies"),
    Column("confidence_{view}", _SUM, "tokens", "sum of the probabilities of the view's most likely tokens"),
)

TABLES = {
    "rollouts": ROLLOUTS,
    "aggregates": AGGREGATES,
    "tokens": TOKENS,
    PROBE + "rollouts": ROLLOUTS,
    PROBE + "tokens": TOKENS,
}


@dataclass(frozen=True)
class TracedView:
    """Policy and context of a view."""

    policy: str
    context: str


@dataclass(frozen=True)
class TracedLoss:
    """One loss of a regime: its target (a view, tokens or reward), divergence and weight."""

    target: str
    divergence: str
    weight: float


@dataclass(frozen=True)
class TracedRegime:
    """A regime: target, divergence, meaning and losses. losses: empty in older traces."""

    target: str | None
    divergence: str | None
    meaning: str
    losses: tuple[TracedLoss, ...] = ()

    @property
    def loss_weight(self) -> float | None:
        """Total weight of its losses; 0 without supervision, None if not recorded."""
        if self.target is None:
            return 0.0
        return sum(loss.weight for loss in self.losses) if self.losses else None


@dataclass(frozen=True)
class Header:
    """Metadata of a file. covers: the (step, process rank) pairs of a merged file, else empty."""

    method: str
    views: dict[str, TracedView]
    regimes: dict[str, TracedRegime]
    covers: tuple[tuple[int, int], ...] = ()

    def encode(self) -> dict[str, str]:
        """Encode as key and value of a Parquet footer."""
        return {HEADER_KEY: json.dumps({"version": VERSION, **vars(self)}, default=vars)}


def decode_header(metadata: dict[bytes, bytes] | None, file: Path) -> Header:
    """Decode the header in a footer. Raises TraceError if it is missing or of an unsupported version."""
    text = (metadata or {}).get(HEADER_KEY.encode())
    if text is None:
        raise TraceError(f"{file} is a Parquet file but not a trace. Move it out of the traces folder.")
    try:
        fields = json.loads(text)
        if fields["version"] in READABLE:
            return decode_fields(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise TraceError(f"{file} has a damaged header ({error}). Delete this file to read the other steps.") from error
    if fields["version"] > VERSION:
        raise TraceError(
            f"{file} has trace version {fields['version']}, and this workbench reads {VERSION}. Install the version of "
            "the workbench that wrote it (commit in run.json)."
        )
    raise TraceError(
        f"{file} has trace version {fields['version']}, of an earlier version of the workbench. Run: workbench upgrade "
        f"{file.parents[2]}"
    )


def decode_fields(fields: dict) -> Header:
    """Build a header from its decoded JSON."""
    return Header(
        method=fields["method"],
        views={name: TracedView(**view) for name, view in fields["views"].items()},
        regimes={name: _decode_regime(regime) for name, regime in fields["regimes"].items()},
        covers=tuple((int(step), int(process_rank)) for step, process_rank in fields["covers"]),
    )


def _decode_regime(fields: dict) -> TracedRegime:
    return TracedRegime(**fields | {"losses": tuple(TracedLoss(**loss) for loss in fields.get("losses", ()))})


def merge_headers(headers: list[Header]) -> Header:
    """Merge headers: the last method, all views and regimes. Raises ValueError if the list is empty."""
    if not headers:
        raise ValueError("no headers to merge")
    views = {name: view for header in headers for name, view in header.views.items()}
    regimes = {name: regime for header in headers for name, regime in header.regimes.items()}
    return Header(headers[-1].method, views, regimes)


@cache
def stored_schema(table: str, views: tuple[str, ...]) -> pa.Schema:
    """Build the Arrow schema of a table's files."""
    fields = []
    for column in TABLES[table]:
        if column.sql is None:
            fields += [pa.field(name, column.dtype) for name in column_names(column, views)]
    return pa.schema(fields)


def derived_columns(table: str, stored: set[str]) -> dict[str, str]:
    """Return name -> SQL of the columns that the reader adds to the `stored` ones."""
    derived = {}
    for column in TABLES[table]:
        if column.sql is not None:
            derived[column.name] = column.sql if stored.issuperset(column.needs) else "CAST(NULL AS FLOAT)"
    return derived


def column_names(column: Column, views: tuple[str, ...]) -> list[str]:
    """Return the column's names in a trace with these views."""
    return [column.name.format(view=view) for view in views] if "{view}" in column.name else [column.name]


EXAMPLES = {
    "Where did the loss go? Each regime's share, by what is known of the token.": """\
SELECT visibility, regime, any_value(target) AS target, count(*) AS positions,
       sum(contribution) / sum(sum(contribution)) OVER () AS loss_share
FROM tokens GROUP BY visibility, regime ORDER BY loss_share DESC""",
    "Which tokens are imitated although only the evidence explains them?": """\
SELECT token_text, count(*) AS positions, avg(information_gap) AS information_gap, sum(contribution) AS loss
FROM tokens WHERE abs(information_gap) > abs(capability_gap)
GROUP BY token_text ORDER BY loss DESC LIMIT 20""",
    "How does the same probe token move from step to step?": """\
SELECT example_id, position, token_text, list(regime ORDER BY step) AS regimes,
       list(information_gap ORDER BY step) AS information_gaps
FROM probe_tokens JOIN probe_rollouts USING (step, process_rank, rollout_idx)
GROUP BY ALL ORDER BY example_id, position""",
}

_INTRODUCTION = """\
<!-- Written by `python -m workbench.traces.schema`. Change workbench/traces/schema.py, not this file. -->
# Traces

Training records every token: its score under each view, its regime, and its part of the loss.

| table | one row is |
|---|---|
| `rollouts` | a sampled answer, with its prompts, evidence and outcome |
| `tokens` | a token of such an answer |
| `aggregates` | sums over a step's positions of the same learner, domain, token type, visibility and regime |
| `probe_rollouts`, `probe_tokens` | the same columns for probes: fixed answers, scored again every few steps |
| `regimes` | a regime of the method: `regime`, `target`, `divergence`, `meaning`, `loss_weight` (total of its losses) |

Rows of one answer share `step`, `process_rank` and `rollout_idx`. A name with `{view}` stands for one column per view:
`student` (the learner, plain prompt), `self` (the student with the evidence), `teacher`, or the method's own names.

```python
from workbench.traces.reader import open_traces

traces = open_traces("runs/my-run")     # works while the run is training
traces.summary()
traces.sql("SELECT regime, count(*) AS positions FROM tokens GROUP BY regime").to_pandas()
```
"""

_NOTES = """\
## Good to know

- *Derived* columns are computed when read, from what is stored. A gap is the float32 difference of two recorded
  log-probs, bit for bit, and NULL if the method lacks one of the views. All logarithms are natural.
- `capability_gap + information_gap = total_gap`, up to float32 rounding.
- Files are `traces/<table>/step-000012-rank-0.parquet`, later merged into `merged-000001.parquet`. A file is complete
  or absent; a step that is written again replaces the earlier one. Read them with `open_traces`, which applies this.
- Questions that training repaired (wrong before, right after) or broke are not recorded here, since they need two
  evaluations. `workbench summary` reports them for runs with several students, a study for every variant.
- Images from memory are stored once in `traces/images/`, named by their content; images from files keep their path.
"""


def document() -> str:
    """Write the text of docs/traces.md."""
    parts = [_INTRODUCTION]
    for table in ("rollouts", "tokens", "aggregates"):
        title = f"{table}, {PROBE}{table}" if PROBE + table in TABLES else table
        lines = [f"## {title}", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
        for column in TABLES[table]:
            meaning = column.meaning if column.sql is None else f"{column.meaning}. *Derived:* `{column.sql}`"
            lines.append(f"| `{column.name}` | {_type_name(column.dtype)} | {column.unit} | {meaning} |")
        parts.append("\n".join(lines) + "\n")
    parts.append("## Three questions\n")
    parts += [f"**{title}**\n\n```sql\n{query}\n```\n" for title, query in EXAMPLES.items()]
    parts.append(_NOTES)
    return "\n".join(parts)


def _type_name(dtype: pa.DataType) -> str:
    if pa.types.is_list(dtype):
        return f"list of {_type_name(dtype.value_type)}"
    if pa.types.is_struct(dtype):
        return "(" + ", ".join(field.name for field in dtype) + ")"
    if pa.types.is_map(dtype):
        return f"map of {_type_name(dtype.key_type)} to {_type_name(dtype.item_type)}"
    return _TYPE_NAMES.get(str(dtype), str(dtype))


if __name__ == "__main__":
    _DOCUMENT.write_text(document(), encoding="utf-8")
