"""The shipped suites on the extensions of `acme`, run by test_extensions in an environment in which it is installed."""

from nfsearch.space import Layer
from nfsearch.testing import ExecutorSuite, ExporterSuite, OperatorSuite, ProxySuite, RuleSuite, StrategySuite


class TestAverage(OperatorSuite):
    layers = (Layer.of("EMA"),)
    widths = (32, 96)


class TestClimb(StrategySuite):
    name = "climb"


class TestAtStart(ProxySuite):
    name = "at_start"
    settings = {"tokens": 32}  # noqa: RUF012


class TestCeiling(RuleSuite):
    name = "ceiling"


class TestJson(ExporterSuite):
    name = "json"


class TestThreads(ExecutorSuite):
    name = "threads"
