"""Makes data/models/student-pruned: the built-in teacher without one of its four text layers.

    python data/prune.py                          # without its second text layer: the student of the studies
    python data/prune.py 2 build/teacher-weak     # without its third: a teacher that is weaker than that student
    python data/prune.py 12-14 build/smolvlm-pruned build/smolvlm      # another model, without three of its layers

A student that is smaller than its teacher, of one origin with it, and damaged: what it lacks can be taught in a hundred
steps, so studies that compare methods have something to measure. Depth pruning before distillation: Minitron, arXiv
2407.14679.
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

MODELS = Path(__file__).parent / "models"
LAYERS = "1"  # counted from 0; without the first or the last layer nothing is left


def prune(layers: str = LAYERS, target: Path = MODELS / "student-pruned", source: Path = MODELS / "teacher") -> Path:
    """Write `source` without some text layers (a number, or FIRST-LAST), weights unchanged, as a model folder."""
    first, _, last = layers.partition("-")
    model = AutoModelForImageTextToText.from_pretrained(source)
    stack = model.model.text_model.layers
    del stack[int(first) : int(last or first) + 1]
    model.config.text_config.num_hidden_layers = len(stack)
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(source).save_pretrained(target)
    return target


if __name__ == "__main__":
    prune(*sys.argv[1:2], *map(Path, sys.argv[2:]))
