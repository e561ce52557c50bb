"""Connected components of a graph whose edges are rows, by rounds of joining stars.

The two steps of a round are those of Kiveris et al., Connected components in MapReduce and beyond
(SoCC 2014): a node's neighbours are attached to the smallest of them. The number of rounds grows
with the logarithm of the longest chain, not with its length.
"""

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

NODE = "__spark_vision_node"
ROOT = "__spark_vision_root"
_SMALLEST = "__spark_vision_smallest"


def connect_nodes(edges: DataFrame) -> DataFrame:
    """Find the smallest node that each node is connected to.

    It runs at once, and keeps each round's rows on the executors.

    Args:
        edges: Two columns of one type: the nodes of each edge, in any order.

    Returns:
        `NODE` and `ROOT` for each node that is not itself the smallest of its component.
    """
    links = edges.toDF(NODE, ROOT)
    before = None
    while True:
        links = _join_small_stars(_join_large_stars(links)).localCheckpoint()
        marks = links.agg(F.count("*"), F.expr(f"bit_xor(xxhash64({NODE}, {ROOT}))")).head()
        if marks == before:
            return links
        before = marks


def _join_large_stars(links: DataFrame) -> DataFrame:
    """Attach each node's larger neighbours to the smallest of its neighbours and itself."""
    both = links.union(links.select(ROOT, NODE))
    smallest = F.least(F.min(ROOT).over(Window.partitionBy(NODE)), F.col(NODE))
    marked = both.withColumn(_SMALLEST, smallest).filter(F.col(ROOT) > F.col(NODE))
    return marked.select(F.col(ROOT).alias(NODE), F.col(_SMALLEST).alias(ROOT))


def _join_small_stars(links: DataFrame) -> DataFrame:
    """Attach each node and its smaller neighbours to the smallest of these."""
    down = links.select(F.greatest(NODE, ROOT).alias(NODE), F.least(NODE, ROOT).alias(ROOT))
    smallest = F.min(ROOT).over(Window.partitionBy(NODE))
    ends = F.explode(F.array(NODE, ROOT)).alias(NODE)
    attached = down.withColumn(_SMALLEST, smallest).select(ends, F.col(_SMALLEST).alias(ROOT))
    return attached.filter(F.col(NODE) != F.col(ROOT)).distinct()
