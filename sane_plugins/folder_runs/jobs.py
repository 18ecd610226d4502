"""What is computed of each network, as the columns of a row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sane_plugins.arguments import find_offer
from sane_plugins.autoencoder import fingerprint as model_fingerprint
from sane_plugins.features import EncodeOptions, load_model
from sane_plugins.fingerprints import fingerprint, pack_all, to_arrays
from sane_plugins.folder_runs.content import file_digest
from sane_plugins.health import check_network
from sane_plugins.properties import (
    AnyEstimate,
    AnyHead,
    PredictOptions,
    estimate_record,
    heads_like,
    load_heads,
)
from sane_plugins.weights import WeightGraph

if TYPE_CHECKING:
    import pyarrow as pa

    from sane_plugins.host import Host


class FolderJob(Protocol):
    """Something to compute of every network; it is pickled to workers."""

    name: ClassVar[str]

    def settings(self, host: Host) -> dict[str, Any]:
        """Return all that the result depends on, as plain data. Raises what makes every network fail."""

    def columns(self, host: Host) -> dict[str, pa.DataType]:
        """Return the columns of a row and their types."""

    def row(self, host: Host, graph: WeightGraph) -> dict[str, Any]:
        """Return the row of a network."""


@dataclass(frozen=True, kw_only=True)
class EmbedJob:
    """The embedding of each network, and one per layer; its latents are not kept."""

    name: ClassVar[str] = "embed"
    encoder: str = "sane"
    sane: Path | None = None
    device: str = "cpu"

    @property
    def options(self) -> EncodeOptions:
        """Return the options of one network."""
        return EncodeOptions(
            encoder=self.encoder, sane=self.sane, device=self.device, latents=False
        )

    def settings(self, host: Host) -> dict[str, Any]:
        """Return the encoder, and which SANE it is."""
        find_offer("encoder", self.encoder, host.encoders())
        uses_sane = self.encoder == "sane" or self.sane is not None
        model = model_fingerprint(load_model(EncodeOptions(sane=self.sane))) if uses_sane else None
        return {"encoder": self.encoder, "sane": model}

    def columns(self, host: Host) -> dict[str, pa.DataType]:  # noqa: ARG002
        """Return the columns of embeddings."""
        import pyarrow as pa

        numbers = pa.list_(pa.float32() if self.encoder == "sane" else pa.float64())
        return {
            "tokens": pa.int64(),
            "embedding": numbers,
            "layer_names": pa.list_(pa.string()),
            "layers": pa.list_(numbers),
        }

    def row(self, host: Host, graph: WeightGraph) -> dict[str, Any]:
        """Return the embeddings of a network."""
        encoding = host.encode(graph, self.options)
        return {
            "tokens": encoding.tokens,
            "embedding": encoding.embedding.detach().cpu().numpy(),
            "layer_names": [*encoding.names],
            "layers": [*encoding.layers.detach().cpu().numpy()],
        }


@dataclass(frozen=True, kw_only=True)
class PredictJob:
    """The properties of each network, a column each; with `force` guesses too (`properties.is_withheld`)."""

    name: ClassVar[str] = "predict"
    heads: Path | None = None
    like: str | None = None
    sane: Path | None = None
    device: str = "cpu"
    force: bool = False

    def settings(self, host: Host) -> dict[str, Any]:
        """Return which heads there are, of which zoo, which SANE, and whether guesses are told."""
        model = model_fingerprint(load_model(EncodeOptions(sane=self.sane)))
        own = None if self.heads is None else file_digest(self.heads)
        heads = self._heads(host)
        told = {"heads": own, "properties": sorted(heads), "sane": model, "force": self.force}
        if self.like is not None:
            heads_like(heads, self.like)
            told["like"] = self.like
        return told

    def columns(self, host: Host) -> dict[str, pa.DataType]:
        """Return a column per property."""
        import pyarrow as pa

        estimate = pa.struct(
            {
                "value": pa.float64(),
                "low": pa.float64(),
                "high": pa.float64(),
                "class": pa.string(),
                "set": pa.list_(pa.string()),
                "coverage": pa.float64(),
                "in_distribution": pa.bool_(),
                "typicality": pa.float64(),
                "withheld": pa.string(),
                "score": pa.float64(),
            }
        )
        return dict.fromkeys(sorted(self._heads(host)), estimate)

    def row(self, host: Host, graph: WeightGraph) -> dict[str, Any]:
        """Return the predictions of a network."""
        options = PredictOptions(
            heads=self.heads, like=self.like, sane=self.sane, device=self.device
        )
        return {name: _estimate(x, self.force) for name, x in host.predict(graph, options).items()}

    def _heads(self, host: Host) -> Mapping[str, AnyHead]:
        return host.property_heads() if self.heads is None else load_heads(self.heads)


@dataclass(frozen=True, kw_only=True)
class CheckJob:
    """What is wrong with each network."""

    name: ClassVar[str] = "check"
    ignored: tuple[str, ...] = ()

    def settings(self, host: Host) -> dict[str, Any]:  # noqa: ARG002
        """Return the kinds of findings that are no faults."""
        return {"ignored": sorted(self.ignored)}

    def columns(self, host: Host) -> dict[str, pa.DataType]:  # noqa: ARG002
        """Return verdict and findings."""
        import pyarrow as pa

        texts = {"kind": pa.string(), "severity": pa.string(), "text": pa.string()}
        finding = pa.struct({**texts, "places": pa.list_(pa.string())})
        return {
            "verdict": pa.string(),
            "healthy": pa.bool_(),
            "findings": pa.list_(finding),
        }

    def row(self, host: Host, graph: WeightGraph) -> dict[str, Any]:  # noqa: ARG002
        """Return what is wrong with a network."""
        health = check_network(graph, ignored=self.ignored)
        findings = [{**vars(x), "places": [*x.places]} for x in health.findings]
        return {"verdict": health.verdict, "healthy": health.is_healthy, "findings": findings}


@dataclass(frozen=True, kw_only=True)
class FingerprintJob:
    """The fingerprint of each network, as `read_fingerprints` reads it."""

    name: ClassVar[str] = "fingerprint"

    def settings(self, host: Host) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: there is one way."""
        return {}

    def columns(self, host: Host) -> dict[str, pa.DataType]:  # noqa: ARG002
        """Return the arrays of a fingerprint, flat, and its tensors as JSON."""
        import pyarrow as pa

        floats = pa.list_(pa.float32())
        return {
            "tensors": pa.string(),
            "numbers": pa.list_(pa.float16()),
            "channels": pa.list_(pa.int32()),
            "quantiles": floats,
            "moments": floats,
            "embeddings": floats,
        }

    def row(self, host: Host, graph: WeightGraph) -> dict[str, Any]:  # noqa: ARG002
        """Return the fingerprint of a network."""
        description, arrays = to_arrays(pack_all([("", fingerprint(graph))]))
        flat = {name.partition(".")[2]: array.ravel() for name, array in arrays.items()}
        return {"tensors": json.dumps(description["forms"][0]["tensors"]), **flat}


JOBS: Mapping[str, type[EmbedJob | PredictJob | CheckJob | FingerprintJob]] = {
    x.name: x for x in (EmbedJob, PredictJob, CheckJob, FingerprintJob)
}


def _estimate(estimate: AnyEstimate, force: bool) -> dict[str, Any]:
    record = estimate_record(estimate, force=force)
    low, high = record.get("interval") or (None, None)
    value = "class" if "set" in record else "value"
    kept = ("coverage", "in_distribution", "typicality", "withheld", "score", "set")
    told = {name: record[name] for name in kept if name in record}
    return {**told, value: record["value"], "low": low, "high": high}
