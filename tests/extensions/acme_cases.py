"""The shipped suites on the extensions of `acme`, run by test_extensions in an environment in which it is installed."""

from nfsearch.testing import ExecutorSuite, ExporterSuite, ProxySuite, RuleSuite, StrategySuite


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
