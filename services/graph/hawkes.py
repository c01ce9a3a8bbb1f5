"""Events that bring on others: a Hawkes process with an exponential kernel, fitted by maximum likelihood. Pure.

The intensity is λ(t) = μ + Σ α·exp(−β(t − tᵢ)) over the events before t. Likelihood and its recursion:
T. Ozaki, Maximum likelihood estimation of Hawkes' self-exciting point processes, Ann. Inst. Statist. Math. 31 (1979);
as in P. Laub, T. Taimre, P. Pollett, Hawkes Processes (2015), section 4. Its maximum is sought by
J. Nelder and R. Mead's simplex (1965), over the logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

LEAST = 10
"""Events; of fewer nothing can be told."""


class Fit(Struct, kw_only=True):
    """What is likeliest."""

    events: int
    duration_s: float
    mu_per_s: float
    """Events that come of themselves."""
    alpha_per_s: float
    """By how much each raises the intensity."""
    beta_per_s: float
    """How fast that decays."""
    branching_ratio: float
    """α/β: events that each one brings on, directly. From 1 on they never end."""
    half_life_s: float
    intensity_now_per_s: float
    log_likelihood: float
    poisson_log_likelihood: float
    """Of events that all come of themselves."""
    is_self_exciting: bool
    """Whether it is likelier by more than two parameters more explain (Akaike)."""


def log_likelihood(times: Sequence[float], end_s: float, mu: float, alpha: float, beta: float) -> float:
    """Of times in order, observed from 0 to end_s."""
    exp, log = math.exp, math.log
    total = -mu * end_s
    excited, last, tails = 0.0, times[0], 0.0
    for at, time_s in enumerate(times):
        if at:
            excited = exp(-beta * (time_s - last)) * (1.0 + excited)
        total += log(mu + alpha * excited)
        tails += 1.0 - exp(-beta * (end_s - time_s))
        last = time_s
    return total - alpha / beta * tails


def intensity(times: Sequence[float], now_s: float, mu: float, alpha: float, beta: float) -> float:
    """At now_s, of all events up to then."""
    return mu + alpha * sum(math.exp(-beta * (now_s - at_s)) for at_s in times)


def fit(times: Sequence[float], now_s: float | None = None) -> Fit:
    """The likeliest process; raises ValueError for a series that tells nothing.

    Observation begins with the first event, which is what the others are counted from, and ends at now_s.
    """
    ordered = sorted(times)
    if len(ordered) < LEAST:
        raise ValueError(f"it has {len(ordered)} events, and nothing can be told of fewer than {LEAST}")
    begin_s = ordered[0]
    end_s = (now_s if now_s is not None else ordered[-1]) - begin_s
    if end_s < ordered[-1] - begin_s:
        raise ValueError("now_s is before the last event")
    if not 0 < end_s < math.inf:
        raise ValueError("all events are at the same time")
    series = [at_s - begin_s for at_s in ordered]
    count = len(series)
    scale = end_s / count
    """Mean gap: in its unit all parameters are about 1."""
    scaled = [at_s / scale for at_s in series]
    end = end_s / scale

    def cost(point: Sequence[float]) -> float:
        if any(abs(one) > 25 for one in point):
            return math.inf
        mu, branching, beta = map(math.exp, point)
        return -log_likelihood(scaled, end, mu, branching * beta, beta)

    best, value = min(
        (_simplex(cost, (math.log(0.5), math.log(0.5), math.log(start))) for start in (0.5, 20.0)),
        key=lambda found: found[1],
    )
    mu, branching, beta = map(math.exp, best)
    mu, beta = mu / scale, beta / scale
    poisson = count * math.log(count / end_s) - count
    likelihood = -value - count * math.log(scale)
    return Fit(
        events=count,
        duration_s=end_s,
        mu_per_s=mu,
        alpha_per_s=branching * beta,
        beta_per_s=beta,
        branching_ratio=branching,
        half_life_s=math.log(2) / beta,
        intensity_now_per_s=intensity(series, end_s, mu, branching * beta, beta),
        log_likelihood=likelihood,
        poisson_log_likelihood=poisson,
        is_self_exciting=likelihood - 3 > poisson - 1,
    )


def _simplex(
    cost: Callable[[Sequence[float]], float], start: Sequence[float], steps: int = 400
) -> tuple[list[float], float]:
    """Where the cost is least, and how much it is there."""
    size = len(start)
    points = [list(start)] + [
        [one + (1.0 if at == moved else 0.0) for at, one in enumerate(start)] for moved in range(size)
    ]
    ranked = sorted(((cost(point), point) for point in points), key=lambda found: found[0])
    for _ in range(steps):
        if abs(ranked[-1][0] - ranked[0][0]) < 1e-9 * (1 + abs(ranked[0][0])):
            break
        centre = [sum(point[at] for _, point in ranked[:-1]) / size for at in range(size)]
        worst_cost, worst = ranked[-1]

        def along(by: float, centre: list[float] = centre, worst: list[float] = worst) -> tuple[float, list[float]]:
            point = [middle + by * (middle - bad) for middle, bad in zip(centre, worst, strict=True)]
            return cost(point), point

        moved = along(1.0)
        if moved[0] < ranked[0][0]:
            further = along(2.0)
            moved = min(moved, further, key=lambda found: found[0])
        elif moved[0] >= ranked[-2][0]:
            moved = along(0.5) if moved[0] < worst_cost else along(-0.5)
        if moved[0] < worst_cost:
            ranked[-1] = moved
        else:
            best = ranked[0][1]
            shrunk = [[(near + one) / 2 for near, one in zip(best, point, strict=True)] for _, point in ranked[1:]]
            ranked = [ranked[0], *((cost(point), point) for point in shrunk)]
        ranked.sort(key=lambda found: found[0])
    return ranked[0][1], ranked[0][0]
