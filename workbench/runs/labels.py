"""Tags, note and archive mark of a run: `.jobs/NAME/labels.json`; only training writes to the run folder itself."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from workbench.errors import ConfigError, RunError, show
from workbench.files.atomic import write_text
from workbench.files.folders import reason, saving
from workbench.files.parsing import Malformed, read_object
from workbench.runs.folder import find_run_dir
from workbench.runs.jobs import job_folder, lock_job, read_job

LABELS_FILE = "labels.json"
MAX_TAGS, MAX_TAG, MAX_NOTE = 20, 40, 2000  # tags of a run, characters of a tag and of a note


@dataclass(frozen=True)
class Labels:
    """What a user wrote about a run. archived: whether the table of runs leaves it out."""

    tags: tuple[str, ...] = ()
    note: str = ""
    archived: bool = False


def read_labels(run_dir: Path) -> Labels:
    """Read the labels of a run; no labels if none were written. Raises RunError if the file is damaged."""
    file = job_folder(run_dir) / LABELS_FILE
    try:
        values = read_object(file)
        return Labels(check_tags(values["tags"]), check_note(values["note"]), _check_mark(values["archived"]))
    except FileNotFoundError:
        return Labels()
    except (OSError, Malformed, KeyError, ConfigError) as error:
        raise RunError(f"{file} cannot be read ({reason(error)}). Delete it, and write tags and note again.") from None


def label_run(
    runs_dir: str | Path,
    name: str,
    *,
    tags: Sequence[str] | None = None,
    note: str | None = None,
    archived: bool | None = None,
) -> Labels:
    """Set some labels of a run, also of a living one; None leaves a label as it is.

    Raises: RunError if the run does not exist or is outside the runs folder; ConfigError for a tag or a note that is
        not allowed. Nothing is then changed.
    """
    run_dir = find_run_dir(runs_dir, name)
    read_job(run_dir)
    values: dict[str, Any] = {
        "tags": None if tags is None else check_tags(list(tags)),
        "note": None if note is None else check_note(note),
        "archived": archived,
    }
    folder = job_folder(run_dir, make=True)
    with lock_job(folder):
        labels = replace(read_labels(run_dir), **{key: value for key, value in values.items() if value is not None})
        file = folder / LABELS_FILE
        with saving(file):
            write_text(file, json.dumps(asdict(labels), ensure_ascii=False, indent=1))
    return labels


def check_tags(tags: object) -> tuple[str, ...]:
    """Return tags without blanks at their ends and without repetitions. Raises ConfigError for a wrong one."""
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise ConfigError(f"tags must be a list of texts, got {show(tags)}.")
    names = tuple(dict.fromkeys(filter(None, (tag.strip() for tag in tags))))
    for tag in names:
        if len(tag) > MAX_TAG or "," in tag or not tag.isprintable():
            raise ConfigError(f"tag {show(tag)} must have at most {MAX_TAG} printable characters and no comma.")
    if len(names) > MAX_TAGS:
        raise ConfigError(f"a run has at most {MAX_TAGS} tags, got {len(names)}. Remove some.")
    return names


def check_note(note: object) -> str:
    """Return a note without blanks at its ends. Raises ConfigError if it is not a text or too long."""
    if not isinstance(note, str) or len(note) > MAX_NOTE:
        raise ConfigError(f"a note must be a text of at most {MAX_NOTE:,} characters, got {show(note)}.")
    return note.strip()


def _check_mark(value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f'"archived" must be true or false, got {show(value)}.')
    return value
