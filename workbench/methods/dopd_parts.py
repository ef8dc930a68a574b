"""DOPD with parts removed: the ablations with which the paper measures them.

Source: Dual On-policy Distillation, arXiv 2606.30626, Tables 6 and 8. Views, routing and every other option are dopd's.
1. supervised: regimes that keep their losses; tokens of the others have no supervision (Table 6: HT, HT+LH, ...).
2. target: the policy that supervises all regimes: "teacher" ("without student source"), "self" (the privileged
   student), or "both" at half the weight each (Figure 3, without routing). Guess: the figure states no weights.
3. divergence and support: one for every regime instead of by regime ("without adaptive divergence / strategies").
4. Equal weights: beta_light=1 beta_weak=1. Table 6 compares Jensen-Shannon over the top-k; Table 8's row "without
   advantage-aware" is that with the teacher in all regimes.
"Without privileged input" is dopd with privilege=plain. Guess: with one target, each regime keeps its own top-k.
"""

from dataclasses import dataclass, replace
from typing import Annotated

from workbench.distill.divergences import Divergence
from workbench.distill.method import Loss, Method, Option, Regime
from workbench.errors import require_one_of
from workbench.methods import dopd


@dataclass(frozen=True)
class Options(dopd.Options):
    supervised: Annotated[str, Option('regimes that keep their supervision, joined by "+"')] = "LH+LL+HT+HS"
    target: Annotated[
        str,
        Option(
            "policy that supervises: by regime, one for all, or both", choices=("routed", "teacher", "self", "both")
        ),
    ] = "routed"
    divergence: Annotated[
        str, Option("one for each regime, or one for all", choices=("adaptive", "reverse_kl", "jensen_shannon"))
    ] = "adaptive"
    support: Annotated[
        str, Option("entries compared: one for each regime, or one for all", choices=("adaptive", "full", "top_k"))
    ] = "adaptive"


def build(options: Options) -> Method:
    method = dopd.build(options)
    supervised = options.supervised.split("+")
    for name in supervised:
        require_one_of("method.supervised: regime", name, method.regimes)
    regimes = {name: _part(regime, name in supervised, options) for name, regime in method.regimes.items()}
    return replace(method, name="dopd_parts", regimes=regimes)


def _part(regime: Regime, supervised: bool, options: Options) -> Regime:
    when = regime.meaning.partition(":")[0]
    if not supervised:
        return Regime((), f"{when}: no supervision")
    (loss,) = regime.losses
    kind = loss.divergence.kind if options.divergence == "adaptive" else options.divergence
    support = loss.divergence.support if options.support == "adaptive" else options.support
    of = loss.divergence.of if loss.divergence.top_k else "target"
    divergence = Divergence(kind)
    if support == "top_k":
        divergence = Divergence(kind, "top_k", top_k=options.top_k, of=of, tail=options.tail)
    targets = {"routed": (loss.target,), "both": ("teacher", "self")}.get(options.target, (options.target,))
    weight = loss.weight / len(targets)
    who = " and ".join("teacher" if target == "teacher" else "privileged student" for target in targets)
    return Regime(tuple(Loss(target, divergence, weight) for target in targets), f"{when}: {who}, weight {weight:g}")
