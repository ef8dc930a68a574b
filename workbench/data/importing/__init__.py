"""Import data with columns of TRL or ms-swift into a folder with `data.jsonl` in our columns, and `images/`.

1. The first column of COLUMN_NAMES that a row has is read as ours; `columns` overrides this mapping.
2. A row that cannot be converted is skipped, counted by reason and named; it never stops the import.
3. Each row passes the loader's own checks before it is written.
4. All changes are counted as notes: removed `<image>` marks, skipped boxes, boxes moved by rounding.
5. The folder gets its name when it is complete. A killed import leaves only a hidden `.NAME.*.partial` folder, which
   the next one deletes.
"""

import json
import os
from pathlib import Path

from workbench.data.conversations import Refused
from workbench.data.examples import example_from_values
from workbench.data.importing.corners import BOX_FORMATS, BOX_UNITS
from workbench.data.importing.pictures import IMAGES_FOLDER
from workbench.data.importing.report import ImportReport
from workbench.data.importing.rows import COLUMN_NAMES, NO_QUESTION, Importer, convert_row
from workbench.data.layouts import LAYOUTS, Layout, load_layout
from workbench.data.sources import no_rows, open_table
from workbench.errors import ConfigError, DataError, require_one_of, show, unknown
from workbench.files.folders import new_folder

PRIVILEGED_AS = ("caption", "hint")
_OWN_STRUCTURES = ("history", "turns", "marks", "crop_box")  # not read from a column that is mapped to another
DATA_FILE = "data.jsonl"


def import_dataset(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str = "plain",
    box_format: str | None = None,
    box_units: str | None = None,
    privileged_as: str = "caption",
    split: str | None = None,
    columns: dict[str, str] | None = None,
    max_examples: int | None = None,
) -> ImportReport:
    """Convert `source` (a file, saved folder or hf:NAME?split=S) into the new folder `destination`.

    layout         layout of the columns, one of LAYOUTS
    box_format     xyxy corners, xywh corner and size, cxcywh center and size; None = the layout's
    box_units      pixels, normalized (0 to 1), percent (0 to 100), thousand (0 to 1000); None = the layout's
    privileged_as  column for the text of `privileged_context`: caption or hint
    columns        our column -> theirs, where COLUMN_NAMES does not apply
    max_examples   convert only the first N rows
    Raises         ConfigError for an unknown option; DataError if the source cannot be read, the destination exists or
                   cannot be written, or no row can be converted
    """
    chosen = load_layout(layout)
    names = _column_names(columns or {}, privileged_as, chosen)
    box_format, box_units = box_format or chosen.box_format, box_units or chosen.box_units
    _check_options(box_format, box_units, max_examples)
    destination = Path(destination)
    if os.path.lexists(destination):
        raise DataError(f"{destination} exists already. Name a new folder; an import never writes into an old one.")
    table = open_table(source, split=split)
    report = ImportReport(destination / DATA_FILE)
    try:
        with new_folder(destination) as target:
            (target / IMAGES_FOLDER).mkdir()
            importer = Importer(table, target, destination, box_format, box_units, names, chosen, report)
            _convert_all(importer, columns or {}, max_examples)
    except OSError as error:
        raise DataError(
            f"{destination} cannot be written ({error}). Check space and rights, or name another."
        ) from None
    return report


def _column_names(columns: dict[str, str], privileged_as: str, layout: Layout) -> dict[str, tuple[str, ...]]:
    require_one_of("privileged_as", privileged_as, PRIVILEGED_AS)
    names = {**COLUMN_NAMES, **layout.columns}
    names[privileged_as] += ("privileged_context",)
    for ours, theirs in columns.items():
        if ours not in names:
            raise ConfigError(unknown("column", ours, names) + " Write ours=theirs, as in answer=label.")
        names[ours] = (theirs,)
    for ours in _OWN_STRUCTURES:
        if ours not in columns and ours in columns.values():
            names[ours] = ()
    return names


def _check_options(box_format: str, box_units: str, max_examples: int | None) -> None:
    require_one_of("box format", box_format, BOX_FORMATS)
    require_one_of("box units", box_units, BOX_UNITS)
    if max_examples is not None and max_examples < 1:
        raise ConfigError(f"max_examples must be at least 1, got {max_examples}. Leave it out to convert all rows.")


def _convert_all(importer: Importer, columns: dict[str, str], max_examples: int | None) -> None:
    report, seen, theirs = importer.report, set(), {}
    with (importer.target / DATA_FILE).open("w", encoding="utf-8") as data:
        for count, row in enumerate(importer.table.rows, start=1):
            try:
                values = row.values()
                theirs.update(dict.fromkeys(values))
                converted, notes, used = convert_row(importer, values, default_id=str(row.number))
                if converted["id"] in seen:
                    raise Refused("id repeated", show(converted["id"]))
                example_from_values(converted, row.origin, folder=importer.target, default_id="")
            except Refused as refused:
                report.skip(refused.reason, f"{row.origin}: {refused.detail}" if refused.detail else row.origin)
            except DataError as error:
                report.skip("row cannot be read", str(error))
            else:
                seen.add(converted["id"])
                report.notes.update(+notes)
                report.written += 1
                for ours, name in used.items():
                    report.use(ours, name)
                data.write(json.dumps(converted, ensure_ascii=False) + "\n")
            if count == max_examples:
                break
    for ours, name in columns.items():
        if theirs and name not in theirs:
            raise ConfigError(f"{ours}={name}: {importer.table.name}: " + unknown("column", name, theirs))
    if report.written == 0 and not report.skipped:
        raise no_rows(importer.table.name)
    if report.written == 0:
        reasons, advice = str(report).partition("\n")[2], ""
        if theirs and NO_QUESTION in report.skipped:
            advice = (
                f"\nThe columns are {', '.join(theirs)}. Map other names with --column ours=theirs, or --layout, "
                f"one of {', '.join(LAYOUTS)}."
            )
        raise DataError(f"none of the rows of {importer.table.name} could be converted.\n{reasons}{advice}")
    report.unused = tuple(name for name in theirs if name not in {*report.used, *importer.layout.also_read})
    if "images" not in report.columns and not set(report.unused) <= COLUMN_NAMES.keys():
        report.notes["row without an image (--column images=NAME names another column of images)"] = report.written
