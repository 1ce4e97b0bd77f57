"""What nfsearch brings passes the suites that it ships."""

from nfsearch.testing import ExecutorSuite, ExporterSuite, ProxySuite, RuleSuite, StrategySuite


class TestAging(StrategySuite):
    name = "aging"
    settings = {"tournament": 3}  # noqa: RUF012


class TestRandom(StrategySuite):
    name = "random"


class TestTraining(ProxySuite):
    name = "training"
    settings = {"tokens": 1024, "sequence": 16, "batch": 4, "validation_tokens": 512}  # noqa: RUF012


class TestMedian(RuleSuite):
    name = "median"


class TestLocal(ExecutorSuite):
    name = "local"


class TestYaml(ExporterSuite):
    name = "yaml"


class TestHub(ExporterSuite):
    name = "hf"
