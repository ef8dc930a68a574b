"""A model as it is against a variant that was trained, with an interval over questions and the variant's seeds.

    python docs/studies/against_a_model.py runs/mopd-average "teacher specialist-average" full

The tables of a study compare variants with each other and with the untrained student; a teacher stands there without an
interval. Here its answers count as the same for every seed. Plain context, accuracy on visible questions, per set of
questions.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from workbench.studies.bootstrap import paired_interval


def main(folder: str, model: str, variant: str) -> None:
    questions = pd.read_parquet(Path(folder) / "questions.parquet")
    questions = questions[(questions["context"] == "plain") & (questions["visibility"] == "visible")]
    for data, rows in questions.groupby("data", observed=True):
        trained = rows[rows["variant"] == variant].pivot(index="seed", columns="example_id", values="accuracy")
        as_it_is = rows[rows["variant"] == model].set_index("example_id")["accuracy"][trained.columns]
        mean, low, high = paired_interval(np.tile(as_it_is.to_numpy(float), (len(trained), 1)), trained.to_numpy(float))
        print(
            f"{data}: {model} {as_it_is.mean():.1%}, {variant} {trained.to_numpy().mean():.1%} of {trained.shape[1]} "
            f"questions, {len(trained)} seeds"
        )
        print(f"    {100 * mean:+.1f} points [{100 * low:+.1f}, {100 * high:+.1f}]")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
