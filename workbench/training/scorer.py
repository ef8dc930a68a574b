"""A run's policies without training: read one answer under every view, or evaluate again.

    scorer = open_scorer("runs/demo")
    scored = scorer.score(example)                      # the student answers
    scored = scorer.score(example, answer="at top left, tag K, answer K")
    scored.positions[3]["capability_gap"]

`score` says who would supervise which token. A rule that compares with means over a batch (DOPD) takes them
over the tokens of that one answer here. Of a run with peers it is the student that is scored, and no peer is asked.
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.config.schema import EvaluationConfig, RunConfig, SamplingConfig, load_config
from workbench.data.contexts import build_prompt, check_asked, parse_context, stand_in
from workbench.data.examples import load_examples
from workbench.data.grading import RULES, TOLERANCE, check_grading, grade
from workbench.distill.rollouts import reply_in_turns
from workbench.distill.scoring import Batch
from workbench.distill.step import compute_step, score_batch
from workbench.distill.usable import Tally, showable, unasked
from workbench.distributed import choose_device
from workbench.errors import ConfigError, RunError
from workbench.evals.evaluate import evaluate_policies
from workbench.evals.records import EvalRecord, require_answers, require_shown
from workbench.policies import SamplingOptions
from workbench.policies.loading import leave_room, load_policy
from workbench.policies.proven import prove_all
from workbench.runs.checkpoints import Checkpoint, latest_checkpoint
from workbench.runs.folder import RunFolder
from workbench.traces.reader import TracedRollout, open_traces
from workbench.traces.writer import TraceWriter, traced
from workbench.training.learner import autocast, build_learner
from workbench.types import STUDENT, Example, Rollout

log = logging.getLogger(__name__)


class Scorer:
    """The policies of a configuration, ready to read answers."""

    def __init__(self, config: RunConfig, checkpoint: Checkpoint | None = None, *, device: str | None = "cpu") -> None:
        self.config, self.checkpoint = config, checkpoint
        self.device = default_device(config.models.device) if device is None else device
        self.method = config.load_method()
        self.learner = build_learner(config, self.method, device=self.device, checkpoint=checkpoint)
        self._folder = tempfile.TemporaryDirectory(prefix="workbench-")  # traces of what was scored, with its images
        self._num_scored = 0

    def score(self, example: Example, answer: str | None = None, *, seed: int = 0) -> TracedRollout:
        """Every token of an answer as all views see it, routed by the method.

        answer  the text to score; None: the student writes one, temperature and lengths as configured

        Raises: DataError if the example lacks evidence that a view is shown.
        """
        for view in self.method.views.values():
            self.learner.policies[view.policy].check_prompt(build_prompt(example, view.context, stand_in(example)))
        rollout = self._write(example, seed) if answer is None else self._given(example, answer, seed)
        policies, config = self.learner.policies, self.config
        with torch.no_grad(), autocast(config, self.device):
            scored = compute_step(
                self.method,
                policies,
                score_batch(self.method, policies, Batch((rollout,))),
                seed=seed,
                num_alternatives=max(5, config.trace.alternatives),
                alternatives_of=1,
            )
        # a writer of its own: it keeps references of pictures by example, and this one may have been changed
        student = self.learner.student
        writer = TraceWriter(Path(self._folder.name), method=self.method.name, policy_text=student.token_text)
        self._num_scored += 1
        writer.write(traced(scored, self._num_scored, student))
        return open_traces(self._folder.name).rollout(self._num_scored, 0)

    def _write(self, example: Example, seed: int) -> Rollout:
        student, replies = self.learner.student, self._replies(example, seed)
        prompt = build_prompt(example, self._context, Rollout(example, 0, (), "", False, replies=replies))
        with autocast(self.config, self.device):
            written = student.sample([prompt], [[seed]], self._sampling)[0][0]
        text = student.text(written.ids)
        reward = self._grade(example, text)
        fields = {"replies": replies, "denoising": written.denoising}
        return Rollout(example, 0, written.ids, text, written.finished, written.logprobs, reward, **fields)

    def _given(self, example: Example, answer: str, seed: int) -> Rollout:
        ids, reward = self.learner.student.answer_ids(answer), self._grade(example, answer)
        fields = {"replies": self._replies(example, seed), "denoising": self.learner.student.denoising_schedule(ids)}
        return Rollout(example, 0, ids, answer, True, None, reward, "given", **fields)

    def _replies(self, example: Example, seed: int) -> tuple[str, ...]:
        """What the student is shown to have said before, where it answers over turns."""
        if "turns" not in parse_context(self._context):
            return ()
        replier = self.learner.policies[self.method.replier]
        with autocast(self.config, self.device):
            return reply_in_turns(replier, [example], sampling=self._sampling, seed=(seed,))[0]

    @property
    def _context(self) -> str:
        return self.method.views[self.method.learner].context

    @property
    def _sampling(self) -> SamplingOptions:
        sampling = self.config.sampling
        return SamplingOptions(sampling.max_completion_length, sampling.temperature, sampling.top_p, sampling.top_k)

    def _grade(self, example: Example, text: str) -> float | None:
        return None if example.answer is None else grade(text, example.answer, **self.config.evaluation.grading)


def evaluate_run(
    run_dir: str | Path,
    *,
    data: str | None = None,
    contexts: Sequence[str] | None = None,
    count: int | None = None,
    rule: str | None = None,
    tolerance: float | None = None,
    skipped: Tally | None = None,
) -> list[EvalRecord]:
    """The students of a run's newest checkpoint, and its teachers, asked again.

    data, contexts, count, rule and tolerance default to the run's own; nothing is written into the run folder.
    skipped  gets the examples that cannot be shown to all of them
    """
    scorer = open_scorer(run_dir, device=None)
    config = scorer.config
    evaluation = config.evaluation
    grading = evaluation.grading if rule in (None, evaluation.rule) else {"rule": rule, "tolerance": TOLERANCE}
    grading |= {} if tolerance is None else {"tolerance": tolerance}
    check_grading(**grading)
    source = data or config.data.eval
    if source is None:
        raise ConfigError("the run has no data.eval; give examples with --data.")
    own_count = config.evaluation.count or None
    examples = load_examples(source, limit=own_count if count is None else count)
    policies = [
        policy for name, policy in scorer.learner.policies.items() if name == STUDENT or name.startswith("teacher")
    ]
    for name in config.models.peers:
        policies.append(
            build_learner(config, scorer.method, name, device=scorer.device, checkpoint=scorer.checkpoint).student
        )
    require_answers(examples)
    require_shown(examples, source, contexts or ())  # of the run's own contexts those that the data can show are asked
    examples = showable(
        examples, policies, contexts or config.evaluation.contexts, Tally() if skipped is None else skipped
    )
    _log_unasked(examples, contexts or config.evaluation.contexts)
    with autocast(config, scorer.device):  # as the run evaluated
        return evaluate_policies(
            policies,
            examples,
            contexts or config.evaluation.contexts,
            step=scorer.checkpoint.step,
            max_completion_length=config.sampling.max_completion_length,
            **grading,
            batch_size=config.evaluation.batch_size,
        )


def evaluate_model(
    path: str | Path,
    *,
    data: str,
    contexts: Sequence[str] = ("plain",),
    count: int | None = None,
    rule: str = RULES[0],
    tolerance: float = TOLERANCE,
    max_completion_length: int = SamplingConfig().max_completion_length,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    skipped: Tally | None = None,
) -> list[EvalRecord]:
    """Any image-text-to-text model asked: a folder written by save_pretrained, or a name on the hub."""
    check_grading(rule, tolerance)
    examples = load_examples(data, limit=count)
    for context in contexts:
        check_asked(context)
    require_answers(examples)
    require_shown(examples, data, contexts)
    policy = load_policy(path, "model", dtype=dtype, device=default_device(), trust_remote_code=trust_remote_code)
    prove_all(
        [policy], accept_differences=True
    )  # answers are shown, and no loss is made of their log-probs: it is logged
    if policy.encoder.context_length is not None:
        max_completion_length = min(max_completion_length, policy.encoder.context_length // 2)
    leave_room([policy], max_completion_length)
    examples = showable(examples, [policy], contexts, Tally() if skipped is None else skipped)
    _log_unasked(examples, contexts)
    options = {"max_completion_length": max_completion_length, "batch_size": EvaluationConfig().batch_size}
    return evaluate_policies([policy], examples, contexts, step=0, rule=rule, tolerance=tolerance, **options)


def _log_unasked(examples: list[Example], contexts: Sequence[str]) -> None:
    for sentence in unasked(examples, contexts):
        log.warning("%s", sentence)


def evaluate(
    path: str | Path,
    *,
    data: str | None = None,
    contexts: Sequence[str] | None = None,
    count: int | None = None,
    rule: str | None = None,
    tolerance: float | None = None,
    skipped: Tally | None = None,
) -> list[EvalRecord]:
    """A run's newest checkpoint with its teachers, or a model folder: whichever `path` is.

    skipped  gets the examples that cannot be shown, which are left out under every context

    Raises: RunError if it is neither.
    """
    folder = Path(path)
    if (folder / "run.json").is_file():
        return evaluate_run(
            folder, data=data, contexts=contexts, count=count, rule=rule, tolerance=tolerance, skipped=skipped
        )
    for model in (folder, folder / "student"):  # a checkpoint holds its student in a folder of that name
        if (model / "config.json").is_file() or (model / "adapter_config.json").is_file():
            if data is None:
                raise ConfigError(f"{path} is a model and has no data of its own; give examples with --data.")
            grading = {"rule": rule or RULES[0], "tolerance": TOLERANCE if tolerance is None else tolerance}
            return evaluate_model(
                model, data=data, contexts=contexts or ("plain",), count=count, skipped=skipped, **grading
            )
    raise RunError(
        f"{path} is no run folder and no model folder: it has neither run.json nor config.json. Runs are made by "
        "`workbench train`, model folders by save_pretrained."
    )


def default_device(name: str | None = None) -> str:
    """`asked` (a run's models.device) where this machine has it; else the accelerator if there is one."""
    if name is not None:
        try:
            return str(choose_device(name))
        except ConfigError as error:  # a run may be looked at on another machine than its own
            log.warning("%s It is not used here.", error)
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_scorer(
    source: str | Path | RunConfig, overrides: list[str] | tuple[str, ...] = (), *, device: str | None = "cpu"
) -> Scorer:
    """A scorer of a run (its newest checkpoint), of a configuration file, or of a configuration; device None: its
    own.
    """
    if isinstance(source, RunConfig):
        return Scorer(source, device=device)
    path = Path(source)
    if not path.is_dir():
        return Scorer(load_config(path, overrides), device=device)
    folder = RunFolder.open(path)
    checkpoint, torn = latest_checkpoint(folder.path)
    if checkpoint is None:
        raise RunError(f"{path} has no complete checkpoint yet. {' '.join(torn)}")
    return Scorer(load_config(folder.path / "config.yaml", overrides), checkpoint, device=device)
