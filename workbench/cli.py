"""The command line. Every command prints what it did and where it is; a mistake is one sentence and exit status 2."""

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from workbench.check import check_config, is_good
from workbench.config import describe_config, load_config
from workbench.errors import ConfigError, WorkbenchError
from workbench.importing import import_dataset
from workbench.methods import describe_options, list_methods, method_module
from workbench.pretrain import load_pretrain_config, pretrain
from workbench.render import QUANTITIES, render_terminal, token_view
from workbench.runs import RunFolder
from workbench.scorer import evaluate_run
from workbench.summary import accuracy_table, format_table, summarise_run
from workbench.traces.reader import open_traces
from workbench.train import train

log = logging.getLogger("workbench")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers[:] = [_Console()]
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    disable_progress_bar()  # of loading weights; training has its own
    try:
        return options.run(options) or 0
    except WorkbenchError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        return 0


def _train(options: argparse.Namespace) -> None:
    result = train(load_config(options.config, options.overrides))
    _print_end(result.run_dir)


def _resume(options: argparse.Namespace) -> None:
    folder = RunFolder.open(options.run_dir)
    overrides = [f"output_dir={folder.path.parent}", f"name={folder.path.name}", *options.overrides]
    for text in options.overrides:
        if not text.startswith(("training.steps=", "training.save_every=", "training.keep=", "training.trackers=")):
            raise ConfigError(
                f'"{text}" would make another run of it. Only training.steps, save_every, keep and trackers can change '
                "on resume; start a new run for anything else."
            )
    result = train(load_config(folder.path / "config.yaml", overrides), resume=True)
    _print_end(result.run_dir)


def _print_end(run_dir: Path) -> None:
    print(f"\n{summarise_run(run_dir)}\n")
    print(f"Look at one answer, token by token:  workbench show {run_dir} --step 1 --rollout 0")


def _eval(options: argparse.Namespace) -> None:
    answered = evaluate_run(options.run_dir, data=options.data, contexts=options.contexts, count=options.count)
    print(accuracy_table(answered))


def _check(options: argparse.Namespace) -> int:
    checks = check_config(load_config(options.config, options.overrides))
    print(format_table(("check", "", "found"), [(check.name, check.status, check.found) for check in checks]))
    return 0 if is_good(checks) else 1


def _pretrain(options: argparse.Namespace) -> None:
    print(pretrain(load_pretrain_config(options.config, options.overrides)))


def _methods(options: argparse.Namespace) -> None:
    if options.name is None:
        for name in list_methods():
            print(f"{name:12} {method_module(name).__doc__.splitlines()[0]}")
        print("\n`workbench methods NAME` shows one with its options.")
        return
    print(method_module(options.name).__doc__.strip(), end="\n\n")
    for key, (value_type, default, option) in describe_options(options.name).items():
        allowed = f" one of {', '.join(option.choices)};" if option.choices else ""
        name = getattr(value_type, "__name__", str(value_type))
        print(f"  method.{key}={default}  ({name}){allowed} {option.help}")


def _options(options: argparse.Namespace) -> None:
    for key, (_, default, option) in describe_config(options.method).items():
        unit = f" [{option.unit}]" if option.unit else ""
        print(f"  {key}={default}{unit}  {option.help}")


def _import(options: argparse.Namespace) -> None:
    columns = dict(_pair(text) for text in options.column)
    report = import_dataset(
        options.source,
        options.destination,
        box_format=options.box_format,
        box_units=options.box_units,
        privileged_as=options.privileged_as,
        split=options.split,
        columns=columns or None,
        limit=options.limit,
    )
    print(report)


def _pair(text: str) -> tuple[str, str]:
    ours, equals, theirs = text.partition("=")
    if not equals:
        raise ConfigError(f'--column "{text}" must look like ours=theirs, for example answer=solution.')
    return ours, theirs


def _show(options: argparse.Namespace) -> None:
    traced = open_traces(options.run_dir).rollout(options.step, options.rollout, probe=options.probe)
    colour = sys.stdout.isatty() if options.colour is None else options.colour
    width = os.get_terminal_size().columns if sys.stdout.isatty() else 120
    print(render_terminal(token_view(traced), colour_by=options.by, width=width, colour=colour))


def _summary(options: argparse.Namespace) -> None:
    print(summarise_run(options.run_dir))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench", description="On-policy distillation of vision-language models with privileged inputs."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(name: str, run: Callable, help: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=help, description=help)
        one.set_defaults(run=run)
        return one

    def overrides(one: argparse.ArgumentParser) -> None:
        one.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides: training.steps=20")

    one = command("train", _train, "train as a configuration file says")
    one.add_argument("config", help="a YAML file, see configs/")
    overrides(one)
    one = command("resume", _resume, "go on with a run from its newest checkpoint")
    one.add_argument("run_dir", help="the run's folder")
    overrides(one)
    one = command("eval", _eval, "evaluate a run's newest checkpoint")
    one.add_argument("run_dir", help="the run's folder")
    one.add_argument("--data", help="other examples than the run's: scenes:hard?count=200, a file, ...")
    one.add_argument("--contexts", nargs="+", help="contexts to show the student")
    one.add_argument("--count", type=int, help="examples used")
    one = command("check", _check, "prove that all views of a configuration speak of the same tokens")
    one.add_argument("config", help="a YAML file, see configs/")
    overrides(one)
    one = command("show", _show, "print one recorded answer, token by token")
    one.add_argument("run_dir", help="the run's folder")
    one.add_argument("--step", type=int, required=True)
    one.add_argument("--rollout", type=int, default=0)
    one.add_argument("--probe", action="store_true", help="a probe instead of a training answer")
    one.add_argument("--by", default="regime", choices=list(QUANTITIES), help="what the colours mean")
    one.add_argument("--colour", action=argparse.BooleanOptionalAction, help="default: if the output is a terminal")
    one = command("summary", _summary, "accuracy per context and shares of regimes of a run")
    one.add_argument("run_dir", help="the run's folder")
    one = command("methods", _methods, "list the methods, or show one with its options")
    one.add_argument("name", nargs="?")
    one = command("options", _options, "list every key of a configuration with its default and meaning")
    one.add_argument("--method", choices=list_methods(), help="with the options of this method")
    one = command("import", _import, "turn a data set of TRL, ms-swift or your own into examples")
    one.add_argument("source", help=".jsonl, .parquet, a folder of datasets.save_to_disk, or hf:NAME")
    one.add_argument("destination", help="folder to be made")
    one.add_argument("--box-format", default="xyxy", choices=("xyxy", "xywh", "cxcywh"))
    one.add_argument("--box-units", default="pixels", choices=("pixels", "normalised", "percent", "thousand"))
    one.add_argument("--privileged-as", default="caption", choices=("caption", "hint"))
    one.add_argument("--split")
    one.add_argument("--column", action="append", default=[], metavar="ours=theirs", help="a column by another name")
    one.add_argument("--limit", type=int)
    one = command("pretrain", _pretrain, "make a tiny model that knows the built-in world")
    one.add_argument("config", help="a YAML file, see configs/pretrain-student.yaml")
    overrides(one)
    return parser


class _Console(logging.Handler):
    """Messages above the progress bar, not through it."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        tqdm.write(f"{prefix}{record.getMessage()}", file=sys.stderr)
