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


class TestLongContext(ProxySuite):
    name = "long-context"
    settings = {"tokens": 1024, "sequence": 16, "batch": 4, "context": 64, "validation_tokens": 512}  # noqa: RUF012


class TestMqar(ProxySuite):
    name = "mqar"
    settings = {"pairs": 2, "sequence": 8, "symbols": 8, "examples": 48, "batch": 8, "test": 8}  # noqa: RUF012


class TestInContextRecall(ProxySuite):
    name = "in_context_recall"
    settings = {"sequence": 9, "symbols": 6, "examples": 48, "batch": 8, "test": 8}  # noqa: RUF012


class TestSelectiveCopying(ProxySuite):
    name = "selective_copying"
    settings = {"sequence": 12, "copied": 2, "examples": 48, "batch": 8, "test": 8}  # noqa: RUF012


class TestCompression(ProxySuite):
    name = "compression"
    settings = {"sequence": 8, "examples": 48, "batch": 8, "test": 8}  # noqa: RUF012


class TestZeroCost(ProxySuite):
    name = "zero-cost"
    settings = {"sequence": 16, "batch": 2}  # noqa: RUF012
    reports = False


class TestMedian(RuleSuite):
    name = "median"


class TestLocal(ExecutorSuite):
    name = "local"


class TestYaml(ExporterSuite):
    name = "yaml"


class TestMegatron(ExporterSuite):
    name = "megatron"
    layers = "(M2[head_dim=16,state=16] F[ratio=2]){2}"
    refused = "D[head_dim=16] F[ratio=2]"


class TestHub(ExporterSuite):
    name = "hf"


class TestLfm2(ExporterSuite):
    name = "lfm2"
    layers = "C F A[head_dim=16,qk_norm=true] F"
    refused = "D[head_dim=16] F[ratio=2]"


class TestNemotronH(ExporterSuite):
    name = "nemotron_h"
    layers = "M2[head_dim=16,groups=2] A[head_dim=16,rope=0] F[act=relu2]"
    refused = "D[head_dim=16] F[ratio=2]"


class TestQwen35(ExporterSuite):
    name = "qwen3_5"
    layers = "GDN[head_dim=16,heads=2] F[ratio=2] A[gate=true,head_dim=16,qk_norm=true] F[ratio=2]"
    refused = "D[head_dim=16] F[ratio=2]"


class TestTorchtitan(ExporterSuite):
    name = "torchtitan"
    refused = "fla:GatedMemory[num_heads=2] F[ratio=2]"
