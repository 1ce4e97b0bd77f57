"""What models are built of: operators, the hybrid language model, its decode loop."""

from nfsearch.ops.decoder import Decoder
from nfsearch.ops.forms import FusedStep
from nfsearch.ops.layout import Layout
from nfsearch.ops.model import Block, HybridLM
from nfsearch.ops.operator import Operator, RMSNorm, State, build_operator

__all__ = ["Block", "Decoder", "FusedStep", "HybridLM", "Layout", "Operator", "RMSNorm", "State", "build_operator"]
