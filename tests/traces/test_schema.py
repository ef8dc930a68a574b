import re
from pathlib import Path

import pyarrow as pa
import pytest

from workbench.errors import TraceError
from workbench.traces import schema
from workbench.traces.reader import open_traces
from workbench.traces.writer import TraceWriter

DOCUMENT = Path(__file__).parents[2] / "docs" / "traces.md"
FILE = Path("traces/tokens/step-000001-rank-0.parquet")
HEADER = schema.Header(
    "dopd",
    {"student": schema.TracedView("student", "plain")},
    {"HT": schema.TracedRegime("teacher", "JSD", "hard – тут"), "off": schema.TracedRegime(None, None, "")},
    covers=((3, 0), (3, 1)),
)


def encoded(header: schema.Header) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in header.encode().items()}


def test_schema_document_is_current():
    assert DOCUMENT.read_text(encoding="utf-8") == schema.document(), "run python -m workbench.traces.schema"


def test_schema_document_names_every_column(tmp_path, make_batch):
    TraceWriter(tmp_path, method="m", policy_text=str).write(make_batch())
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in ("rollouts", "tokens"):
        for name in open_traces(tmp_path).sql(f"SELECT * FROM {table}").column_names:
            assert f"| `{re.sub('_(student|self|teacher)$', '_{view}', name)}` |" in text


def test_schema_document_queries_return_rows(tmp_path, make_batch):
    writer = TraceWriter(tmp_path, method="m", policy_text=str)
    for step in range(3):
        writer.write(make_batch(step))
        writer.write_probe(make_batch(step))
    queries = re.findall(r"```sql\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(queries) == 3
    for query in queries:
        assert open_traces(tmp_path).sql(query).num_rows > 0


def test_schema_columns_have_meaning_and_unit():
    for column in (*schema.ROLLOUTS, *schema.TOKENS):
        assert column.meaning
        if pa.types.is_floating(column.dtype) and column.name != "reward":
            assert column.unit, column.name


def test_schema_templates_are_filled_with_view_names():
    names = schema.stored_schema("tokens", ("student", "teacher_plain")).names
    assert {"logprob_student", "logprob_teacher_plain", "top_k_teacher_plain"} <= set(names)
    assert len(names) == len(set(names))
    assert not any("{" in name for name in names)


def test_header_encoded_and_decoded_is_equal():
    assert schema.decode_header(encoded(HEADER), FILE) == HEADER


def test_header_of_other_version_raises(monkeypatch):
    monkeypatch.setattr(schema, "VERSION", 99)
    later = encoded(HEADER)
    monkeypatch.undo()
    with pytest.raises(TraceError, match=rf"step-000001-rank-0.parquet has trace version 99.*{schema.VERSION}"):
        schema.decode_header(later, FILE)


@pytest.mark.parametrize("text", ["{", "[]", "{}", f'{{"version": {schema.VERSION}}}', "3"])
def test_header_damaged_raises(text):
    with pytest.raises(TraceError, match="damaged header"):
        schema.decode_header({schema.HEADER_KEY.encode(): text.encode()}, FILE)


def test_header_of_foreign_file_raises():
    with pytest.raises(TraceError, match="not a trace"):
        schema.decode_header({b"pandas": b"{}"}, FILE)
