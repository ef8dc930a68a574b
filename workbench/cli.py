"""Command line on top of the public interface. An error is one message on stderr and exit status 2."""

import argparse
import importlib
import json
import logging
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

import workbench as wb
from workbench.app import command as app_command
from workbench.app.arguments import parse
from workbench.errors import ConfigError, WorkbenchError, cut
from workbench.files.folders import reason
from workbench.files.packages import importing
from workbench.files.terminal import clean_output, print_colored


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit status."""
    with clean_output():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    options = parse(COMMANDS, arguments)
    log = logging.getLogger("workbench")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers[:] = [_Console()]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with importing("this command needs"):
            return options.run(options) or 0
    except WorkbenchError as error:
        if error.print_anyway or os.environ.get("RANK", "0") == "0":  # else rank 0 prints it
            print(_bounded(f"{type(error).__name__}: {error}"), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output (head, less) has exited
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, missing permissions
        print(_bounded(f"{reason(error)}: {error.filename or 'while reading or writing'}"), file=sys.stderr)
        return 2
    except SafetensorError as error:  # a full disk, or a file that was truncated meanwhile
        print(f"file of weights: {reason(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _bounded(message: str) -> str:
    """Shorten a long message, which quotes a long value, in its middle."""
    return message if len(message) <= 2500 else f"{message[:1500]} [...] {message[-900:]}"


def _train(options: argparse.Namespace) -> int:
    config = wb.load_config(options.config, options.overrides)
    _quiet()
    result = wb.train(config)
    return _end(result.run_dir, result.steps, result.stopped)


def _resume(options: argparse.Namespace) -> int:
    _quiet()
    result = wb.resume(options.run_dir, options.overrides)
    return _end(result.run_dir, result.steps, result.stopped)


def _end(run_dir: Path, steps: int, stopped: bool) -> int:
    """Print the summary of a run. Returns the exit status: 130 if it was stopped before its end.

    With several processes a stopped run returns 0 as well, since their launcher reports any other status as a failure.
    """
    is_alone = "RANK" not in os.environ
    if _module("distributed").is_main():
        print(f"\n{wb.summarize_run(run_dir)}\n")
        print(f"Look at one answer, token by token:\n  workbench show {run_dir} --step 1 --rollout 0")
        if stopped:
            again = "workbench resume" if is_alone else "start as before with -m workbench.training.run --resume"
            print(f"\nstopped after step {steps}, with a checkpoint. To resume: {again} {run_dir}")
    return 130 if stopped and is_alone else 0


def _eval(options: argparse.Namespace) -> None:
    _quiet()
    contexts = [part for text in options.contexts or () for part in text.split(",") if part]
    skipped = _module("distill.usable").Tally()
    records = _module("training.scorer").evaluate(
        options.path,
        data=options.data,
        contexts=contexts,
        max_examples=options.max_examples,
        grader=options.grader,
        tolerance=options.tolerance,
        skipped=skipped,
    )
    print(_module("analysis.summary").evaluation_table(records))
    if skipped.counts:
        count = skipped.counts.total()
        print(f"\nskipped {count:,} question{'s' * (count != 1)} without a usable prompt ({skipped})")


def _study(options: argparse.Namespace) -> int:
    if options.against is not None:
        folder = Path(options.config)
        if options.report or (folder.is_dir() and options.overrides):
            raise wb.WorkbenchError(
                "--against only compares stored results. Remove --report, and remove key=value after a folder."
            )
        if not folder.is_dir():
            folder = _module("studies.plan").load_study(options.config, options.overrides, check=False).folder
        print(_module("studies.compare").compare_with_baseline(folder, options.against))
        return 0
    report = _module("studies.report")
    study = _module("studies.plan").load_study(options.config, options.overrides, check=not options.report)
    for name, fault in study.faults.items():
        print(f"variant {name} cannot be run: {fault}", file=sys.stderr)
    if not options.report and not _module("studies.run").run_study(study):
        command = shlex.join(["workbench", "study", options.config, *options.overrides])
        print(f"stopped. To resume: {command}\nReport of the finished runs: {command} --report")
        return 130
    table = report.write_report(study)
    print(
        f"\n{table.read_text()}\n{table}, with figure.html and Parquet files. Runs: workbench app --runs {study.folder}"
    )
    return 1 if study.faults or report.unfinished(study) else 0


def _check(options: argparse.Namespace) -> int:
    _quiet()
    checks = wb.check_config(wb.load_config(options.config, options.overrides))
    rows = [(check.name, check.status, check.finding) for check in checks]
    print(_module("analysis.summary").format_table(("check", "", "result"), rows))
    print(f"\n{_module('training.check').verdict(checks)}")
    return 0 if _module("training.check").is_good(checks) else 1


def _score(options: argparse.Namespace) -> int:
    _quiet()
    score = _module("training.scored.score")
    config = score.scoring_config(
        options.to,
        student=options.student,
        teacher=options.teacher,
        method=options.method,
        privilege=options.privilege,
        data=options.data or options.rollouts,
        overrides=options.overrides,
    )
    result = score.score_rollouts(
        options.rollouts,
        config,
        data=options.data,
        layout=options.layout,
        columns=dict(_pair(text) for text in options.column),
        ended=options.ended,
        max_skipped=options.max_skipped,
    )
    print(f"\n{wb.summarize_run(result.run_dir)}\n")
    print(
        f"Look at one answer, token by token:\n  workbench show {result.run_dir} --step {result.first_step} --rollout 0"
    )
    return 130 if result.stopped else 0


def _plan(options: argparse.Namespace) -> int:
    _quiet()
    names = ("memory", "devices", "nodes", "sharded", "share", "picture", "text_tokens", "served_teacher")
    planned = _module("training.planning.command").plan_from_options(
        options.config, options.overrides, **{name: getattr(options, name) for name in names}
    )
    if options.json:
        list(planned.mend())
        print(json.dumps(planned.to_dict(), indent=1))
        return 0 if planned.fits else 1
    table = _module("analysis.summary").format_table(planned.header, planned.rows)
    print(table, *planned.facts, "", planned.verdict, sep="\n", flush=True)
    for line in planned.mend():
        print(line, flush=True)
    if not planned.fits:
        print(planned.remedy)
    return 0 if planned.fits else 1


def _prompts(options: argparse.Namespace) -> None:
    _quiet()
    render_prompts = _module("training.prompts").render_prompts
    for example, prompts in render_prompts(wb.load_config(options.config, options.overrides), options.rows):
        print(f"== {example.origin or example.id}")
        print("\n\n".join(map(str, prompts)) + "\n")


def _pretrain(options: argparse.Namespace) -> None:
    _quiet()
    print(wb.pretrain(_module("training.pretraining.train").load_pretrain_config(options.config, options.overrides)))


def _init(options: argparse.Namespace) -> None:
    folder = _module("files.project").create_project(options.folder)
    print(f"{folder}: recipe.yaml, data.jsonl and its images. Next steps:")
    print(f"  cd {shlex.quote(str(folder))}\n  workbench train recipe.yaml\n  workbench app")


def _methods(options: argparse.Namespace) -> None:
    methods = _module("methods")
    if options.name is None:
        for name in wb.list_methods():
            print(f"  {name:12} {methods.method_module(name).__doc__.splitlines()[0]}")
        print("\n`workbench methods NAME` shows a method with its options.")
        return
    print(methods.method_module(options.name).__doc__.strip(), end="\n\n")
    for key, (_, default, option) in methods.describe_options(options.name).items():
        print(_described(f"method.{key}", default, option))


def _families(options: argparse.Namespace) -> int:
    table = _module("training.families.table")

    def report(outcome: Any) -> None:
        print(f"{outcome.model_type:24} {outcome.status:20} {outcome.sentence}"[:200].rstrip(), flush=True)

    outcomes = table.try_families(options.type or table.all_types(), seconds=options.seconds, report=report)
    if options.write is not None:
        Path(options.write).write_text(table.format_page(outcomes), encoding="utf-8")
        print(options.write)
    return 1 if any(outcome.status == table.FAILED for outcome in outcomes) else 0


def _options(options: argparse.Namespace) -> None:
    for key, (_, default, option) in _module("config.schema").describe_config(options.method).items():
        print(_described(key, default, option))


def _described(key: str, default: object, option: Any) -> str:
    value = "null" if default is None else str(default).lower() if isinstance(default, bool) else default
    unit = f" [{option.unit}]" if option.unit else ""
    allowed = f" One of: {', '.join(option.choices)}." if option.choices else ""
    return f"  {key}={value}{unit}\n      {option.help}.{allowed}"


def _app(options: argparse.Namespace) -> None:
    served = app_command.open_app(options)
    address = f"http://{options.host}:{options.port}"
    print(f"{address}  (runs in {options.runs}; Ctrl-C closes the app, runs continue)", flush=True)
    served.block_thread()


def _teacher(options: argparse.Namespace) -> None:
    _quiet()
    _module("policies.serving.command").serve_model(options, samples=False)


def _sampler(options: argparse.Namespace) -> None:
    _quiet()
    _module("policies.serving.command").serve_model(options, samples=True)


def _import(options: argparse.Namespace) -> None:
    if options.destination is None and not options.preview:
        raise ConfigError("the destination is missing. Give a new folder, or --preview to show the converted rows.")
    if options.model is not None and not options.preview:
        raise ConfigError("--model counts image tokens in a preview. Add --preview, or leave --model out.")
    chosen = {
        "layout": options.layout,
        "box_format": options.box_format,
        "box_units": options.box_units,
        "privileged_as": options.privileged_as,
        "split": options.split,
        "columns": dict(_pair(text) for text in options.column) or None,
    }
    if options.destination is not None:
        report = wb.import_dataset(options.source, options.destination, max_examples=options.max_examples, **chosen)
        print(report)
    if options.preview:
        print(wb.preview_dataset(options.source, model=options.model, **chosen))


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise ConfigError(f'--column "{text}" must look like ours=theirs, for example answer=solution.')
    return ours, theirs


def _fetch(options: argparse.Namespace) -> None:
    _quiet()
    folder = _module("policies.fetching").fetch_model(options.model, options.folder)
    print(f"{folder}: a model folder. Use it with models.student={shlex.quote(str(folder))}")


def _export(options: argparse.Namespace) -> None:
    if options.traces:
        print(wb.export_traces(options.run_dir, options.to))
    else:
        print(wb.export_student(options.run_dir, options.to, step=options.step, learner=options.learner))


def _eval_command(options: argparse.Namespace) -> None:
    print(_module("evals.benchmark_command").benchmark_command(options.folder, options.tool, options.tasks))


def _import_eval(options: argparse.Namespace) -> None:
    results, notes = _module("evals.benchmark_import").import_eval(
        options.results, options.run_dir, any_model=options.any_model
    )
    benchmarks, summary = _module("evals.benchmarks"), _module("analysis.summary")
    print(summary.format_table(benchmarks.BENCHMARK_COLUMNS, benchmarks.benchmark_rows(results)))
    for note in notes:
        print(note)
    print(f"{len(results)} results: {Path(options.run_dir) / benchmarks.FILE}")


def _show(options: argparse.Namespace) -> None:
    traced = wb.open_traces(options.run_dir).rollout(options.step, options.rollout, probe=options.probe)
    color = sys.stdout.isatty() if options.color is None else options.color
    width = shutil.get_terminal_size((120, 40)).columns
    view = wb.token_view(traced, run=Path(options.run_dir).name)
    print_colored(wb.render_terminal(view, color_by=options.color_by, width=width, color=color))


def _open(options: argparse.Namespace) -> None:
    answers = wb.open_answers(options.run_dir, runs_dir=options.runs, base=options.base)
    key = {name: getattr(options, name) for name in ("step", "rollout", "process", "probe", "token")}
    if options.last is not None and not (options.quote and options.token is not None):
        raise ConfigError("--last needs --quote and --token. Add them, or remove --last.")
    if options.quote:
        if options.evaluation:
            raise ConfigError(
                "an evaluation records no tokens to check a quote with. Leave out --quote or --evaluation."
            )
        print(answers.quote(**key, last=options.last))
        return
    answer = answers.evaluated(options.step, options.rollout) if options.evaluation else answers.get(**key)
    print(json.dumps(answer, indent=1, ensure_ascii=False) if options.json else answer["address"])
    _, runs_dir = _module("analysis.addresses").name_in(options.run_dir, options.runs)
    if runs_dir != Path(options.runs).resolve():
        command = f"workbench app --runs {shlex.quote(str(runs_dir))}"
        print(f"the run is not in {options.runs}: open the app with {command}", file=sys.stderr)


def _answers(options: argparse.Namespace) -> None:
    answers = wb.open_answers(options.run_dir, runs_dir=options.runs, base=options.base)
    listed = answers.select(options.where, limit=options.limit, offset=options.offset)
    total = answers.count(options.where)
    if options.json:
        for answer in listed:
            print(json.dumps(answer, ensure_ascii=False))
    else:
        grades = {None: "not graded", True: "correct", False: "incorrect"}
        rows = [
            (
                str(answer["step"]),
                str(answer["rollout"]),
                grades[answer["right"]],
                cut(answer["answer"], 60),
                answer["address"],
            )
            for answer in listed
        ]
        print(_module("analysis.summary").format_table(("step", "rollout", "grade", "answer", "address"), rows))
    first = options.offset + 1 if listed else 0
    print(f"answers {first} to {options.offset + len(listed)} of {total:,}", file=sys.stderr)


def _quote_check(options: argparse.Namespace) -> int:
    checked = _module("analysis.query").check_document(options.file, runs_dir=options.runs)
    wrong = [item for item in checked if item.fault]
    for item in wrong:
        quoted = " ".join(filter(None, (item.quote.name, cut(item.quote.text))))
        print(f"{options.file}:{item.quote.line}: {quoted}\n    {item.fault}")
    print(f"{len(checked)} quotes and links to answers: {len(checked) - len(wrong)} in the traces, {len(wrong)} not")
    return 1 if wrong else 0


def _summary(options: argparse.Namespace) -> None:
    print(wb.summarize_run(options.run_dir))


def _runs(options: argparse.Namespace) -> None:
    print(_module("analysis.run_command").run_command(options))


def _report(options: argparse.Namespace) -> None:
    print(
        _module("analysis.report").write_report(
            options.run_dir, options.out, answers=options.answers, theme=options.theme
        )
    )


def _upgrade(options: argparse.Namespace) -> None:
    upgrade = _module("runs.upgrade").upgrade_run(options.run_dir)
    if not upgrade.num_trace_files and not upgrade.files:
        print(f"{options.run_dir} is of this version.")
        return
    files = ", ".join(upgrade.files) or "no other file"
    print(f"upgraded {options.run_dir}: {upgrade.num_trace_files} trace files, {files}")


def _geometry(options: argparse.Namespace) -> None:
    files = _module("analysis.geometry.files")
    pair = files.pair_of(options.first, options.second)
    if options.save_mask is None and (options.random_mask or options.against):
        raise ConfigError("--random-mask and --against need --save-mask. Add --save-mask FILE.")
    if options.save_mask is not None:
        masks = _module("training.update_mask")
        facts = masks.write_mask(
            options.save_mask, pair.source, pair.target, dtype=options.precision, above=options.above
        )
        share = int(facts["coordinates"]) / int(facts["of"])
        print(
            f"{options.save_mask}: {int(facts['coordinates']):,} of {int(facts['of']):,} coordinates ({share:.2%}) "
            f"changed by more than {options.above:g} in {options.precision}"
        )
        if options.random_mask is not None:
            masks.write_random_mask(options.random_mask, options.save_mask, seed=options.seed)
            print(f"{options.random_mask}: as many coordinates in every tensor, drawn with seed {options.seed}")
        if options.against is not None:
            overlap = masks.overlap(options.save_mask, options.against)
            print(f"{overlap['overlap']:.1%} of them are in {options.against}; {overlap['chance']:.1%} by chance")
        return
    bar = tqdm(total=len(pair.source.shapes), unit="tensor", leave=False, disable=None)
    measured = files.measure_pair(pair, seed=options.seed, device=options.device, say=lambda name: bar.update())
    bar.close()
    print(files.format_geometry(measured))
    out = options.out or (Path(options.first) / files.FOLDER if options.second is None else None)
    if out is not None:
        files.save(measured, out, _module("analysis.geometry.figures").page(measured))
        print(f"\n{out}: figure.html, geometry.json (with the meaning of every column), tensors.parquet")


def _module(name: str) -> Any:
    """Import a module of the package on demand, so that `--help` does not wait for torch."""
    with importing("this command needs", "app"):
        return wb._imported(f"workbench.{name}")


def _quiet() -> None:
    """Disable progress bars of loading weights; training has its own."""
    importlib.import_module("transformers.utils.logging").disable_progress_bar()


COMMANDS = {
    "train": _train,
    "init": _init,
    "resume": _resume,
    "eval": _eval,
    "score": _score,
    "prompts": _prompts,
    "study": _study,
    "check": _check,
    "plan": _plan,
    "show": _show,
    "answers": _answers,
    "open": _open,
    "quote-check": _quote_check,
    "summary": _summary,
    "runs": _runs,
    "app": _app,
    "teacher": _teacher,
    "sampler": _sampler,
    "report": _report,
    "geometry": _geometry,
    "methods": _methods,
    "families": _families,
    "options": _options,
    "import": _import,
    "fetch": _fetch,
    "export": _export,
    "eval-command": _eval_command,
    "import-eval": _import_eval,
    "pretrain": _pretrain,
    "upgrade": _upgrade,
}


class _Console(logging.Handler):
    """Log handler that prints messages above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR:
            return  # `main` prints the error; this record is for the run's own log
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)
