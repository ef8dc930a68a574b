"""Scorer: the policies of a run without training, to score one answer under every view or to evaluate again.

    scorer = open_scorer("runs/demo")
    scored = scorer.score(example)                      # the student samples an answer
    scored = scorer.score(example, answer="at top left, tag K, answer K")
    scored.tokens[3]["capability_gap"]

`score` also routes each token. Batch means of a rule (DOPD) are over the tokens of this one answer. In a run with peers
only the student is scored, without feedback from peers.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch

from workbench.config.evaluation import EvaluationConfig, EvaluationSet, parse_evaluation_sets
from workbench.config.schema import RunConfig, SamplingConfig, load_config
from workbench.data.contexts import build_prompt, dummy_rollout, parse_context, require_promptable
from workbench.data.examples import load_examples
from workbench.data.grading import GRADERS, TOLERANCE, check_grading, grade
from workbench.distill.method import Method
from workbench.distill.rollouts import reply_in_turns
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.distill.usable import Tally, filter_encodable, not_evaluated
from workbench.distributed import choose_device
from workbench.errors import ConfigError, RunError
from workbench.evals.evaluate import evaluate_policies
from workbench.evals.records import EvalRecord, require_answers, require_shown
from workbench.files.gguf_paths import refuse_gguf
from workbench.policies.loading import leave_room, load_policy
from workbench.policies.proven import prove_all
from workbench.runs.checkpoints import Checkpoint, latest_checkpoint
from workbench.runs.folder import RunFolder
from workbench.traces.reader import TracedRollout, open_traces
from workbench.traces.writer import TraceWriter, to_traced_batch
from workbench.training.learner import autocast, build_learner
from workbench.training.run_data import load_evaluation, load_train, with_template
from workbench.types import STUDENT, Example, Rollout

log = logging.getLogger(__name__)


class Scorer:
    """The policies of a configuration, ready to score answers."""

    def __init__(self, config: RunConfig, checkpoint: Checkpoint | None = None, *, device: str | None = "cpu") -> None:
        self.config, self.checkpoint = config, checkpoint
        self.device = default_device(config.models.device) if device is None else device
        self.method = config.load_method()
        self.learner = build_learner(config, self.method, device=self.device, checkpoint=checkpoint)
        self._folder = tempfile.TemporaryDirectory(prefix="workbench-")  # traces of the scored answers, with images
        self._views: dict[str, int] = {}
        self._num_scored = 0

    def score(
        self,
        example: Example,
        answer: str | None = None,
        *,
        ids: Sequence[int] | None = None,
        method: Method | None = None,
        seed: int = 0,
    ) -> TracedRollout:
        """Score every token of an answer under all views, and route it by the method.

        answer  the text to score; None: the student samples one with the configured options
        ids     the tokens to score in place of a text
        method  a method with the run's policies in place of the run's own

        Raises: DataError if the example lacks the evidence of a view.
        """
        (example,) = with_template([example], self.config)
        method = self.method if method is None else method
        for view in method.views.values():
            self.learner.policies[view.policy].check_prompt(build_prompt(example, view.context, dummy_rollout(example)))
        if ids is None and answer is None:
            rollout = self._sample(example, seed)
        else:
            ids = self.learner.student.answer_ids(answer) if ids is None else tuple(ids)
            rollout = self._given(example, ids, self.learner.student.text(ids) if answer is None else answer, seed)
        policies, config = self.learner.policies, self.config
        with torch.no_grad(), autocast(config, self.device):
            scored = compute_step(
                method,
                policies,
                score_batch(method, policies, Batch((rollout,))),
                seed=seed,
                top_k=max(5, config.trace.top_k),
                top_k_rollouts=1,
            )
        # a new writer, since writers cache images by example and the caller may have changed this one; a folder for
        # each set of views, since the files of a trace have the same ones
        student = self.learner.student
        folder = Path(self._folder.name) / f"views-{self._views.setdefault(repr(method.views), len(self._views))}"
        writer = TraceWriter(folder, method=method.name, policy_text=student.token_text)
        self._num_scored += 1
        writer.write(to_traced_batch(scored, self._num_scored, student))
        return open_traces(folder).rollout(self._num_scored, 0)

    def _sample(self, example: Example, seed: int) -> Rollout:
        student, replies = self.learner.student, self._replies(example, seed)
        prompt = build_prompt(example, self.method.learner_context, Rollout(example, 0, (), "", False, replies=replies))
        with autocast(self.config, self.device):
            completion = student.sample([prompt], [[seed]], self.config.sampling.options)[0][0]
        text = student.text(completion.ids)
        reward = self._grade(example, text, student.answer_prefix)
        fields: dict[str, Any] = {"replies": replies, "denoising": completion.denoising}
        fields["answer_prefix"] = student.answer_prefix
        fields["stop_string"] = completion.stop_string
        return Rollout(example, 0, completion.ids, text, completion.finished, completion.logprobs, reward, **fields)

    def _given(self, example: Example, ids: tuple[int, ...], answer: str, seed: int) -> Rollout:
        reward = self._grade(example, answer)
        fields: dict[str, Any] = {
            "replies": self._replies(example, seed),
            "denoising": self.learner.student.denoising_schedule(ids),
        }
        return Rollout(example, 0, ids, answer, True, None, reward, "given", **fields)

    def _replies(self, example: Example, seed: int) -> tuple[str, ...]:
        """Replies to the early turns, for the context "turns"."""
        if "turns" not in parse_context(self.method.learner_context):
            return ()
        replier = self.learner.policies[self.method.replying_policy]
        with autocast(self.config, self.device):
            return reply_in_turns(replier, [example], sampling=self.config.sampling.options, seed=(seed,))[0]

    def _grade(self, example: Example, text: str, prefix: str = "") -> float | None:
        if example.answer is None:
            return None
        return grade(text, example.answer, prefix=prefix, **self.config.evaluation.grading)


def evaluate_run(
    run_dir: str | Path,
    *,
    data: str | None = None,
    contexts: Sequence[str] | None = None,
    max_examples: int | None = None,
    grader: str | None = None,
    tolerance: float | None = None,
    skipped: Tally | None = None,
) -> list[EvalRecord]:
    """Evaluate the students of a run's newest checkpoint and its teachers again.

    data, contexts, max_examples, grader and tolerance default to the run's own. The run folder is not changed.
    skipped  collects the examples that a policy cannot encode
    """
    scorer = open_scorer(run_dir, device=None)
    config = scorer.config
    sets = config.evaluation_sets if data is None else parse_evaluation_sets(data, config.evaluation)
    if not sets:
        raise ConfigError("the run has no data.eval. Name a file with --data.")
    changed = [_changed(chosen, contexts, max_examples, grader, tolerance) for chosen in sets]
    loaded = load_evaluation(changed, load_train(config)[1] if config.data.held_out and data is None else [])
    policies = [
        policy for name, policy in scorer.learner.policies.items() if name == STUDENT or name.startswith("teacher")
    ]
    for name in config.models.peers:
        policies.append(
            build_learner(config, scorer.method, name, device=scorer.device, checkpoint=scorer.checkpoint).student
        )
    records = []
    for chosen, examples in loaded:
        require_shown(examples, chosen.path, contexts or ())  # the run's own contexts may lack evidence of some
        rows, tally = with_template(examples, config), Tally() if skipped is None else skipped
        usable = filter_encodable(rows, policies, chosen.contexts, tally)
        _log_not_evaluated(usable, chosen.contexts)
        with autocast(config, scorer.device):  # the precision of the run's evaluations
            records += evaluate_policies(
                policies,
                usable,
                chosen.contexts,
                step=scorer.checkpoint.step,
                max_completion_length=config.sampling.max_completion_length,
                stop_strings=tuple(config.sampling.stop_strings),
                **chosen.grading,
                batch_size=config.evaluation.batch_size,
            )
    return records


def _changed(
    chosen: EvaluationSet,
    contexts: Sequence[str] | None,
    max_examples: int | None,
    grader: str | None,
    tolerance: float | None,
) -> EvaluationSet:
    """The set with the arguments that are given. Raises ConfigError for a tolerance that its grader does not read."""
    if grader not in (None, chosen.grader):
        chosen = replace(chosen, grader=grader, tolerance=TOLERANCE)
    changed = replace(
        chosen,
        contexts=list(contexts or ()) or chosen.contexts,
        max_examples=chosen.max_examples if max_examples is None else max_examples,
        tolerance=chosen.tolerance if tolerance is None else tolerance,
    )
    check_grading(**changed.grading)
    return changed


def evaluate_model(
    path: str | Path,
    *,
    data: str,
    contexts: Sequence[str] = ("plain",),
    max_examples: int | None = None,
    grader: str = GRADERS[0],
    tolerance: float = TOLERANCE,
    max_completion_length: int = SamplingConfig().max_completion_length,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    skipped: Tally | None = None,
) -> list[EvalRecord]:
    """Evaluate any image-text-to-text model: a folder written by save_pretrained, or a name on the hub."""
    check_grading(grader, tolerance)
    examples = load_examples(data, max_examples=max_examples)
    for context in contexts:
        require_promptable(context)
    require_answers(examples)
    require_shown(examples, data, contexts)
    policy = load_policy(path, "model", dtype=dtype, device=default_device(), trust_remote_code=trust_remote_code)
    prove_all([policy], accept_differences=True)  # a difference is only logged, since no loss uses the log-probs
    if policy.encoder.context_length is not None:
        max_completion_length = min(max_completion_length, policy.encoder.context_length // 2)
    leave_room([policy], max_completion_length)
    examples = filter_encodable(examples, [policy], contexts, Tally() if skipped is None else skipped)
    _log_not_evaluated(examples, contexts)
    options = {"max_completion_length": max_completion_length, "batch_size": EvaluationConfig().batch_size}
    return evaluate_policies([policy], examples, contexts, step=0, grader=grader, tolerance=tolerance, **options)


def _log_not_evaluated(examples: list[Example], contexts: Sequence[str]) -> None:
    for sentence in not_evaluated(examples, contexts):
        log.warning("%s", sentence)


class EvaluateOptions(TypedDict, total=False):
    """Options of `evaluate`; None or empty = those of the run, or the defaults of `evaluate_model`.

    skipped  collects the examples that cannot be encoded; they are left out of every context
    """

    data: str | None
    contexts: Sequence[str] | None
    max_examples: int | None
    grader: str | None
    tolerance: float | None
    skipped: Tally | None


def evaluate(path: str | Path, **options: Unpack[EvaluateOptions]) -> list[EvalRecord]:
    """Evaluate a run's newest checkpoint with its teachers, or a model folder, whichever `path` is.

    Raises: RunError if `path` is neither.
    """
    folder = Path(path)
    refuse_gguf("model", path)
    if (folder / "run.json").is_file():
        return evaluate_run(folder, **options)
    for model in (folder, folder / "student"):  # a checkpoint holds its student in a folder of that name
        if (model / "config.json").is_file() or (model / "adapter_config.json").is_file():
            if options.get("data") is None:
                raise ConfigError(f"{path} is a model, not a run, so it names no examples. Name a file with --data.")
            given: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, [], ())}
            return evaluate_model(model, **given)
    raise RunError(
        f"{path} has neither run.json nor config.json. Expected a run folder or a model folder. Make one with "
        "`workbench train` or save_pretrained."
    )


def default_device(name: str | None = None) -> str:
    """`name` (a run's models.device) if this machine has it; otherwise cuda if available, else cpu."""
    if name is not None:
        try:
            return str(choose_device(name))
        except ConfigError as error:  # the run may be from another machine
            log.warning("%s The key is ignored here.", error)
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_scorer(
    source: str | Path | RunConfig, overrides: list[str] | tuple[str, ...] = (), *, device: str | None = "cpu"
) -> Scorer:
    """Open a scorer for a run (its newest checkpoint), a configuration file, or a configuration.

    device  None = the device of the configuration
    """
    if isinstance(source, RunConfig):
        return Scorer(source, device=device)
    path = Path(source)
    if not path.is_dir():
        return Scorer(load_config(path, overrides), device=device)
    folder = RunFolder.open(path)
    checkpoint, torn = latest_checkpoint(folder.path)
    if checkpoint is None and not folder.status.get("scored"):  # scored rollouts have the models that config.yaml names
        raise RunError(f"{path} has no complete checkpoint yet. {' '.join(torn)}")
    return Scorer(load_config(folder.path / "config.yaml", overrides), checkpoint, device=device)
