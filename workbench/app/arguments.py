"""Commands of the command line and their options; what each one does is in cli.py."""

import argparse
from collections.abc import Callable, Mapping
from typing import NoReturn

from workbench.app import command as app_command
from workbench.data.grading import RULES
from workbench.data.layouts import LAYOUTS
from workbench.errors import cut
from workbench.files.shipped import locate

COLORS = ("regime", "capability", "information", "weight", "loss", "entropy", "truth")
_LONGEST = 400  # characters of a message about arguments
_RENAMED = {"--by": "--color-by", "--colour": "--color", "--no-colour": "--no-color"}

Add = Callable[[str, str], argparse.ArgumentParser]  # name and help of a command to the parser of its options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with the usage and the message, a long value cut; an option's old name is followed by its new one."""
        words = message.split() if message.startswith("unrecognized arguments") else []
        hints = [f"{word} is now called {_RENAMED[word]}." for word in words if word in _RENAMED]
        super().error(" ".join([cut(message, _LONGEST), *hints]))


def build_parser(commands: Mapping[str, Callable[[argparse.Namespace], int | None]]) -> argparse.ArgumentParser:
    """A parser whose result has, as `run`, the function of `commands` that the chosen command calls."""
    parser = _Parser(
        prog="workbench", description="On-policy distillation of vision-language models with privileged inputs."
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=help, description=help)
        command.set_defaults(run=commands[name])
        return command

    for add_group in (_add_training, _add_evaluation, _add_viewing, _add_geometry, _add_reference, _add_exchange):
        add_group(add)
    return parser


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides: training.steps=20")


def _add_training(add: Add) -> None:
    """Making runs."""
    command = add("train", "train as a configuration file says")
    command.add_argument("config", help="a YAML file, or the name of a built-in recipe such as demo")
    _add_overrides(command)
    command = add("init", "make a folder with a commented recipe and a row of data")
    command.add_argument("folder", help="folder to be made")
    command = add("resume", "go on with a run from its newest checkpoint")
    command.add_argument("run_dir", help="the run's folder")
    _add_overrides(command)


def _add_evaluation(add: Add) -> None:
    """Measuring models, and many runs at once."""
    command = add("eval", "ask a run's newest checkpoint, or any model folder")
    command.add_argument(
        "path", metavar="RUN_OR_MODEL", type=locate, help="a run's folder, or a folder written by save_pretrained"
    )
    command.add_argument("--data", help="examples: scenes:hard?count=200, a file, hf:NAME; default: the run's own")
    command.add_argument("--contexts", nargs="+", help="contexts to show, as in plain,crop,boxes")
    command.add_argument("--count", type=int, help="examples used")
    command.add_argument(
        "--rule", choices=RULES, help="how an answer is compared with the right one; default: the run's"
    )
    command.add_argument(
        "--tolerance", type=float, metavar="SHARE", help="of rule numeric: 0.05 = five per cent off is right"
    )
    command = add("study", "run a grid of methods and seeds from one file, and say what is really true of it")
    command.add_argument(
        "config", help="a study's YAML file, see configs/studies/; with --against also a folder with its answers"
    )
    command.add_argument("--report", action="store_true", help="run nothing: tables and figure of what is finished")
    command.add_argument(
        "--against", metavar="ROW", help="run and write nothing: every row against this one; of a study or its folder"
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="seeds=[0,1], parallel=1, overrides.KEY=VALUE"
    )
    command = add("check", "prove that all views of a configuration speak of the same tokens")
    command.add_argument("config", help="a YAML file, or the name of a built-in recipe such as demo")
    _add_overrides(command)


def _add_viewing(add: Add) -> None:
    """Looking at runs."""
    command = add("show", "print one recorded answer, token by token")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument("--step", type=int, required=True)
    command.add_argument("--rollout", type=int, default=0)
    command.add_argument("--probe", action="store_true", help="a probe instead of a training answer")
    command.add_argument("--color-by", default="regime", choices=COLORS, help="quantity that the token colors show")
    command.add_argument(
        "--color", action=argparse.BooleanOptionalAction, help="default: on if the output is a terminal"
    )
    command = add("summary", "accuracy per context and shares of regimes of a run")
    command.add_argument("run_dir", help="the run's folder")
    command = add("app", "open the app: launch, watch, and see who supervised every token")
    app_command.add_options(command)
    command = add("report", "write one HTML file of a run: curves, movement, answers token by token")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument("--out", help="file to write; default: report.html in the run's folder")
    command.add_argument("--answers", type=int, default=8, help="answers drawn token by token, 0 to 24")
    command.add_argument("--theme", default="light", choices=("light", "dark"))


def _add_geometry(add: Add) -> None:
    """What training did to the weights."""
    command = add("geometry", "how large, how sparse and where an update of the weights is, beside a random one")
    command.add_argument(
        "first", metavar="RUN_OR_MODEL", help="a run: its start against its newest checkpoint; or a model folder"
    )
    command.add_argument("second", nargs="?", metavar="MODEL", help="the model after the update, a checkpoint or a run")
    command.add_argument("--out", help="folder to write; default: geometry/ in the run's folder, for two models none")
    command.add_argument("--seed", type=int, default=0, help="of the random control and of --random-mask")
    command.add_argument("--device", default="cpu", help="where tensors are decomposed: cpu, cuda")
    command.add_argument(
        "--save-mask", metavar="FILE", help="measure nothing; write which coordinates changed, for training.update_mask"
    )
    command.add_argument(
        "--precision",
        default="bfloat16",
        choices=("float32", "bfloat16", "float16"),
        help="of --save-mask: both models are rounded to it",
    )
    command.add_argument(
        "--above", type=float, default=0.0, help="of --save-mask: smallest change that counts, exclusive"
    )
    command.add_argument(
        "--random-mask", metavar="FILE", help="with --save-mask: a control of as many coordinates in every tensor"
    )
    command.add_argument("--against", metavar="FILE", help="with --save-mask: another mask, how much of it is the same")


def _add_reference(add: Add) -> None:
    """Methods and keys."""
    command = add("methods", "list the methods, or show one with its options")
    command.add_argument("name", nargs="?")
    command = add("options", "list every key of a configuration with its default and meaning")
    command.add_argument("--method", help="with the options of this method")


def _add_exchange(add: Add) -> None:
    """Data and models from elsewhere, and for others."""
    command = add("import", "turn a data set of TRL, ms-swift or your own into examples")
    command.add_argument("source", help=".jsonl, .json, .parquet, a folder of datasets.save_to_disk, or hf:NAME")
    command.add_argument("destination", nargs="?", help="folder to be made; may be left out with --preview")
    command.add_argument(
        "--preview", action="store_true", help="draw the first five rows with their evidence, as an HTML file"
    )
    command.add_argument("--layout", default="plain", help=f"whose columns these are: {', '.join(LAYOUTS)}")
    command.add_argument("--box-format", choices=("xyxy", "xywh", "cxcywh"), help="default: the layout's")
    command.add_argument(
        "--box-units", choices=("pixels", "normalised", "percent", "thousand"), help="default: the layout's"
    )
    command.add_argument("--privileged-as", default="caption", choices=("caption", "hint"))
    command.add_argument("--split")
    command.add_argument(
        "--column", action="append", default=[], metavar="ours=theirs", help="a column by another name"
    )
    command.add_argument("--limit", type=int)
    command = add("export", "the trained student, or the traces, for people without the workbench")
    command.add_argument("run_dir", help="folder of a run")
    command.add_argument("--to", required=True, help="folder to be made, or hf:OWNER/NAME")
    command.add_argument("--traces", action="store_true", help="the traces as a Hugging Face data set, not the student")
    command.add_argument("--step", type=int, help="of the checkpoint; default: the newest")
    command.add_argument("--learner", default="student", help="which of several that learned")
    command = add("pretrain", "make a tiny model that knows the built-in world")
    command.add_argument("config", help="a YAML file, see configs/pretrain-student.yaml")
    _add_overrides(command)
