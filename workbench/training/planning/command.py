"""The command `workbench plan`: from its options to an outcome that can be printed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from workbench.config.schema import load_config
from workbench.errors import ConfigError
from workbench.training.planning import report
from workbench.training.planning.devices import Speed, parse_memory, parse_picture, require_count, speed_of
from workbench.training.planning.plan import Plan, plan_run
from workbench.training.planning.prompts import TEXT_TOKENS, PromptSize
from workbench.training.planning.remedies import Trial, mend


@dataclass(frozen=True)
class Outcome:
    """A plan for devices of a memory.

    per_node  devices of a node
    trials    what `mend` has tried
    """

    plan: Plan
    memory: int
    per_node: int
    speed: Speed
    share: float
    size: PromptSize | None = None
    served_teacher: str | None = None
    trials: list[Trial] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        return self.plan.fits(self.memory)

    @property
    def header(self) -> tuple[str, ...]:
        return report.header()

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return report.rows(self.plan, self.speed, self.share)

    def mend(self) -> Iterator[str]:
        """Try what mends a plan that does not fit; yields a header, and a line for each try as it ends."""
        if self.fits:
            return
        yield report.TRIALS
        options: dict[str, Any] = {"processes": self.plan.processes, "sharded": self.plan.sharded, "size": self.size}
        for trial in mend(self.plan.config, self.memory, **options, served_teacher=self.served_teacher):
            self.trials.append(trial)
            yield report.describe_trial(trial)

    @property
    def facts(self) -> list[str]:
        """Sentences on what was planned."""
        speed = self.speed
        return [
            report.describe(self.plan),
            f"Memory in GB at each phase's peak. Times: {self.share:.0%} of the peak of {speed.name} "
            f"({speed.half / 1e12:g} TFLOP/s in half precision, {speed.single / 1e12:g} in float32, "
            f"{speed.bandwidth / 1e12:g} TB/s), without communication.",
            *report.describe_passes(self.plan),
            *report.describe_whole(self.plan),
            *report.describe_vllm(self.plan, self.memory),
            *report.describe_servers(self.plan, self.memory),
            report.describe_host(self.plan, self.per_node),
        ]

    @property
    def verdict(self) -> str:
        return report.verdict(self.plan, self.memory)

    @property
    def remedy(self) -> str:
        """What mends a plan that does not fit, of what was tried."""
        return report.remedy(self.trials)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; memory in bytes, time in seconds."""
        return report.to_dict(self.plan, self.memory, self.trials, self.speed, self.share, self.per_node)


def plan_from_options(
    config: str,
    overrides: Sequence[str],
    *,
    memory: str,
    devices: int = 1,
    nodes: int = 1,
    sharded: bool = False,
    share: float = 0.4,
    picture: str | None = None,
    text_tokens: int | None = None,
    served_teacher: str | None = None,
) -> Outcome:
    """Plan a configuration for `nodes` times `devices` devices.

    Raises: ConfigError for options that are not allowed; the errors of plan_run.
    """
    num_bytes = parse_memory(memory)
    processes = require_count("--devices", devices) * require_count("--nodes", nodes)
    if not 0 < share <= 1:
        raise ConfigError(f"--share must be above 0 and at most 1, got {share:g}.")
    if sharded and processes == 1:
        raise ConfigError("--sharded needs several devices. Set --devices or --nodes, or leave --sharded out.")
    size = None
    if picture is not None or text_tokens is not None:
        tokens = TEXT_TOKENS if text_tokens is None else require_count("--text-tokens", text_tokens)
        size = PromptSize(tokens, None if picture is None else parse_picture(picture))
    loaded = load_config(config, list(overrides))
    plan = plan_run(loaded, processes=processes, sharded=sharded, size=size, served_teacher=served_teacher)
    return Outcome(plan, num_bytes, devices, speed_of(num_bytes), share, size, served_teacher)
