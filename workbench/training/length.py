"""Number of steps that training.epochs means."""

import dataclasses
import math

from workbench.config.schema import RunConfig


def with_steps(config: RunConfig, num_examples: int) -> RunConfig:
    """Return the configuration with training.steps set as training.epochs means it for `num_examples`; as it is without
    epochs.

    An epoch has as many draws as there are examples, so the last step may reach into the next one.
    """
    training = config.training
    if not training.epochs:
        return config
    steps = max(1, math.ceil(training.epochs * num_examples / training.batch_size))
    return dataclasses.replace(config, training=dataclasses.replace(training, steps=steps, epochs=0.0))


def describe_steps(config: RunConfig, num_examples: int) -> str:
    """One sentence on the number of steps and the passes over the examples that it means."""
    training = with_steps(config, num_examples).training
    passes = training.steps * training.batch_size / num_examples
    text = (
        f"{training.steps:,} steps of {training.batch_size} prompts: {passes:.2f} passes over {num_examples:,} examples"
    )
    return text + (f" (training.epochs={config.training.epochs:g})" if config.training.epochs else "")
