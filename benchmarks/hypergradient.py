"""The bias of the one-step hypergradient against differentiation through K unrolled steps, and of its finite differences.

On problems of `leebert.data.synthetic.known_weights`, in float64, without dropout: θ takes K steps of SGD from a point after
some training, under uniform weights w. The reference is dO(θ_K)/dw by autograd through all K steps, O being the mean
cross-entropy of the exits on a batch of other samples. Methods sum one-step hypergradients: in step k they have the effect
of w on O(θ_k) through the last step alone, and ignore that earlier steps moved θ, too. Reported are the cosine of the two
vectors over the M² weights, the share of weights whose sign agrees, and the ratio of norms, medians over --rounds seeds.

For the last step alone, one-sided and central differences (leebert.optim.hypergradient) are compared with autograd.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from common import Result, parser, start

PROBLEMS = ("constant", "outdated", "perfect", "noisy_labels")
STEPS = (1, 2, 5, 10, 20)
RATE, BATCH, BEFORE, RADIUS = 0.1, 16, 40, 0.01


class Small:
    """A problem's network and batches as functions of θ, a tuple of float64 tensors."""

    def __init__(self, name: str, seed: int) -> None:
        import torch

        from leebert.config import TrainConfig
        from leebert.data.synthetic.known_weights import PROBLEMS as KNOWN
        from leebert.look_ahead import _Recorder
        from leebert.objective import ExitObjective

        problem = KNOWN[name]
        self.model = problem.model(seed).double().eval()
        self.recorder = _Recorder(self.model)
        self.objective = ExitObjective.of(
            TrainConfig(temperature=problem.training().get("temperature", 1.0)), problem.num_exits
        )
        self.state = self.objective.initial(torch.Generator())
        self.samples = problem.samples(seed)
        self.order = torch.Generator().manual_seed(seed)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.theta = tuple(p.detach().clone().requires_grad_() for p in self.model.parameters())

    def batches(self) -> Iterator[tuple[Any, Any]]:
        """Yield B1 and B2 from fixed halves of the samples."""
        import torch

        half = len(self.samples) // 2
        while True:
            chosen = torch.randperm(half, generator=self.order)[:BATCH]
            yield tuple(  # type: ignore[misc]
                {n: t.double() if t.is_floating_point() else t for n, t in self.samples.collate(i.numpy()).items()}
                for i in (chosen, chosen + half)
            )

    def record(self, theta: Sequence[Any], batch: Any) -> Any:
        """Run the network at θ."""
        import torch

        named = {f"model.{name}": p for name, p in zip(self.names, theta, strict=True)}
        return torch.func.functional_call(self.recorder, named, (batch,))

    def terms(self, theta: Sequence[Any], batch: Any, teacher: Any = None) -> Any:
        """Compute l, (n,), at θ."""
        return self.objective.terms(self.record(theta, batch), self.state, teacher)

    def step(self, theta: Sequence[Any], weights: Any, batch: Any, graph: bool) -> tuple[Any, ...]:
        """Take a step of SGD."""
        import torch

        gradients = torch.autograd.grad(weights @ self.terms(theta, batch), theta, create_graph=graph)
        moved = tuple(p - RATE * g for p, g in zip(theta, gradients, strict=True))
        return moved if graph else tuple(p.detach().requires_grad_() for p in moved)


def measured(name: str, seed: int) -> Iterator[tuple[str, float]]:
    """Yield the figures of one seed."""
    import torch

    from leebert.optim.outer import OBJECTIVES

    outer = OBJECTIVES["ce"]
    small = Small(name, seed)
    stream = small.batches()
    uniform = torch.ones(small.objective.num_terms, dtype=torch.float64)
    theta = small.theta
    for _ in range(BEFORE):
        theta = small.step(theta, uniform, next(stream)[0], graph=False)
    pairs = [next(stream) for _ in range(max(STEPS))]
    held_out = pairs[-1][1]
    for count in STEPS:
        weights = uniform.clone().requires_grad_()
        at: tuple[Any, ...] = theta
        for batch, _ in pairs[:count]:
            at = small.step(at, weights, batch, graph=True)
        (unrolled,) = torch.autograd.grad(outer(small.record(at, held_out)), weights)
        summed, at = torch.zeros_like(uniform), theta
        for batch, _ in pairs[:count]:
            single = uniform.clone().requires_grad_()
            after = small.step(at, single, batch, graph=True)
            (one,) = torch.autograd.grad(outer(small.record(after, held_out)), single)
            summed += one
            at = tuple(p.detach().requires_grad_() for p in after)
        yield f"{count} steps: cosine", float(torch.cosine_similarity(summed, unrolled, dim=0))
        yield f"{count} steps: equal signs", float((summed.sign() == unrolled.sign()).double().mean())
        yield f"{count} steps: ratio of norms", float(summed.norm() / unrolled.norm())
        if count == 1:
            yield from differences(small, theta, uniform, pairs[0][0], held_out, unrolled)


def differences(
    small: Small, theta: Any, weights: Any, batch: Any, held_out: Any, exact: Any
) -> Iterator[tuple[str, float]]:
    """Yield the relative errors of finite differences in one step."""
    import torch

    from leebert.optim.outer import OBJECTIVES

    after = small.step(theta, weights, batch, graph=False)
    v = torch.autograd.grad(OBJECTIVES["ce"](small.record(after, held_out)), after)
    direction = [-RATE * x for x in v]
    distance = RADIUS / torch.stack([d.square().sum() for d in direction]).sum().sqrt()
    with torch.no_grad():
        teacher = small.record(theta, batch)
        up, here, down = (
            small.terms([p + sign * distance * d for p, d in zip(theta, direction, strict=True)], batch, teacher)
            for sign in (1, 0, -1)
        )
    yield "central difference: relative error", float(((up - down) / (2 * distance) - exact).norm() / exact.norm())
    yield "one-sided difference: relative error", float(((up - here) / distance - exact).norm() / exact.norm())


def main() -> None:
    options = parser(__doc__, rounds=10).parse_args()
    start(options.threads)
    result = Result("hypergradient", options)
    for name in PROBLEMS:
        figures: dict[str, list[float]] = {}
        for seed in range(options.rounds):
            for key, value in measured(name, seed):
                figures.setdefault(key, []).append(value)
        for key, values in figures.items():
            result.figure(f"{name}: {key}", values)
        assert statistics.median(figures["1 steps: cosine"]) > 0.999
    result.end("fp64")


if __name__ == "__main__":
    main()
