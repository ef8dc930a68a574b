"""Header of a study report: provenance (command, commit, seeds, wall time) and caveats."""

from collections.abc import Iterable

from workbench.runs.commands import called
from workbench.studies.plan import Study

FEW_SEEDS = 5  # with fewer seeds, intervals are too narrow


def preamble(
    study: Study, record: dict, num_seeds: dict[str, int], unfinished: dict[str, str], faults: dict[str, str]
) -> str:
    """Write the header as a Markdown list: file, command, commit, seeds, wall time, missing runs.

    record      content of study.json
    num_seeds   number of finished runs of each variant
    unfinished  run -> reason
    faults      variant -> why it was not run
    """
    sessions = record["sessions"]
    lines = [f"- file: `{study.source}`; seeds {', '.join(map(str, study.seeds))}; baseline: {study.baseline}"]
    if sessions:
        commits = dict.fromkeys(
            f"{str(session.get('commit'))[:10]}{' with changes' if session.get('dirty') else ''}"
            for session in sessions
        )
        wall = sum(session["seconds"] for session in sessions)
        busy = sum(run["seconds"] for run in record["runs"].values())
        processes = [session.get("processes", study.parallel) for session in sessions]
        room = sum(count * session["seconds"] for count, session in zip(processes, sessions, strict=True))
        threads = dict.fromkeys(session["threads"] for session in sessions)
        lines += [
            f"- command: `{sessions[-1]['command']}`",
            f"- commit: {', '.join(commits)}",
            f"- wall time: {wall / 60:.1f} min in {len(sessions)} session(s), {_either(processes)} process(es) of "
            f"{_either(threads)} thread(s), busy {busy / room if room else 0:.0%} of it",
        ]
    command = called()
    if "--report" in command and command.replace(" --report", "") not in [session["command"] for session in sessions]:
        lines.append(f"- this table: `{command}`")
    fewest = min(num_seeds.values(), default=0)
    if fewest == 1:
        lines.append("- one seed: intervals and verdicts cover other questions, but not other seeds")
    elif 1 < fewest < FEW_SEEDS:
        lines.append(f"- {fewest} seeds: intervals over so few are too narrow; use {FEW_SEEDS} or more for a result")
    if set(num_seeds.values()) == {len(study.seeds)} and not unfinished and not faults:
        lines.append(f"- all {sum(num_seeds.values())} runs finished")
    else:
        rest = f"; not: {len(unfinished)}" if unfinished else ""
        lines.append(f"- finished: {sum(num_seeds.values())} runs{rest}")
        lines += [f"- variant {name} was not run: {fault}" for name, fault in faults.items()]
        reasons: dict[str, list[str]] = {}
        for name, why in unfinished.items():
            reasons.setdefault(why, []).append(name)
        lines += [
            f"- {'runs' if len(names) > 1 else 'run'} {', '.join(names)}: {why}" for why, names in reasons.items()
        ]
    if study.baseline not in num_seeds:
        lines.append(f"- no run of the baseline {study.baseline} finished, so nothing is compared with it")
    return "\n".join(lines)


def _either(values: Iterable[object]) -> str:
    return " and ".join(map(str, dict.fromkeys(values)))
