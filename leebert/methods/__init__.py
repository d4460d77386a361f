"""Every method by name, as data: where it comes from, what it trains, how it exits, what it costs, what it is told.

No torch here, so that configurations are checked and `leebert methods` answers at once. What a method does stands in
:mod:`leebert.methods` and :mod:`leebert.optim`: :func:`leebert.stages.method` finds it by `stages`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from leebert.exits import CRITERIA

Group = Literal["whole network", "static", "early exit", "learned weights"]

#: Options of every objective in which exits teach each other (section 3.1, eqs. 2-4).
_DISTILLATION = frozenset({"teachers", "temperature", "distillation", "detach_teacher"})
#: Options of every algorithm that learns ω (eqs. 7-9).
_OMEGA = frozenset({"lr_omega", "parametrisation", "omega_optimizer"})
_SAMPLED = _OMEGA | {"omega_forward"}
_CYCLES = _SAMPLED | {"cycle_length", "omega_in_cycle"}
#: Options of methods that train all their exits jointly.
_JOINT = frozenset({"finetune_first", "first_epochs", "gradient_equilibrium"})

#: Of a training configuration (:class:`leebert.config.TrainConfig`), the longest that each stage takes, in epochs, and the
#: arithmetic of its updates against plain fine-tuning's.
CostsOf = Callable[[Any], list[tuple[int, float]]]


def _at(cost: float) -> CostsOf:
    """One stage whose updates cost the same whatever is configured."""
    return lambda config: [(config.max_epochs, cost)]


_PLAIN = _at(1.0)


def _first(config: Any) -> tuple[int, float]:
    """A stage of plain fine-tuning, before others."""
    return config.first_epochs or config.max_epochs, 1.0


def _cuts(config: Any) -> tuple[int, float]:
    """The epochs of all rounds of cuts, which share `max_epochs` and have one each at least; the mean of what they keep."""
    rounds = config.prune_rounds
    return max(config.max_epochs, rounds), 1 - (1 - config.keep) * (rounds + 1) / (2 * rounds)


def _of_truncated(config: Any) -> list[tuple[int, float]]:
    return [(config.max_epochs, config.keep)]


def _of_layerdrop(config: Any) -> list[tuple[int, float]]:
    return [(config.max_epochs, 1 - config.layerdrop), (0, config.keep)]  # what is kept is only evaluated


def _of_headprune(config: Any) -> list[tuple[int, float]]:
    epochs, left = _cuts(config)
    return [_first(config), (epochs, 1 - (1 - left) / 3)]  # attention is a third of a layer


def _of_a_student(config: Any) -> list[tuple[int, float]]:
    return [_first(config), (config.max_epochs, 1 / 3 + config.keep)]


def _of_theseus(config: Any) -> list[tuple[int, float]]:
    both = max(config.max_epochs, 2)  # replacing and the successor alone, which share `max_epochs`
    return [_first(config), (both // 2, 2 / 3), (both - both // 2, config.keep)]


def _of_cost_eff(config: Any) -> list[tuple[int, float]]:
    first, (epochs, left) = _first(config), _cuts(config)
    return [first, (first[0], 4 / 3), (epochs, 1 / 3 + left), (config.max_epochs, 1 / 3 + config.keep)]


def _of_frozen(config: Any) -> list[tuple[int, float]]:
    return [_first(config), (config.max_epochs, 1 / 3)]


def _in_cycles(config: Any) -> list[tuple[int, float]]:
    return [(config.max_epochs, 1 + 2 / (3 * config.cycle_length))]


@dataclasses.dataclass(frozen=True)
class Method:
    """One method.

    source: whose it is. trains: what learns, in a few words. exits: the criterion that it was published with.
    cost: arithmetic of its training steps, stage by stage, against plain fine-tuning of the whole network (a forward is
    1 unit, a backward 2, so plain fine-tuning is 3; frozen layers have no gradients of weights, which are 1 of the 2).
    A pass over all rows before a cut is named, and not in the numbers. differs: what is not as in the original, and
    why. options: the fields of TrainConfig that only some methods read, and this one does. stages: `module:function`
    of its stages. costs: `cost` in numbers, without the stages that options ask for (`finetune_first`, `two_stage`); cuts are
    one stage in it, embeddings cost nothing, and of a short row attention is what its matrices are. omega_on_d1: whether
    ω also learns at λ1 from the batches of θ (CLO).
    """

    name: str
    title: str
    group: Group
    source: str
    trains: str
    exits: str
    cost: str
    differs: str = ""
    options: frozenset[str] = frozenset()
    stages: str = "leebert.stages:leebert"
    costs: CostsOf = _PLAIN
    omega_on_d1: bool = False

    @property
    def one_exit(self) -> bool:
        """Whether only the last exit is left."""
        return not CRITERIA[self.exits].early

    @property
    def tuned(self) -> bool:
        """Whether its criterion has no threshold that is good for every model: one is chosen for each."""
        return not self.one_exit and CRITERIA[self.exits].default is None

    @property
    def own_criterion(self) -> str | None:
        """The exit criterion that it was published with, where only the threshold is chosen for each model; else None."""
        return self.exits if self.tuned else None

    def as_dict(self) -> dict[str, Any]:
        """As JSON-ready values, for people: without where its code stands."""
        told = {**dataclasses.asdict(self), "options": sorted(self.options), "one_exit": self.one_exit}
        del told["stages"], told["costs"]
        return told


def _static(
    name: str, title: str, source: str, trains: str, cost: str, differs: str, options: set[str], costs: CostsOf
) -> Method:
    stages = f"leebert.methods.{name}:stages"
    return Method(name, title, "static", source, trains, "never", cost, differs, frozenset(options), stages, costs)


def _of_pabee(name: str, title: str, source: str, criterion: str, differs: str) -> Method:
    """An exit criterion of its own on exits that are trained as PABEE's."""
    trains = "as PABEE: everything, cross-entropies weighted by their layer"
    return Method(
        name, title, "early exit", source, trains, criterion, "1", differs, _JOINT, "leebert.methods.pabee:stages"
    )


_LEEBERT = "Zhu, ACL 2021"
# What the papers leave open, and why it is decided as it is (docs/decisions/parametrisation.md, omega-forwards.md).
_OPEN = "where the paper is silent: τ is 1, and no gradient goes into a teacher, as in the code of its peers"
_OMEGA_OPEN = f"{_OPEN}; weights are a softmax of ω over each exit's terms, since raw ones shrink and turn negative"
_D2_OPEN = f"{_OMEGA_OPEN}; forwards for ω have dropout as θ's, so that both descend on one loss"
_CLASSES = "classification only, since the tasks have classes: the original's regression is left out"

_ALL: tuple[Method, ...] = (
    Method(
        "finetune", "fine-tuning", "whole network", "Devlin et al., NAACL 2019",
        "everything, for the last exit", "never", "1",
        "optimiser, schedule and epochs are those of all methods here, so that they compare",
        frozenset(), "leebert.methods.finetune:stages",
    ),
    _static(
        "truncated", "first layers", "Sun et al., EMNLP 2019; Sajjad et al., 2020",
        "the first `keep` of the layers, for one exit", "keep",
        "`keep` is a share, so that it fits any depth; shared layers (ALBERT) are applied less often, no parameter goes",
        {"keep"}, _of_truncated,
    ),
    _static(
        "layerdrop", "LayerDrop", "Fan et al., ICLR 2020",
        "everything, layers skipped at random; evenly spaced ones are kept", "1 − layerdrop",
        "layers are skipped in fine-tuning alone, since nothing is pretrained here; the original skips them in pretraining, too; "
        "`keep` sets how many stay, every second one in the original; shared layers (ALBERT): applications are skipped, no "
        "parameter goes", {"keep", "layerdrop"}, _of_layerdrop,
    ),
    _static(
        "headprune", "head pruning", "Michel et al., NeurIPS 2019",
        "everything; then the least important heads are cut, and the rest is trained on",
        "1, less after each cut; a pass over all rows at each",
        "a stage of training after each of `prune_rounds` cuts, so that the others can make up for it; a layer "
        "keeps one head at least, since without any it would be another network; shared layers (ALBERT): a head goes from all applications at once", {"keep", "prune_rounds", "first_epochs"},
        _of_headprune,
    ),
    _static(
        "distilled", "DistilBERT-style student", "Sanh et al., 2019",
        "fine-tuning; then evenly spaced layers of it, taught by it", "1, then 1/3 + keep",
        "distilled for the task only, since nothing is pretrained here: soft and hard labels, and the cosine of the last states; τ is "
        "`temperature`, 1 unless set; shared layers (ALBERT): fewer applications of them, no parameter goes",
        {"keep", "first_epochs", "alpha", "temperature"}, _of_a_student,
    ),
    _static(
        "pkd", "BERT-PKD", "Sun et al., EMNLP 2019",
        "fine-tuning; then its first layers, which imitate states of evenly spaced layers of it",
        "1, then 1/3 + keep", "its layers start from the teacher's, not from the pretrained encoder's, so that they need fewer epochs; the states are what the exits see, since not every encoder is read at CLS (the original's is, `pooling: cls`); "
        "the distillation term sums over classes, as the paper's equation does: K times that of the published code, which averages over them; the states' "
        "distance is the published code's mean, to which its values of β (10 to 1000) belong, where the paper's eq. 7 sums; "
        "τ is `temperature`, 1 unless set, so that it is searched as any other option, where the original searches 5, 10 and 20; shared layers (ALBERT): fewer applications of them, no parameter goes",
        {"keep", "first_epochs", "alpha", "beta", "temperature"}, _of_a_student,
    ),
    _static(
        "theseus", "BERT-of-Theseus", "Xu et al., EMNLP 2020",
        "fine-tuning; then its first layers, each in place of a group of its layers at random; then alone",
        "1, then up to 2/3, then keep", "the chance of replacement rises linearly from `replacing_rate` to 1 over the second "
        "stage, whatever its length, where the original counts steps; the predecessor's layers run without dropout, as every teacher "
        "here, where the original's have it; shared layers "
        "(ALBERT): predecessor and successor have a copy of them each",
        {"keep", "first_epochs", "replacing_rate"}, _of_theseus,
    ),
    Method(
        "cost-eff", "COST-EFF", "early exit", "Shen et al., EMNLP 2022",
        "fine-tuning; an exit on every layer, taught by it; then heads, inner width and embedding rank are cut round by "
        "round, each exit taught by the same exit of the uncut network", "entropy",
        "1, then 4/3, then down to 1/3 + keep; a pass over all rows at each cut",
        "rounds of equal cuts at one rate, since they must share `max_epochs`; the original cuts a head per round and raises the rate; "
        "the states' loss sums over embeddings and layers, as the original's does; states are imitated throughout the assistant's stage, not in its first third alone, which is one objective less; they alone are in "
        "half of a round for every task, in 0.7 of it for the original's larger ones; gradient "
        "equilibrium is off unless `gradient_equilibrium` asks for it, as for all methods; shared layers (ALBERT): a cut goes through all applications at once, and embeddings that are factorised already stay", frozenset({"keep", "prune_rounds", "first_epochs", "temperature", "gradient_equilibrium"}),
        "leebert.methods.cost_eff:stages", _of_cost_eff,
    ),
    Method(
        "deebert", "DeeBERT", "early exit", "Xin et al., ACL 2020",
        "the backbone for the last exit; then, frozen, the other exits", "entropy", "1, then 1/3",
        "linear exits on the shared pooler, not a pooler per exit (for ALBERT those were 7 M parameters)",
        frozenset({"first_epochs"}), "leebert.methods.deebert:stages", _of_frozen,
    ),
    Method(
        "shallow-deep", "Shallow-Deep", "early exit", "Kaya et al., ICML 2019",
        "everything, cross-entropies whose weights grow with the epochs", "confidence", "1",
        "an exit on every layer, since the tables compare criteria on the same exits; weights by its share of the depth, which the original's "
        "six follow, too; on images exits see the mean over all positions, not "
        "a learnable mix of max and average pooling; where no exit is sure, the last one answers, not the surest",
        frozenset({"gradient_equilibrium"}), "leebert.methods.shallow_deep:stages",
    ),
    Method(
        "dbt", "distillation-based training", "early exit", "Phuong and Lampert, ICCV 2019",
        "everything, the last exit teaches at a temperature that rises", "confidence", "1",
        "the temperature rises while the teacher is more than halfway from guessing to certainty (the original's one half "
        "at 100 classes); without the original's constant factor, which only SGD that clips no gradient would see",
        frozenset({"alpha", "annealing", "temperature", "gradient_equilibrium"}), "leebert.methods.dbt:stages",
    ),
    Method(
        "pabee", "PABEE", "early exit", "Zhou et al., NeurIPS 2020",
        "everything, cross-entropies weighted by their layer, Σ m·CE_m / Σ m", "patience", "1",
        f"{_CLASSES}; rows leave one by one in a batch, where the original's code waits for all",
        _JOINT, "leebert.methods.pabee:stages",
    ),
    _of_pabee(
        "pcee-bert", "PCEE-BERT", "Zhang et al., Findings of NAACL 2022", "pcee",
        "the exit that is certain for the p-th time in a row answers: the authors' averaging of the p exits is off in their runs",
    ),
    _of_pabee(
        "f-pabee", "F-PABEE", "Gao et al., ICASSP 2023", "f-pabee",
        "similarity is the Jensen-Shannon divergence, which they find best, by its definition: their code leaves out two entropies",
    ),
    _of_pabee(
        "beem", "BEEM", "Bajpai and Hanawal, ICLR 2025", "beem",
        "weights grow with the layer (BEEM-C) and one threshold is for all exits: weights by accuracy and thresholds per exit need rows of "
        "their own; after a disagreement the score starts from the exit's own share, as in the paper and not in the code",
    ),
    Method(
        "fastbert", "FastBERT", "early exit", "Liu et al., ACL 2020; as in Zhu, ACL 2021",
        "everything, the last exit teaches", "patience", "1",
        "linear exits, trained jointly, as in Zhu (2021), whose row it is; `two_stage` is the original's: fine-tuning, then frozen, the exits alone by KL to "
        "the last; the original leaves by entropy / ln K (`normalised_entropy`)",
        frozenset({"temperature", "distillation", "detach_teacher", "two_stage", "first_epochs"}) | _JOINT,
        "leebert.methods.fastbert:stages",
    ),
    Method(
        "fastbert-clo-v2", "FastBERT-CLO-v2", "learned weights", _LEEBERT,
        "everything, the last exit teaches; ω by CLO-v2", "patience", "1 + 2 / 3C", _D2_OPEN,
        frozenset({"temperature", "distillation", "detach_teacher"}) | _CYCLES | _JOINT, costs=_in_cycles, omega_on_d1=True,
    ),
    Method(
        "lle", "LLE", "learned weights", _LEEBERT,
        "everything, later exits teach; ω by CLO-v2", "patience", "1 + 2 / 3C", _D2_OPEN,
        frozenset({"temperature", "distillation", "detach_teacher"}) | _CYCLES | _JOINT, costs=_in_cycles, omega_on_d1=True,
    ),
    Method(
        "rand", "LeeBERT-rand", "early exit", _LEEBERT,
        "everything, weights drawn once", "patience", "1", _OPEN, _DISTILLATION | _JOINT,
    ),
    Method(
        "uniform", "LeeBERT-uniform", "early exit", _LEEBERT,
        "everything, all weights 1", "patience", "1", _OPEN, _DISTILLATION | _JOINT,
    ),
    Method(
        "uniform-d1", "LeeBERT-uniform on D1", "early exit", "the control for learned weights; beyond the paper",
        "everything, all weights 1, on the same batches as BLO, hyper and CLO (D1)", "patience", "1",
        f"no paper's: what BLO, hyper and CLO are without learning ω, bit for bit, so that paired with it they differ by ω "
        f"alone; uniform trains on batches from all rows; {_OPEN}", _DISTILLATION | _JOINT,
    ),
    Method(
        "slo", "LeeBERT-SLO", "learned weights", _LEEBERT,
        "θ and ω on the same batches (eq. 7)", "patience", "1", _OMEGA_OPEN, _DISTILLATION | _OMEGA | _JOINT,
    ),
    Method(
        "blo", "LeeBERT-BLO", "learned weights", _LEEBERT,
        "θ on D1, ω on D2 (eq. 8)", "patience", "4/3", _D2_OPEN, _DISTILLATION | _SAMPLED | _JOINT, costs=_at(4 / 3),
    ),
    Method(
        "hyper", "LeeBERT-hyper", "learned weights", "the true hypergradient of eq. 8; beyond the paper",
        "θ on D1, ω on what its effect on θ does on D2", "patience", "8/3",
        f"no paper's: BLO without its approximation that θ's step does not depend on ω; {_D2_OPEN}", _DISTILLATION | _SAMPLED | {"finetune_first", "first_epochs"},
        costs=_at(8 / 3),
    ),
    Method(
        "clo-v1", "LeeBERT-CLO-v1", "learned weights", _LEEBERT,
        "θ on D1, ω on D1 and D2 (eq. 9, algorithm 1)", "patience", "5/3", _D2_OPEN, _DISTILLATION | _SAMPLED | _JOINT, costs=_at(5 / 3), omega_on_d1=True,
    ),
    Method(
        "clo-v2", "LeeBERT (CLO-v2)", "learned weights", _LEEBERT,
        "θ and ω on D1; on D2 once in C steps (algorithm 2)", "patience", "1 + 2 / 3C", _D2_OPEN, _DISTILLATION | _CYCLES | _JOINT, costs=_in_cycles, omega_on_d1=True,
    ),
)  # fmt: skip

#: The methods by the name that stands under `algorithm` in a configuration.
METHODS: dict[str, Method] = {method.name: method for method in _ALL}

_NOT_IN_TWO_STAGES = frozenset({"finetune_first", "distillation", "detach_teacher", "gradient_equilibrium"})

#: Options that only some methods read; all others apply to every method.
SPECIFIC: frozenset[str] = frozenset().union(*(method.options for method in _ALL))


def has_stages(config: Any) -> bool:
    """Whether a training configuration's method trains in several stages, so that its epochs don't compare."""
    return len(stage_costs(config)) > 1


def most_epochs(config: Any) -> int:
    """The epochs of all stages of a training configuration, without early stops."""
    return sum(epochs for epochs, _ in stage_costs(config))


def mean_cost(config: Any) -> float:
    """The arithmetic of an update against plain fine-tuning's, a mean over all stages' epochs without early stops."""
    return sum(epochs * cost for epochs, cost in stage_costs(config)) / most_epochs(config)


def stage_costs(config: Any) -> list[tuple[int, float]]:
    """The longest that each stage of a configuration takes, in epochs, and the arithmetic of its updates."""
    told = METHODS[config.algorithm]
    if "two_stage" in told.options and config.two_stage:
        return _of_frozen(config)
    costs = told.costs(config)
    return [_first(config), *costs] if "finetune_first" in told.options and config.finetune_first else costs


def applies(option: str, algorithm: str) -> bool:
    """Whether a training option changes anything under a method (C only for CLO-v2, λ2 where ω is learned)."""
    return option not in SPECIFIC or option in METHODS[algorithm].options


def idle(option: str, algorithm: str, options: Mapping[str, Any]) -> str:
    """Why an option that a method reads does nothing beside the others, of those that a stage depends on; else an empty text.

    options: all that are given; `...` for one that is searched. One that is given as its default is never in the way.
    """
    from leebert.config import TrainConfig  # which reads this module's table

    reads = METHODS[algorithm].options
    if options[option] == TrainConfig.model_fields[option].default:
        return ""
    first = [name for name in ("finetune_first", "two_stage") if name in reads]
    if option == "first_epochs" and first and not any(options.get(name) for name in first):
        return f"{algorithm} has no first stage without {' or '.join(first)}"
    if "two_stage" in reads and options.get("two_stage") is True and option in _NOT_IN_TWO_STAGES:
        return "two_stage is fine-tuning, and then the exits alone by KL to the last one, which gets no gradient"
    return ""
