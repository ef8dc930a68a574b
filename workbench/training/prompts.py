"""`workbench prompts`: the prompt of each view, as its model reads it.

A chat template adds what no data file shows: role marks, a system prompt of its own, an open or closed thinking block.
Only processors are loaded, no weights.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from workbench.config.schema import RunConfig
from workbench.data.contexts import build_prompt, dummy_rollout, missing_evidence
from workbench.data.mixture import load_mixture
from workbench.distill.method import View
from workbench.policies.by_domain import is_by_domain
from workbench.policies.encoding import PromptEncoder
from workbench.policies.loading import load_encoder
from workbench.training.run_data import with_template
from workbench.types import STUDENT, Example

LONGEST_RUN = 4  # equal tokens in a row that are still written out


@dataclass(frozen=True)
class ViewPrompt:
    """Prompt of one view.

    text    decoded ids, special tokens included; more than LONGEST_RUN equal tokens in a row are one with their number
    length  tokens
    images  number of images
    image_tokens  tokens that the images cost, of `length`
    why     reason why the view has no prompt for this example; then `text` is empty
    """

    view: str
    policy: str
    context: str
    text: str = ""
    length: int = 0
    images: int = 0
    image_tokens: int = 0
    why: str = ""

    def __str__(self) -> str:
        head = f"[{self.view}] {self.policy} given {self.context}"
        if self.why:
            return f"{head}: {self.why}"
        images = ""
        if self.images:
            images = f", {self.image_tokens:,} of {self.images} image{'s' * (self.images != 1)}"
        return f"{head}: {self.length:,} tokens{images}\n{self.text}"


def render_prompts(config: RunConfig, rows: int = 1) -> Iterator[tuple[Example, list[ViewPrompt]]]:
    """Yield the first examples of each source of data.train, each with the prompts of all views of the method.

    Raises: WorkbenchError if the data, a processor or a prompt cannot be read.
    """
    encoders = Encoders(config)
    for example in load_mixture(config.data.train_sources, max_examples=rows):
        yield example, encoders.render(example)


def _render(encoders: "Encoders", name: str, view: View, example: Example) -> ViewPrompt:
    if column := missing_evidence(example, view.context):
        return ViewPrompt(name, view.policy, view.context, why=f"this example has no {column}")
    encoder = encoders.of(view.policy, example.domain)
    if encoder is None:
        return ViewPrompt(name, view.policy, view.context, why=f'no teacher for the domain "{example.domain}"')
    prompt = build_prompt(example, view.context, dummy_rollout(example))
    ids = encoder.encode(prompt)["input_ids"][0].tolist()
    text = "".join(_pieces(encoder, ids))
    images = len(prompt.all_images)
    cost = encoder.picture_tokens(prompt) if images else 0
    return ViewPrompt(name, view.policy, view.context, text, len(ids), images, cost)


def _pieces(encoder: PromptEncoder, ids: list[int]) -> Iterator[str]:
    """Decode ids, with long runs of one token, such as image placeholders, written once with their number."""
    plain: list[int] = []
    for token, run in itertools.groupby(ids):
        count = len(list(run))
        if count <= LONGEST_RUN:
            plain += [token] * count
            continue
        yield encoder.tokenizer.decode(plain)
        yield f"{encoder.tokenizer.decode([token])}[x {count:,}]"
        plain = []
    yield encoder.tokenizer.decode(plain)


class Encoders:
    """Encoders of a configuration by policy, each model's processor loaded once."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._models = config, config.models
        self._method = config.load_method()
        self._by_domain = is_by_domain(self._method.policies, config.models.teachers)
        self._loaded: dict[tuple[str, bool], PromptEncoder] = {}

    def render(self, example: Example) -> list[ViewPrompt]:
        """Render the prompts of one example under all views of the method. Raises WorkbenchError if one cannot be."""
        (example,) = with_template([example], self._config)
        return [_render(self, name, view, example) for name, view in self._method.views.items()]

    def of(self, policy: str, domain: str) -> PromptEncoder | None:
        """Encoder of a policy for an example of a domain; None if no teacher covers it."""
        models = self._models
        if policy.startswith(STUDENT):
            return self.load(models.student, STUDENT, is_teacher=False)
        named = policy.partition(":")[2]
        if named or (self._by_domain and domain in models.teachers):
            return self.load(models.teachers[named or domain], policy, is_teacher=True)
        return None if models.teacher is None else self.load(models.teacher, policy, is_teacher=True)

    def load(self, path: str, name: str, *, is_teacher: bool) -> PromptEncoder:
        """Encoder of a model, loaded once."""
        if (path, is_teacher) not in self._loaded:
            options = self._models.student_options | (self._models.teacher_options if is_teacher else {})
            options.pop("dtype")
            self._loaded[path, is_teacher] = load_encoder(path, name, **options)
        return self._loaded[path, is_teacher]
