"""Connected components in Spark are those of a search through the graph."""

from itertools import pairwise

import numpy as np

from spark_vision.search.components import NODE, ROOT, connect_nodes


def components_by_search(edges):
    """The smallest node that each node can reach, where it is another."""
    neighbours = {}
    for one, other in edges:
        neighbours.setdefault(one, []).append(other)
        neighbours.setdefault(other, []).append(one)
    roots = {}
    for start in sorted(neighbours):
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node not in roots:
                roots[node] = start
                waiting += neighbours[node]
    return {node: root for node, root in roots.items() if node != root}


def test_chains_rings_and_random_graphs_are_connected(spark):
    random = np.random.default_rng(0)
    chain = random.permutation(60).tolist()
    edges = list(pairwise(chain))
    edges += [(1000 + each, 1000 + (each + 1) % 9) for each in range(9)]
    edges += [
        (2000 + int(one), 2000 + int(other)) for one, other in random.integers(0, 300, (150, 2))
    ]
    edges += [(3000, 3001), (3001, 3000), (3000, 3001), (4000, 4000)]
    found = connect_nodes(spark.createDataFrame(edges, "a int, b int")).collect()
    assert {row[NODE]: row[ROOT] for row in found} == components_by_search(edges)
    assert len(found) == len({row[NODE] for row in found})
