"""Parameter average of models with a common start: the baseline of merging specialists without training.

python -m workbench.policies.average OUTPUT MODEL MODEL ...
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from workbench.errors import ConfigError, PolicyError, WorkbenchError
from workbench.policies.adapters import is_adapter
from workbench.policies.autoregressive import load_policy


def average_models(models: Sequence[str | Path], output: str | Path) -> Path:
    """Write the mean of the models' weights as a model folder; returns it.

    Raises: ConfigError for fewer than two models or parameters of different name or shape; PolicyError for adapters.
    """
    if len(models) < 2:
        raise ConfigError(f"got {len(models)} models to average. Expected two or more. Name another model.")
    for model in models:
        if is_adapter(model):
            raise PolicyError(
                f"{model} holds an adapter. Expected full weights, since adapters cannot be averaged. Merge it first "
                "with `workbench export`."
            )
    first, *others = (load_policy(model, str(model)) for model in models)
    total = dict(first.model.named_parameters())
    with torch.no_grad():
        for other in others:
            weights = dict(other.model.named_parameters())
            odd = next(
                (
                    name
                    for name in {**total, **weights}
                    if name not in weights or name not in total or weights[name].shape != total[name].shape
                ),
                None,
            )
            if odd is not None:
                raise ConfigError(
                    f'{other.name} and {first.name} differ in "{odd}". Choose models of one architecture.'
                )
            for name, parameter in total.items():
                parameter.add_(weights[name])
        for parameter in total.values():
            parameter.div_(len(models))
    first.model.save_pretrained(output)
    first.processor.save_pretrained(output)
    return Path(output)


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{average_models(sys.argv[2:], sys.argv[1])}\n")
    except (IndexError, WorkbenchError) as error:
        sys.exit(str(error) if isinstance(error, WorkbenchError) else __doc__)
