"""cdn-statistical: StatsD in; mergeable quantiles, distinct counts, heavy hitters and change points out."""
