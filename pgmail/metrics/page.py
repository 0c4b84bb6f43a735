"""The page that `/metrics` answers: what the sources of a process tell, in the format of Prometheus or OpenMetrics.

What can go wrong: a source tells a figure that `families` does not know, or with another number of labels. That is a
fault of ours, and the page fails rather than lie; tests ask every source of every role.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from pgmail.metrics.counts import Histogram, Refreshing, Sample, Source
from pgmail.metrics.families import BY_TENANT, FAMILIES, PREFIX

REFRESH_SECONDS = 3.0  # a scrape waits no longer for a source; it then tells what it knew


class Page:
    """The figures of one process of a role."""

    def __init__(self, role: str, sources: Sequence[Source]) -> None:
        self._sources = list(sources)
        self._role, self._version = role, _version()
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(self))
        ProcessCollector(registry=self._registry)  # CPU, memory and open files, where the system tells

    async def write(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its media type, by what the client accepts."""
        for source in self._sources:
            if isinstance(source, Refreshing):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_SECONDS):
                        await source.refresh()
        encode, media_type = choose_encoder(accept)
        return encode(self._registry), media_type

    def samples(self) -> Iterator[Sample]:
        """All figures as they are now."""
        yield Sample("process", (self._role, self._version), 1)
        for source in self._sources:
            yield from source.samples()


class _Collector:
    """Groups samples by their family, as a registry wants them."""

    def __init__(self, page: Page) -> None:
        self._page = page

    def collect(self) -> Iterable[Metric]:
        found: dict[str, list[Sample]] = {}
        for sample in self._page.samples():
            found.setdefault(sample.family, []).append(sample)
        for name, samples in found.items():
            yield _family(name, samples)


def _version() -> str:
    try:
        return version("pgmail")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0"


def _family(name: str, samples: list[Sample]) -> Metric:
    family = FAMILIES[name]
    labels = list(family.labels)
    if name in BY_TENANT and len(samples[0].labels) > len(labels):
        labels = ["tenant", *labels]
    shown = PREFIX + family.name
    if family.kind == "histogram":
        histogram = HistogramMetricFamily(shown, family.text, labels=labels)
        for sample in samples:
            assert isinstance(sample.value, Histogram)  # noqa: S101 - the kind says so
            histogram.add_metric(_checked(sample, labels), sample.value.buckets(), sample.value.total)
        return histogram
    made = (CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily)(
        shown, family.text, labels=labels
    )
    for sample in samples:
        assert not isinstance(sample.value, Histogram)  # noqa: S101 - the kind says so
        made.add_metric(_checked(sample, labels), sample.value)
    return made


def _checked(sample: Sample, labels: list[str]) -> list[str]:
    if len(sample.labels) != len(labels):
        raise ValueError(f"{sample.family} has the labels {labels}, and was told with {sample.labels}")
    return list(sample.labels)
