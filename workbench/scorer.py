"""A run's policies without training: read one answer under every view, or evaluate again.

    scorer = open_scorer("runs/demo")
    scored = scorer.score(example)                      # the student answers
    scored = scorer.score(example, answer="at top left, tag K, answer K")
    scored.positions[3]["capability_gap"]

`score` says who would supervise which token. A rule that compares with means over a batch (DOPD) takes them
over the tokens of that one answer here.
"""

import tempfile
from pathlib import Path

import torch

from workbench.checkpoints import Checkpoint, latest_checkpoint
from workbench.config import RunConfig, load_config
from workbench.contexts import build_prompt
from workbench.datasets import load_examples, split_by_evidence
from workbench.errors import ConfigError, RunError
from workbench.evaluate import Answered, answer_questions, require_answers
from workbench.grading import grade
from workbench.learner import build_learner
from workbench.policies import SamplingOptions
from workbench.runs import RunFolder
from workbench.scoring import Batch
from workbench.supervision import read_batch, supervise_batch
from workbench.traces.reader import TracedRollout, open_traces
from workbench.traces.writer import TraceWriter
from workbench.types import Example, Rollout


class Scorer:
    """The policies of a configuration, ready to read answers."""

    def __init__(self, config: RunConfig, checkpoint: Checkpoint | None = None) -> None:
        self.config, self.checkpoint = config, checkpoint
        self.method = config.load_method()
        self.learner = build_learner(config, self.method, checkpoint=checkpoint)
        self._folder = tempfile.TemporaryDirectory(prefix="workbench-")  # traces of what was scored, with its images
        self._num_scored = 0

    def score(self, example: Example, answer: str | None = None, *, seed: int = 0) -> TracedRollout:
        """Every token of an answer as all views see it, routed by the method.

        answer  the text to score; None: the student writes one, temperature and lengths as configured

        Raises: DataError if the example lacks evidence that a view is shown.
        """
        for view in self.method.views.values():
            self.learner.policies[view.policy].check_prompt(build_prompt(example, view.context))
        rollout = self._write(example, seed) if answer is None else self._given(example, answer)
        policies, config = self.learner.policies, self.config
        with torch.no_grad():
            scored = supervise_batch(
                self.method,
                policies,
                read_batch(self.method, policies, Batch((rollout,))),
                seed=seed,
                num_alternatives=max(5, config.trace.alternatives),
                alternatives_of=1,
            )
        # a writer of its own: it keeps references of pictures by example, and this one may have been changed
        student = self.learner.student
        writer = TraceWriter(Path(self._folder.name), method=self.method.name, policy_text=student.token_text)
        self._num_scored += 1
        writer.write(scored.traced(self._num_scored, student))
        return open_traces(self._folder.name).rollout(self._num_scored, 0)

    def _write(self, example: Example, seed: int) -> Rollout:
        sampling, student = self.config.sampling, self.learner.student
        options = SamplingOptions(sampling.max_completion_length, sampling.temperature, sampling.top_p, sampling.top_k)
        prompt = build_prompt(example, self.method.views[self.method.learner].context)
        written = student.sample([prompt], [[seed]], options)[0][0]
        text = student.text(written.ids)
        return Rollout(example, 0, written.ids, text, written.finished, written.logprobs, self._grade(example, text))

    def _given(self, example: Example, answer: str) -> Rollout:
        ids = self.learner.student.answer_ids(answer)
        return Rollout(example, 0, ids, answer, True, None, self._grade(example, answer), "given")

    def _grade(self, example: Example, text: str) -> float | None:
        return None if example.answer is None else grade(text, example.answer, self.config.evaluation.rule)


def evaluate_run(
    run_dir: str | Path,
    *,
    data: str | None = None,
    contexts: list[str] | None = None,
    count: int | None = None,
) -> list[Answered]:
    """The student of a run's newest checkpoint, and its teachers, asked again.

    data, contexts and count default to the run's own; nothing is written into the run folder.
    """
    scorer = open_scorer(run_dir)
    config, step = scorer.config, scorer.checkpoint.step
    source = data or config.data.eval
    if source is None:
        raise ConfigError("the run has no data.eval; give examples with --data.")
    examples = load_examples(source, limit=count or config.evaluation.count or None)
    require_answers(examples)
    answered = []
    for name, policy in scorer.learner.policies.items():
        if name != "student" and not name.startswith("teacher"):
            continue
        for context in contexts or config.evaluation.contexts:
            answered += answer_questions(
                policy,
                split_by_evidence(examples, [context])[0],
                context,
                step=step,
                max_completion_length=config.sampling.max_completion_length,
                rule=config.evaluation.rule,
                batch_size=config.evaluation.batch_size,
            )
    return answered


def open_scorer(source: str | Path | RunConfig, overrides: list[str] | tuple[str, ...] = ()) -> Scorer:
    """A scorer of a run (its newest checkpoint), of a configuration file, or of a configuration."""
    if isinstance(source, RunConfig):
        return Scorer(source)
    path = Path(source)
    if not path.is_dir():
        return Scorer(load_config(path, overrides))
    folder = RunFolder.open(path)
    checkpoint, torn = latest_checkpoint(folder.path)
    if checkpoint is None:
        raise RunError(f"{path} has no complete checkpoint yet. {' '.join(torn)}")
    return Scorer(load_config(folder.path / "config.yaml", overrides), checkpoint)
