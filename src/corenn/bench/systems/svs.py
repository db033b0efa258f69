"""SVS, Intel's Scalable Vector Search: Vamana over full or compressed vectors."""

from __future__ import annotations

from typing import Any, ClassVar

from ...types import AnyArray, Float32s, Int64s
from .base import Options, Params, System, along, normalised

# Unit vectors under L2 rank as the cosine does, without a norm for every distance: the quicker way to ask.
DISTANCES = {"l2": "L2", "cosine": "L2", "ip": "MIP"}
COMPRESSIONS = {"lvq4": (4, 0), "lvq8": (8, 0), "lvq4x4": (4, 4), "lvq4x8": (4, 8)}


class Svs(System):
    """`svs.Vamana`. compression: none, lvq4, lvq8, lvq4x4 or lvq4x8; SVS refuses those on other makers' processors."""

    name = "svs"
    module = "svs"
    package = "scalable-vs"
    options: ClassVar[Options] = {"graph_max_degree": 64, "window_size": 200, "compression": "none"}
    index: Any

    def build(self, base: Float32s, metric: str, threads: int) -> None:
        """One call of `build`."""
        import svs

        parameters = svs.VamanaBuildParameters(
            alpha=0.95 if metric == "ip" else 1.2,
            graph_max_degree=self.option["graph_max_degree"],
            window_size=self.option["window_size"],
        )
        distance = getattr(svs.DistanceType, DISTANCES[metric])
        base = normalised(base) if metric == "cosine" else base
        self.index = svs.Vamana.build(parameters, self._data(base), distance, num_threads=threads)

    def _data(self, base: Float32s) -> Any:
        """The rows, or what compresses them; a loader reads them from a file."""
        import svs

        if self.option["compression"] == "none":
            return base
        primary, residual = COMPRESSIONS[self.option["compression"]]
        file = str(self.folder / "base.fvecs")
        svs.write_vecs(base, file)
        loader = svs.VectorDataLoader(file, svs.DataType.float32, dims=base.shape[1])
        return svs.LVQLoader(loader, primary=primary, residual=residual)

    def grid(self, k: int) -> list[Params]:
        """Sizes of the search window."""
        return along("search_window_size", k)

    def configure(self, **params: Any) -> None:
        """Set the window, and the threads of a search: SVS keeps those of the build otherwise."""
        self.index.search_window_size = params["search_window_size"]
        if self.index.num_threads != self.threads:
            self.index.num_threads = self.threads

    def query(self, queries: Float32s, k: int) -> Int64s:
        """One call."""
        ids: Int64s = self.index.search(queries, k)[0].view("int64")
        return ids

    def query_one(self, query: Float32s, k: int) -> AnyArray:
        """One call with a vector."""
        ids: AnyArray = self.index.search(query, k)[0]
        return ids.reshape(-1)
