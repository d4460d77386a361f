"""Equations 1-4 of the paper as functions of the exits' logits: M exits, B samples, K classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


def cross_entropy_per_exit(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute each exit's term of eq. 1.

    Args:
        logits: (M, B, K).
        labels: (B,), or (M, B) if exits have labels of their own.

    Returns:
        (M,) mean cross-entropies.
    """
    m, b, k = logits.shape
    losses = F.cross_entropy(logits.reshape(m * b, k), labels.expand(m, b).reshape(m * b), reduction="none")  # (M·B,)
    return losses.view(m, b).mean(dim=1)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Eq. 1, L_CE(x, y) = Σ_m CE(p_m(x), y): a sum over exits, mean over samples.

    Args:
        logits: (M, B, K) of all exits.
        labels: (B,) class ids.

    Returns:
        A scalar, in nats.
    """
    return cross_entropy_per_exit(logits, labels).sum()


def tempered(probabilities: torch.Tensor, temperature: float) -> torch.Tensor:
    """Eq. 3, t_k^{1/τ} / Σ_k' t_k'^{1/τ}, over the last dimension; equal to softmax(logits / τ).

    Args:
        probabilities: (…, K) distributions t.
        temperature: τ, above 0.

    Returns:
        (…, K) distributions.
    """
    return F.softmax(probabilities.log() / temperature, dim=-1)


def distillation_pairs(
    logits: torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    *,
    detach_teacher: bool = True,
    kl: bool = False,
    teacher_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Eq. 2 for every pair of student and teacher exits.

    L_KD(t, s) = −τ² Σ_k t_k^{1/τ} log s_k^{1/τ}, a soft cross-entropy, mean over samples.

    Args:
        logits: (M, B, K) of the students.
        temperature: τ.
        detach_teacher: Whether teachers get no gradient.
        kl: Subtract the teacher's entropy.
        teacher_logits: (T, B, K) of the teachers; None: the students' own logits, T = M. The diagonal, an exit as its own
            teacher, is for the caller to mask.

    Returns:
        (M, T), entry [m, t] is L_KD(p_t, p_m).
    """
    scale = temperature**2 / logits.shape[1]
    student = F.log_softmax(logits / temperature, dim=-1)  # (M, B, K)
    log_teacher = student if teacher_logits is None else F.log_softmax(teacher_logits / temperature, dim=-1)
    if detach_teacher:
        log_teacher = log_teacher.detach()
    teacher = log_teacher.exp()  # (T, B, K)
    pairs = -scale * torch.einsum("tbk,mbk->mt", teacher, student)
    if kl:
        pairs = pairs + scale * torch.einsum("tbk,tbk->t", teacher, log_teacher)
    return pairs


# T(m), section 3.1: (M, M) masks; entry [m, t] is True if exit t is a teacher of exit m.


def lae(num_exits: int) -> torch.Tensor:
    """Learning from all exits: all other exits are teachers."""
    return ~torch.eye(num_exits, dtype=torch.bool)


def lle(num_exits: int) -> torch.Tensor:
    """Learning from later exits; the last exit has no teacher."""
    return torch.triu(torch.ones(num_exits, num_exits, dtype=torch.bool), diagonal=1)


def last(num_exits: int) -> torch.Tensor:
    """The last exit is the teacher of all others (FastBERT's self-distillation)."""
    mask = torch.zeros(num_exits, num_exits, dtype=torch.bool)
    mask[:-1, -1] = True
    return mask


def no_teachers(num_exits: int) -> torch.Tensor:
    """No distillation, eq. 1 only."""
    return torch.zeros(num_exits, num_exits, dtype=torch.bool)


TEACHERS: dict[str, Callable[[int], torch.Tensor]] = {"lae": lae, "lle": lle, "last": last, "none": no_teachers}


def distillation(
    logits: torch.Tensor,
    teachers: torch.Tensor,
    temperature: float = 1.0,
    *,
    detach_teacher: bool = True,
    kl: bool = False,
) -> torch.Tensor:
    """Eq. 4, Σ_m Σ_{t∈T(m)} L_KD(p_t, p_m) / (M·|T(m)|): a mean over exits of a mean over teachers; a scalar.

    Args:
        logits: (M, B, K).
        teachers: (M, M) mask, [student, teacher].
        temperature: τ.
        detach_teacher: Whether teachers get no gradient.
        kl: Subtract the teachers' entropies.
    """
    pairs = distillation_pairs(logits, temperature, detach_teacher=detach_teacher, kl=kl)
    return (pairs * mean_over_teachers(teachers).to(pairs)).sum()


def mean_over_teachers(teachers: torch.Tensor) -> torch.Tensor:
    """Return 1 / (M·|T(m)|) at each pair of an (M, T) mask, 0 elsewhere; float64 of the same shape."""
    count = teachers.sum(dim=1, keepdim=True).clamp(min=1)
    return teachers.double() / (teachers.shape[0] * count)
