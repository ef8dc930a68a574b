"""Write the traces of a run: one Parquet file per table, step and process.

Tensors become Arrow arrays through NumPy, without a Python object per number. The columns are those of schema.py.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from workbench.data.images import open_image
from workbench.distill.method import Regime
from workbench.distill.step import StepResult, TopKTokens
from workbench.errors import TraceError
from workbench.files.atomic import replacing
from workbench.policies import Policy
from workbench.traces.parts import compact, step_file, traces_folder, write_part
from workbench.traces.schema import (
    PREVIEW_LENGTH,
    PROBE,
    TABLES,
    Header,
    TracedLoss,
    TracedRegime,
    TracedView,
    stored_schema,
)
from workbench.traces.totals import sum_aggregates, sum_rollouts
from workbench.types import STUDENT, Prompt, Rollout, Routing, TokenScores, Turn, label_completion

_MOST_NAMES = 100_000  # cached image references; tens of megabytes


@dataclass(frozen=True)
class TracedBatch:
    """One step of one process and learner. Its N positions are concatenated in the order of the R rollouts.

    views            view name -> (policy, context)
    prompts          view name -> one prompt per rollout, None where the view did not score it
    scored_by        view name -> name of the policy that scored each rollout; missing = the view's own policy
    regimes          by name; routing.regime holds indices in this order
    loss_normalizer  factor of a position's loss in the step's total
    loss             weighted, in nats, before averaging
    token_texts      per rollout, one text per token
    labels           per rollout, token type and visibility of each token, from workbench.types.label_completion
    """

    step: int
    rollouts: tuple[Rollout, ...]
    views: dict[str, tuple[str, str]]
    prompts: dict[str, tuple[Prompt | None, ...]]
    scores: dict[str, TokenScores]
    routing: Routing
    regimes: dict[str, Regime]
    loss_normalizer: Float[Tensor, " N"]
    loss: Float[Tensor, " N"]
    token_texts: tuple[tuple[str, ...], ...]
    labels: tuple[tuple[tuple[str, str | None], ...], ...]
    top_k_tokens: TopKTokens | None = None
    learner: str = STUDENT
    scored_by: dict[str, tuple[str, ...]] = field(default_factory=dict)


def to_traced_batch(result: StepResult, step: int, student: Policy) -> TracedBatch:
    """Convert the result of a training step of `student` to the values to store."""
    texts = tuple(tuple(student.token_texts(rollout.ids)) for rollout in result.batch.rollouts)
    labels = tuple(
        tuple(label_completion(list(words), rollout))
        for words, rollout in zip(texts, result.batch.rollouts, strict=True)
    )
    return TracedBatch(
        step=step,
        learner=student.name,
        rollouts=result.batch.rollouts,
        views={name: (view.policy, view.context) for name, view in result.method.views.items()},
        prompts=result.prompts,
        scores=result.scores,
        routing=result.routing,
        regimes=result.method.regimes,
        loss_normalizer=result.loss_normalizer,
        loss=result.loss,
        token_texts=texts,
        labels=labels,
        top_k_tokens=result.top_k_tokens,
        scored_by=result.scored_by,
    )


class TraceWriter:
    """Write the traces of one process of a run.

    policy_text    function from a token id to its text, for top_k; by learner if vocabularies differ
    compact_every  number of step files of a table at which rank 0 merges them; 0 = never
    background     write in a thread, at most one step behind. The next call raises its error. Call `flush` before
                   reading what was written.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        method: str,
        policy_text: Callable[[int], str] | dict[str, Callable[[int], str]],
        rank: int = 0,
        compact_every: int = 100,
        background: bool = False,
    ) -> None:
        self.run_folder, self.method, self.rank, self.compact_every = Path(run_folder), method, rank, compact_every
        self.folder = traces_folder(self.run_folder)
        self._policy_text = policy_text
        self._token_texts: dict[tuple[str, int], str] = {}
        self._image_names: dict[str, list[str]] = {}  # by prompt or example, to hash images once
        self._step_names: dict[int, str] = {}  # by id(), valid while the batch exists
        self._num_written = 0
        self._thread = ThreadPoolExecutor(1, "traces") if background else None
        self._pending: Future | None = None

    def write(self, *batches: TracedBatch) -> None:
        """Record a training step, one batch per learner, all of one method. Replaces an earlier record of the step."""
        self._start(batches, "")

    def write_probe(self, *batches: TracedBatch) -> None:
        """Record the scores of the probes at this step."""
        self._start(batches, PROBE)

    def flush(self) -> None:
        """Wait until everything is on disk. Raises TraceError if a write failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.flush()

    def _start(self, batches: tuple[TracedBatch, ...], prefix: str) -> None:
        self.flush()
        if self._thread is None:
            self._write(batches, prefix)
            return
        for batch in batches:
            for ids, _ in batch.top_k_tokens.top.values() if batch.top_k_tokens else ():
                for token_id in ids.unique().tolist():
                    if token_id >= 0:
                        self._text(batch.learner, token_id)  # outside the thread: tokenizers are not thread-safe
        self._pending = self._thread.submit(self._write, batches, prefix)

    def _write(self, batches: tuple[TracedBatch, ...], prefix: str) -> None:
        batch = batches[0]
        views = {name: TracedView(*view) for name, view in batch.views.items()}
        regimes = {name: _traced_regime(regime) for name, regime in batch.regimes.items()}
        header = Header(self.method, views, regimes)
        self._step_names.clear()
        tables: dict[str, list[pa.Table]] = {}
        first = 0  # index in the file of the batch's first rollout
        for batch in batches:
            for table, columns in self._columns(batch, first).items():
                if prefix + table in TABLES:  # probes have no aggregates
                    schema = stored_schema(prefix + table, tuple(batch.views))
                    arrays = [_array(columns[field.name], field.type) for field in schema]
                    tables.setdefault(prefix + table, []).append(pa.Table.from_arrays(arrays, schema=schema))
            first += len(batch.rollouts)
        for table, parts in tables.items():
            write_part(step_file(self.folder / table, batch.step, self.rank), pa.concat_tables(parts), header)
        self._num_written += 1
        if self.rank == 0 and self.compact_every and self._num_written % self.compact_every == 0:
            compact(self.run_folder, min_parts=self.compact_every)

    def _columns(self, batch: TracedBatch, first: int) -> dict[str, dict]:
        """Build the columns of each table; indices of the batch's rollouts start at `first`."""
        positions = self._positions(batch)
        aggregates = sum_aggregates(positions, [rollout.example.domain for rollout in batch.rollouts])
        rollouts = self._rollouts(batch) | sum_rollouts(positions, len(batch.rollouts))
        tables = {"tokens": positions, "aggregates": aggregates, "rollouts": rollouts}
        for columns in tables.values():
            columns["learner"] = [batch.learner] * len(columns["step"])
        for columns in (positions, rollouts):
            columns["rollout_idx"] = columns["rollout_idx"] + first
        return tables

    def _key(self, batch: TracedBatch, rollout_idx: np.ndarray) -> dict:
        same = np.ones_like(rollout_idx)
        return {"step": same * batch.step, "process_rank": same * self.rank, "rollout_idx": rollout_idx}

    def _positions(self, batch: TracedBatch) -> dict:
        lengths = np.array([len(rollout.ids) for rollout in batch.rollouts], dtype=np.int32)
        num_positions = int(lengths.sum())
        assert batch.loss.numel() == num_positions, (batch.loss.shape, num_positions)
        starts = np.cumsum(lengths, dtype=np.int32) - lengths
        labels = list(chain.from_iterable(batch.labels))
        routing, regime_names = batch.routing, np.array(list(batch.regimes), dtype=object)
        columns = self._key(batch, np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)) | {
            "position": np.arange(num_positions, dtype=np.int32) - np.repeat(starts, lengths),
            "token_id": list(chain.from_iterable(rollout.ids for rollout in batch.rollouts)),
            "token_text": list(chain.from_iterable(batch.token_texts)),
            "token_type": [token_type for token_type, _ in labels],
            "visibility": [visibility for _, visibility in labels],
            "denoising_step": list(chain.from_iterable(_denoising_steps(rollout) for rollout in batch.rollouts)),
            "sampler_logprob": list(chain.from_iterable(_sampler_logprobs(rollout) for rollout in batch.rollouts)),
            "regime": regime_names[_numpy(routing.regime)] if num_positions else [],
            "weight": _numpy(routing.weight),
            "advantage": [None] * num_positions if routing.advantage is None else _numpy(routing.advantage),
            "loss_normalizer": _numpy(batch.loss_normalizer),
            "loss": _numpy(batch.loss),
        }
        for view in batch.views:
            for name in ("logprob", "entropy", "max_logprob"):
                columns[f"{name}_{view}"] = _numpy(getattr(batch.scores[view], name))
            rank = _numpy(batch.scores[view].rank)
            columns[f"rank_{view}"] = pa.array(rank, pa.int32(), mask=rank < 0)
            columns[f"top_k_{view}"] = self._top_k(batch, view, num_positions)
        return columns

    def _top_k(self, batch: TracedBatch, view: str, num_positions: int) -> list | pa.Array:
        recorded = batch.top_k_tokens
        if recorded is None or view not in recorded.top:
            return [None] * num_positions
        ids, logprobs = (_numpy(values) for values in recorded.top[view])
        scored = (ids >= 0).all(1)
        ids, logprobs, index = ids[scored], logprobs[scored], _numpy(recorded.index)[scored]
        order = index.argsort()
        ids, logprobs = ids[order].reshape(-1).astype(np.int32), logprobs[order].reshape(-1).astype(np.float32)
        counts = np.zeros(num_positions + 1, dtype=np.int32)
        counts[index + 1] = recorded.top[view][0].shape[1]
        is_missing = np.ones(num_positions, dtype=bool)
        is_missing[index] = False
        texts = [self._text(batch.learner, token_id) for token_id in ids.tolist()]
        entries = pa.StructArray.from_arrays(
            [pa.array(ids), pa.array(texts, pa.string()), pa.array(logprobs)], names=["token_id", "text", "logprob"]
        )
        return pa.ListArray.from_arrays(np.cumsum(counts, dtype=np.int32), entries, mask=pa.array(is_missing))

    def _text(self, learner: str, token_id: int) -> str:
        key = (learner, token_id)
        if key not in self._token_texts:
            of = self._policy_text[learner] if isinstance(self._policy_text, dict) else self._policy_text
            self._token_texts[key] = of(token_id)
        return self._token_texts[key]

    def _rollouts(self, batch: TracedBatch) -> dict:
        rollouts = batch.rollouts
        examples = [rollout.example for rollout in rollouts]
        evidence = [example.evidence for example in examples]
        crops = [self._images(f"crop|{item.origin}|{item.id}", item.evidence.crops[:1]) for item in examples]
        columns = self._key(batch, np.arange(len(rollouts), dtype=np.int32)) | {
            "example_id": [example.id for example in examples],
            "sample_idx": [rollout.sample_idx for rollout in rollouts],
            "domain": [example.domain for example in examples],
            "origin": [example.origin for example in examples],
            "question": [example.question for example in examples],
            "answer": [example.answer for example in examples],
            "reference": [example.reference for example in examples],
            "completion": [rollout.text for rollout in rollouts],
            "completion_preview": [rollout.text[:PREVIEW_LENGTH] for rollout in rollouts],
            "sampled_by": [rollout.sampled_by for rollout in rollouts],
            "sampler_step": [rollout.sampler_step for rollout in rollouts],
            "finished": [rollout.finished for rollout in rollouts],
            "finish_reason": [rollout.finish_reason for rollout in rollouts],
            "reward": [rollout.reward for rollout in rollouts],
            "num_positions": [len(rollout.ids) for rollout in rollouts],
            "images": [self._images(f"example|{example.origin}|{example.id}", example.images) for example in examples],
            "evidence_boxes": [[vars(box) for box in item.boxes] for item in evidence],
            "evidence_crop": [next(iter(crop), None) for crop in crops],
            "evidence_crop_box": [None if item.crop_box is None else vars(item.crop_box) for item in evidence],
            "evidence_caption": [item.caption for item in evidence],
            "evidence_hint": [item.hint for item in evidence],
            "annotations": [list(rollout.annotations) for rollout in rollouts],
            "thresholds": [list(batch.routing.thresholds.items())] * len(rollouts),
        }
        for view, prompts in batch.prompts.items():
            names = batch.scored_by.get(view) or [batch.views[view][0]] * len(rollouts)
            columns[f"policy_{view}"] = [prompt and name for prompt, name in zip(prompts, names, strict=True)]
            columns[f"prompt_{view}"] = [prompt and prompt.text for prompt in prompts]
            columns[f"images_{view}"] = [
                prompt and self._images(_key_of(prompt), prompt.all_images) for prompt in prompts
            ]
            columns[f"history_{view}"] = [prompt and [_turn(turn) for turn in prompt.history] for prompt in prompts]
        return columns

    def _images(self, key: str, images: Iterable[Image.Image | Path]) -> list[str]:
        """Return references of the images, cached by `key`; "" = do not cache."""
        if key and key in self._image_names:
            return self._image_names[key]
        names = [self._name(image) if isinstance(image, Image.Image) else os.path.abspath(image) for image in images]
        if key:
            if len(self._image_names) >= _MOST_NAMES:
                self._image_names.clear()
            self._image_names[key] = names
        return names

    def _name(self, image: Image.Image) -> str:
        """Return the reference of an image in memory, cached within the step."""
        if id(image) not in self._step_names:
            self._step_names[id(image)] = self._save(image)
        return self._step_names[id(image)]

    def _save(self, image: Image.Image) -> str:
        buffer = io.BytesIO()
        open_image(image).save(buffer, "PNG", compress_level=1)
        content = buffer.getvalue()
        file = self.folder / "images" / f"{hashlib.sha256(content).hexdigest()[:16]}.png"
        if not file.exists():
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                with replacing(file) as temporary:
                    temporary.write_bytes(content)
            except OSError as error:
                raise TraceError(f"{file} cannot be written ({error}). Free space or check permissions.") from error
        return f"images/{file.name}"


def _traced_regime(regime: Regime) -> TracedRegime:
    losses = tuple(TracedLoss(loss.target, loss.divergence.label, loss.weight) for loss in regime.losses)
    return TracedRegime(regime.target, regime.divergence, regime.meaning, losses)


def _turn(turn: Turn) -> dict[str, str]:
    """Convert an earlier turn to text, with a mark for each image; the view's images include them."""
    return {"role": turn.role, "text": "<image>" * len(turn.images) + turn.text}


def _key_of(prompt: Prompt) -> str:
    return f"prompt|{prompt.key}" if prompt.key else ""


def _sampler_logprobs(rollout: Rollout) -> Iterable[float | None]:
    return [None] * len(rollout.ids) if rollout.logprobs is None else rollout.logprobs


def _denoising_steps(rollout: Rollout) -> Iterable[int | None]:
    return [None] * len(rollout.ids) if rollout.denoising is None else rollout.denoising.steps


def _numpy(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()


def _array(values: Any, dtype: pa.DataType) -> pa.Array:
    if isinstance(values, pa.Array):
        return values
    return pa.array(values.astype(np.float16) if dtype == pa.float16() else values, dtype, from_pandas=True)
