"""Makes data/models/student-pruned: the built-in teacher without one of its four text layers.

    python data/prune.py                          # without its second text layer: the student of the studies
    python data/prune.py 2 build/teacher-weak     # without its third: a teacher that is weaker than that student

A student that is smaller than its teacher, of one origin with it, and damaged: what it lacks can be taught in a hundred
steps, so studies that compare methods have something to measure. Depth pruning before distillation: Minitron, arXiv
2407.14679.
"""

import sys
from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

MODELS = Path(__file__).parent / "models"
LAYER = 1  # counted from 0; without the first or the last layer nothing is left


def prune(source: Path = MODELS / "teacher", target: Path = MODELS / "student-pruned", layer: int = LAYER) -> Path:
    """Write `source` without one text layer, weights unchanged, as a model folder of its own."""
    model = AutoModelForImageTextToText.from_pretrained(source)
    layers = model.model.text_model.layers
    del layers[layer]
    model.config.text_config.num_hidden_layers = len(layers)
    model.save_pretrained(target)
    AutoProcessor.from_pretrained(source).save_pretrained(target)
    return target


if __name__ == "__main__":
    layer = int(sys.argv[1]) if len(sys.argv) > 1 else LAYER
    prune(target=Path(sys.argv[2]) if len(sys.argv) > 2 else MODELS / "student-pruned", layer=layer)
