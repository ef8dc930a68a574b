"""Makes data/models/student-pruned: the built-in teacher without its second text layer.

    python data/prune.py

A student that is smaller than its teacher, of one origin with it, and damaged: what it lacks can be taught in a hundred steps,
so studies that compare methods have something to measure. Depth pruning before distillation: Minitron, arXiv 2407.14679.
"""

from pathlib import Path

from transformers import AutoModelForImageTextToText, AutoProcessor

MODELS = Path(__file__).parent / "models"
LAYER = 1  # counted from 0; without the first or the last layer nothing is left, without the third a little less


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
    prune()
