"""Geometry of a weight update D = W - W0: size, sparsity, rank, and location in the weights W0.

`measure` compares two tensors, `compare` two checkpoints; neither needs the training run.

Source: "Dense Supervision, Sparse Updates: On the Sparsity and Geometry of On-Policy Distillation" (arXiv 2606.13657),
metrics as in its published code. Three additions, since each number alone is misleading:
- **Precision.** Everything is measured in float32 and with both checkpoints rounded to bfloat16. AdamW in float32
  changes nearly every weight; rounding removes changes below half a unit in the last place, and the rest looks sparse.
- **A random control** for each tensor: a Gaussian of the same norm, added to W0 and rounded in the same way. It equals
  the sum of as many random steps in float32. It does not model training in bfloat16, where rounding removes most steps
  one by one. A property that the control shares is not a result of training.
- **Groups**: language model, connector and vision tower are separate.
The published code also counts |D| <= eps ("isclose"). This module does not: no eps is a float32 number, so the count
always equals that of |D| < eps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
import torch

from workbench.analysis.geometry.modules import GROUPS, group_of
from workbench.policies.tensors import PRECISIONS, Weights, check_same_architecture
from workbench.seeding import derive_seed

EPSILONS = (1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # |D| below
TAUS = (1e-4, 1e-3, 1e-2)  # |D| below tau x root mean square of W0
COORDINATES = (0.001, 0.01, 0.05)  # largest coordinates
RANKS = (1e-6, 1e-5, 1e-4)  # singular values above t x the largest
TOPS = (1, 2, 4, 8, 16, 32, 64)  # directions
TOP_SHARES = (0.01, 0.05, 0.1)
RATIOS = (0.01, 0.05, 0.1, 0.2)  # of min(m, n), or of coordinates
ATOLS = (0.0, 1e-5)
MAX_EXACT = 4096  # largest smaller side for which all singular values are computed
UPDATE, RANDOM = "update", "random"
SHOWN_PRECISIONS = ("float32", "bfloat16")


def columns() -> dict[str, str]:
    """Every metric with its meaning, in order. Shares are from 0 to 1."""
    meanings = {
        "delta_norm": "||D||, Frobenius",
        "source_norm": "||W0||, Frobenius",
        "relative_delta": "||D|| / ||W0||",
        "energy_share": "share of all tensors' ||D||^2",
        "largest": "largest |D|",
        "unchanged": "share of coordinates with D = 0",
    }
    meanings |= {f"below_{epsilon:.0e}": f"share of coordinates with |D| < {epsilon:g}" for epsilon in EPSILONS}
    meanings |= {
        f"below_rms_{tau:.0e}": f"share of coordinates with |D| < {tau:g} x root mean square of W0" for tau in TAUS
    }
    meanings |= {
        f"energy_coordinates_{_percent(share)}": f"share of ||D||^2 in the largest {share:.1%} of coordinates"
        for share in COORDINATES
    }
    meanings |= {
        f"rank_{threshold:.0e}": f"share of D's singular values above {threshold:g} x the largest"
        for threshold in RANKS
    }
    meanings |= {
        "stable_rank": "||D||^2 / largest singular value^2",
        "effective_rank": "exp of the entropy of D's singular values over their sum",
    }
    meanings |= {f"energy_top_{num}": f"share of ||D||^2 in its {num} largest singular directions" for num in TOPS}
    meanings |= {
        f"energy_top_{_percent(share)}": f"the same, largest {share:.0%} of directions" for share in TOP_SHARES
    }
    for ratio in RATIOS:
        top = f"top {ratio:.0%} singular directions of W0"
        meanings[f"projection_{_percent(ratio)}"] = f"share of ||D||^2 inside the {top}, left and right"
        meanings[f"projection_left_{_percent(ratio)}"] = f"the same, left directions alone ({top})"
        meanings[f"projection_right_{_percent(ratio)}"] = f"the same, right directions alone ({top})"
        meanings[f"rotation_{_percent(ratio)}"] = (
            f"mean sine of the principal angles between the top {ratio:.0%} left subspaces of W0 and W"
        )
    meanings["spectral_drift"] = "||s(W) - s(W0)|| / ||s(W0)||, s = singular values"
    for kind, text in (("principal", "largest coordinates of the top-directions part of W0"), ("low", "smallest |W0|")):
        for ratio in RATIOS:
            for atol in ATOLS:
                end = f"{kind}_{_percent(ratio)}_{atol:.0e}"
                mask = f"the {ratio:.0%} of coordinates with the {text}"
                meanings[f"overlap_{end}"] = f"share of the coordinates with |D| > {atol:g} that are among {mask}"
                meanings[f"coverage_{end}"] = f"share of {mask} with |D| > {atol:g}"
                meanings[f"enrichment_{end}"] = (
                    f"overlap / share that the mask has of all coordinates; 1 = random ({end})"
                )
    return meanings


@dataclass(frozen=True)
class Geometry:
    """The result of `compare`.

    tensors   a row per tensor, precision (float32, bfloat16) and delta (update, random): location, shape and `columns`
    groups    the same per group and for "all": shares over all coordinates, summed energies, spectra as medians over
              matrices
    left_out  tensors that are not floating-point
    """

    tensors: pd.DataFrame
    groups: pd.DataFrame
    left_out: tuple[str, ...]


def compare(
    source: Weights,
    target: Weights,
    *,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = lambda name: None,
) -> Geometry:
    """Measure every tensor of two checkpoints of one architecture. Holds one pair of tensors in memory at a time.

    seed  of the random control and of the approximate decomposition of large matrices
    say   called with the name of each tensor

    Raises: PolicyError naming the first tensors with different names or shapes, or a file that cannot be read.
    """
    check_same_architecture(source, target)
    rows = []
    for name in source.shapes:
        say(name)
        before, after = (weights.tensor(name).to(device) for weights in (source, target))
        location = group_of(name)
        facts = {
            "tensor": name,
            "group": location.group,
            "part": location.part,
            "module": location.module,
            "layer": location.layer,
        }
        for metrics in measure_all(before, after, seed=derive_seed("geometry", seed, name)):
            rows.append({**facts, "shape": "x".join(map(str, before.shape)), "coordinates": before.numel(), **metrics})
    frame = pd.DataFrame(rows)
    total = frame.groupby(["precision", "delta"])["delta_norm"].transform(lambda norms: (norms**2).sum())
    frame["energy_share"] = (frame["delta_norm"] ** 2 / total).where(total > 0)
    order = ["tensor", "group", "part", "module", "layer", "shape", "coordinates", "precision", "delta"]
    frame = frame.reindex(columns=[*order, *columns()])
    return Geometry(frame, summarize(frame), tuple(dict.fromkeys([*source.left_out, *target.left_out])))


def measure_all(before: torch.Tensor, after: torch.Tensor, *, seed: int = 0) -> Iterator[dict]:
    """Measure the update of a tensor of any shape and its random control in both precisions: four rows."""
    control = random_like(before, after, seed=seed)
    for precision in SHOWN_PRECISIONS:
        spectrum = _Spectrum(_rounded(before, precision), seed)
        for delta, moved in ((UPDATE, after), (RANDOM, control)):
            yield {"precision": precision, "delta": delta, **_measured(spectrum, _rounded(moved, precision))}


def measure(
    before: torch.Tensor, after: torch.Tensor, *, precision: str = "float32", seed: int = 0
) -> dict[str, float | None]:
    """All metrics of one pair of tensors of equal shape, both rounded to `precision` first. Undefined metrics are None.

    Tensors with more than two dimensions are flattened to matrices, first dimension by the rest; vectors have no
    spectrum. If the smaller side exceeds MAX_EXACT, a randomized decomposition with `seed` gives the top directions,
    and metrics of all singular values are None.
    """
    return _measured(_Spectrum(_rounded(before, precision), seed), _rounded(after, precision))


def random_like(before: torch.Tensor, after: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
    """W0 plus a Gaussian with the norm of W - W0, of their shape, in float32: the control for chance and rounding."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(before.shape, generator=generator).to(before.device)
    size = (after.double() - before.double()).norm() / noise.double().norm().clamp(min=1e-300)
    return before.float() + noise * size.float()


def summarize(tensors: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Geometry.groups`."""
    rows = []
    for (precision, delta), subset in tensors.groupby(["precision", "delta"], sort=False):
        for group in [*GROUPS, "all"]:
            part = subset if group == "all" else subset[subset["group"] == group]
            if len(part):
                rows.append({"group": group, "precision": precision, "delta": delta, **_summary(part)})
    return pd.DataFrame(rows)


def _summary(part: pd.DataFrame) -> dict:
    counted = ("unchanged", *(name for name in columns() if name.startswith("below_")))
    energies = [float((part[name] ** 2).sum()) for name in ("delta_norm", "source_norm")]
    summary: dict[str, object] = {"tensors": len(part), "coordinates": int(part["coordinates"].sum())}
    for name in columns():
        if name in counted:
            summary[name] = float((part[name] * part["coordinates"]).sum() / part["coordinates"].sum())
        elif name in ("delta_norm", "source_norm"):
            summary[name] = energies[name == "source_norm"] ** 0.5
        elif name == "relative_delta":
            summary[name] = (energies[0] / energies[1]) ** 0.5 if energies[1] else None
        elif name in ("energy_share", "largest"):
            summary[name] = part[name].sum(min_count=1) if name == "energy_share" else part[name].max()
        else:
            summary[name] = part[name].astype(float).median()
    return summary


def _percent(share: float) -> str:
    return f"{100 * share:g}pct"


def _rounded(tensor: torch.Tensor, precision: str) -> torch.Tensor:
    return tensor.to(PRECISIONS[precision]).float()


def _count(ratio: float, of: int) -> int:
    return max(1, round(ratio * of))


class _Spectrum:
    """A source tensor with its singular vectors, computed once for update and control."""

    def __init__(self, weight: torch.Tensor, seed: int) -> None:
        self.weight, self.seed = weight, seed
        self.matrix = weight.double().flatten(1) if weight.ndim >= 2 else None
        if self.matrix is None:
            return
        self.smaller = min(self.matrix.shape)
        self.is_exact = self.smaller <= MAX_EXACT
        self.left, self.values, self.right = _decomposed(self.matrix, self.is_exact, seed)
        self.masks = {}
        for ratio in RATIOS:
            k = _count(ratio, self.smaller)
            part = (self.left[:, :k] * self.values[:k]) @ self.right[:, :k].T
            self.masks["principal", ratio] = _largest(part.abs(), ratio)
            self.masks["low", ratio] = _largest(-self.matrix.abs(), ratio)


def _decomposed(matrix: torch.Tensor, is_exact: bool, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if is_exact:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return left, values, right.mT
    with torch.random.fork_rng([matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        return torch.svd_lowrank(matrix, q=_count(max(RATIOS), min(matrix.shape)), niter=4)


def _largest(values: torch.Tensor, ratio: float) -> torch.Tensor:
    """Mask of the largest `ratio` of the values, with all values equal to the smallest of them."""
    flat = values.flatten()
    kept = _count(ratio, flat.numel())
    return values >= flat.kthvalue(flat.numel() - kept + 1).values


def _measured(source: _Spectrum, after: torch.Tensor) -> dict[str, float | None]:
    delta = (after - source.weight).double()
    size, energy = delta.abs(), float(delta.square().sum())
    norm = float(source.weight.double().norm())
    rms = norm / max(1, delta.numel()) ** 0.5
    metrics: dict[str, float | None] = {
        "delta_norm": energy**0.5,
        "source_norm": norm,
        "relative_delta": energy**0.5 / norm if norm else None,
        "largest": float(size.max()),
        "unchanged": _share(size == 0),
    }
    metrics |= {f"below_{epsilon:.0e}": _share(size < epsilon) for epsilon in EPSILONS}
    metrics |= {f"below_rms_{tau:.0e}": _share(size < tau * rms) for tau in TAUS}
    for share in COORDINATES:
        top = size.flatten().topk(_count(share, size.numel())).values
        metrics[f"energy_coordinates_{_percent(share)}"] = float(top.square().sum()) / energy if energy else None
    if source.matrix is not None and energy:
        metrics |= _spectral(source, delta.flatten(1), energy)
    if source.matrix is not None:
        metrics |= _overlaps(source, size.flatten(1))
    return metrics


def _spectral(source: _Spectrum, delta: torch.Tensor, energy: float) -> dict[str, float | None]:
    """Spectrum of the delta, and its overlap with the source's singular directions."""
    values = torch.linalg.svdvals(delta) if source.is_exact else _decomposed(delta, False, source.seed)[1]
    squares = values.square()
    metrics: dict[str, float | None] = {"stable_rank": energy / float(squares[0])}
    if source.is_exact:
        metrics |= {f"rank_{threshold:.0e}": _share(values > threshold * values[0]) for threshold in RANKS}
        shares = values / values.sum()
        metrics["effective_rank"] = float(torch.special.entr(shares).sum().exp())
    metrics |= {f"energy_top_{num}": float(squares[:num].sum()) / energy for num in TOPS}
    metrics |= {
        f"energy_top_{_percent(share)}": float(squares[: _count(share, source.smaller)].sum()) / energy
        for share in TOP_SHARES
    }
    left, after_values, _ = _decomposed(source.matrix + delta, source.is_exact, source.seed)
    in_left, in_right = source.left.T @ delta, delta @ source.right
    in_both = in_left @ source.right
    for ratio in RATIOS:
        k = _count(ratio, source.smaller)
        metrics[f"projection_{_percent(ratio)}"] = float(in_both[:k, :k].square().sum()) / energy
        metrics[f"projection_left_{_percent(ratio)}"] = float(in_left[:k].square().sum()) / energy
        metrics[f"projection_right_{_percent(ratio)}"] = float(in_right[:, :k].square().sum()) / energy
        metrics[f"rotation_{_percent(ratio)}"] = _mean_sine(source.left[:, :k], left[:, :k])
    length = float(source.values.norm())
    metrics["spectral_drift"] = (
        float((after_values - source.values).norm()) / length if source.is_exact and length else None
    )
    return metrics


def _mean_sine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean sine of the principal angles between two subspaces, from the part of one outside the other."""
    return float(torch.linalg.svdvals(second - first @ (first.T @ second)).clamp(max=1).mean())


def _overlaps(source: _Spectrum, size: torch.Tensor) -> dict[str, float | None]:
    metrics: dict[str, float | None] = {}
    for atol in ATOLS:
        moved = size > atol
        num_moved = int(moved.sum())
        for (kind, ratio), mask in source.masks.items():
            both, density = int((moved & mask).sum()), _share(mask)
            end = f"{kind}_{_percent(ratio)}_{atol:.0e}"
            metrics[f"overlap_{end}"] = both / num_moved if num_moved else None
            metrics[f"coverage_{end}"] = both / int(mask.sum())
            metrics[f"enrichment_{end}"] = both / num_moved / density if num_moved else None
    return metrics


def _share(mask: torch.Tensor) -> float:
    return float(mask.double().mean())
