"""Algorithms give what networkx gives; the fitted process is the one that made the series."""

from __future__ import annotations

import math
import random

import networkx as nx
import pytest
from networkx.algorithms.link_analysis.pagerank_alg import _pagerank_python

from services.graph import algorithms, hawkes

GRAPH = nx.gnm_random_graph(200, 700, seed=4, directed=True)
SOURCES, TARGETS = [source for source, _ in GRAPH.edges], [target for _, target in GRAPH.edges]


def test_pagerank_and_betweenness() -> None:
    """Those of networkx; parallel relationships count in PageRank, as weights do."""
    ranked = algorithms.pagerank(200, SOURCES, TARGETS, [], 0.85)
    assert ranked == pytest.approx(_pagerank_python(GRAPH, tol=1e-12), abs=1e-8)
    doubled = GRAPH.copy()
    nx.set_edge_attributes(
        doubled, {step: 2.0 if step == (SOURCES[0], TARGETS[0]) else 1.0 for step in GRAPH.edges}, "w"
    )
    ranked = algorithms.pagerank(200, [*SOURCES, SOURCES[0]], [*TARGETS, TARGETS[0]], [], 0.85)
    assert ranked == pytest.approx(_pagerank_python(doubled, weight="w", tol=1e-12), abs=1e-8)
    between = algorithms.betweenness(200, [*SOURCES, SOURCES[0]], [*TARGETS, TARGETS[0]])
    assert between == pytest.approx(nx.betweenness_centrality(GRAPH))


def test_pagerank_is_as_good_in_a_large_graph() -> None:
    """Where a score is some millionths, and what comes in circles slowly: to a hundredth of each."""
    nodes = 20_000
    rng = random.Random(1)
    steps = {(rng.randrange(nodes), int(nodes * rng.random() ** 3)) for _ in range(3 * nodes)}
    steps |= {(node, node) for node in range(0, nodes, 10)}
    sources, targets = zip(*sorted(steps), strict=True)
    graph = nx.DiGraph(steps)
    graph.add_nodes_from(range(nodes))
    expected = _pagerank_python(graph, tol=1e-13, max_iter=500)
    assert algorithms.pagerank(nodes, sources, targets, [], 0.85) == pytest.approx(expected, rel=0.01)
    assert sum(algorithms.pagerank(2, [0], [1], [], 0.9999).values()) == pytest.approx(1)


@pytest.mark.parametrize("strong", [False, True])
def test_components(strong: bool) -> None:
    """The same sets."""
    find = nx.strongly_connected_components if strong else nx.weakly_connected_components
    found = algorithms.components(200, SOURCES, TARGETS, strong=strong)
    assert {frozenset(one) for one in found} == {frozenset(one) for one in find(GRAPH)}


def test_communities() -> None:
    """Cliques in a ring are found; of a random graph, as good a division as networkx', with the modularity told."""
    ring = nx.connected_caveman_graph(10, 8)
    sources, targets = [s for s, _ in ring.edges], [t for _, t in ring.edges]
    found, modularity = algorithms.louvain(80, sources, targets)
    assert len(found) == 10
    assert modularity == pytest.approx(nx.community.modularity(ring, found))

    many = nx.MultiGraph()
    many.add_nodes_from(range(200))
    many.add_edges_from([*zip(SOURCES, TARGETS, strict=True), (3, 3), (SOURCES[0], TARGETS[0])])
    edges = [(s, t) for s, t, _ in many.edges]
    found, modularity = algorithms.louvain(200, [s for s, _ in edges], [t for _, t in edges])
    assert sorted(node for one in found for node in one) == list(range(200))
    assert modularity == pytest.approx(nx.community.modularity(many, found))
    assert modularity > 0.95 * nx.community.modularity(many, nx.community.louvain_communities(many, seed=1))
    assert algorithms.louvain(3, [], []) == ([[0], [1], [2]], 0.0)


def test_rank_of_the_graphic_matroid() -> None:
    """Nodes less components; the basis is a spanning forest, by weight the heaviest."""
    drawn = random.Random(2)
    weights = [drawn.random() for _ in SOURCES]
    outcome = algorithms.matroid_rank(200, SOURCES, TARGETS, weights, 1000)
    touched = set(SOURCES) | set(TARGETS)
    parts = nx.number_weakly_connected_components(GRAPH.subgraph(touched))
    assert outcome.figures["rank"] == len(touched) - parts == len(outcome.chosen)
    assert outcome.figures["nullity"] == len(SOURCES) - outcome.figures["rank"]
    forest = nx.Graph([(SOURCES[at], TARGETS[at]) for at in outcome.chosen])
    assert nx.is_forest(forest)
    weighted = nx.Graph()
    for source, target, weight in zip(SOURCES, TARGETS, weights, strict=True):
        if not weighted.has_edge(source, target) or weighted[source][target]["weight"] < weight:
            weighted.add_edge(source, target, weight=weight)
    assert outcome.figures["basis_weight"] == pytest.approx(nx.maximum_spanning_tree(weighted).size(weight="weight"))
    assert algorithms.matroid_rank(3, [0, 1], [1, 2], [], 10).figures["is_independent"]
    assert not algorithms.matroid_rank(3, [0, 1, 0], [1, 2, 2], [], 10).figures["is_independent"]
    assert algorithms.matroid_rank(1, [0], [0], [], 10).figures["rank"] == 0


def series(mu: float, alpha: float, beta: float, end_s: float, seed: int) -> list[float]:
    """Of such a process, by thinning (Y. Ogata, 1981)."""
    drawn = random.Random(seed)
    at_s, excited = 0.0, 0.0
    times: list[float] = []
    while True:
        most = mu + excited
        gap_s = drawn.expovariate(most)
        at_s += gap_s
        if at_s > end_s:
            return times
        excited *= math.exp(-beta * gap_s)
        if drawn.random() * most <= mu + excited:
            times.append(at_s)
            excited += alpha


def test_the_process_is_found_again() -> None:
    """Its parameters from a series of it; and that events of chance bring on nothing."""
    times = series(0.5, 0.8, 1.6, 2000.0, seed=1)
    found = hawkes.fit([1e6 + at_s for at_s in times])
    assert found.mu_per_s == pytest.approx(0.5, rel=0.15)
    assert found.branching_ratio == pytest.approx(0.5, rel=0.15)
    assert found.beta_per_s == pytest.approx(1.6, rel=0.25)
    assert found.is_self_exciting
    drawn = random.Random(3)
    chance = hawkes.fit([drawn.uniform(0, 1000) for _ in range(500)])
    assert not chance.is_self_exciting
    assert chance.mu_per_s == pytest.approx(0.5, rel=0.2)


def test_likelihood_and_intensity_are_those_of_the_definition() -> None:
    """Against the double sum; and nothing near has a greater likelihood than what was found."""
    times = [0.0, *series(0.3, 0.9, 2.0, 200.0, seed=5)]
    end_s = times[-1] + 1

    def by_definition(mu: float, alpha: float, beta: float) -> float:
        total = -mu * end_s
        for at, time_s in enumerate(times):
            total += math.log(mu + alpha * sum(math.exp(-beta * (time_s - one)) for one in times[:at]))
            total -= alpha / beta * (1 - math.exp(-beta * (end_s - time_s)))
        return total

    for parameters in ((0.3, 0.9, 2.0), (1.0, 0.1, 5.0)):
        assert hawkes.log_likelihood(times, end_s, *parameters) == pytest.approx(by_definition(*parameters))
    found = hawkes.fit(times, end_s)
    best = by_definition(found.mu_per_s, found.alpha_per_s, found.beta_per_s)
    assert found.log_likelihood == pytest.approx(best)
    for factor in (0.95, 1.05):
        assert by_definition(found.mu_per_s * factor, found.alpha_per_s, found.beta_per_s) < best
        assert by_definition(found.mu_per_s, found.alpha_per_s * factor, found.beta_per_s) < best
        assert by_definition(found.mu_per_s, found.alpha_per_s, found.beta_per_s * factor) < best


@pytest.mark.parametrize("times", [[], [1.0] * 20, [float(n) for n in range(9)]])
def test_what_tells_nothing_is_refused(times: list[float]) -> None:
    """In words."""
    with pytest.raises(ValueError, match="events"):
        hawkes.fit(times)
