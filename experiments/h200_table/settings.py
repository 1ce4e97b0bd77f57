"""What other families' settings cost on an H200, from the table that comes with nfsearch:

    python experiments/h200_table/settings.py

Of one decoded token, context 8192: bytes and time of a block with a setting over those of the block without it; time
alone in a row of its kind, and among seven layers of other work.
"""

from nfsearch.latency_lut import Key, LatencyTable, load_table
from nfsearch.latency_lut.bundled import bundled_table
from nfsearch.latency_lut.keys import STREAMED
from nfsearch.latency_lut.places import touched_by_layer
from nfsearch.space.notation import parse_layers

HELD = 8192
GDN = "heads=16,head_dim=128,expand_v=1"
PAIRS = {
    "A": ["A[gate=true]", "A[qk_norm=true]", "A[qk_norm=all]", "A[rope=0]", "A[rope=0.25]"],
    "M2": ["M2[groups=8]"],
    "D": ["D[neg_eigval=true]", "C"],
    f"GDN[{GDN}]": [f"GDN[{GDN},key_heads=8]"],
}


def milliseconds(table: LatencyTable, block: str, width: int, others: int) -> float:
    (layer,) = parse_layers(block)
    held = HELD if layer.cost(width).cache_per_token else 0
    found = table.row(Key("decode", "bfloat16", 1, width, str(layer), held, others, STREAMED)).latency_ms
    assert found is not None  # `row` gives no other
    return found


def megabytes(block: str, width: int) -> float:
    (layer,) = parse_layers(block)
    return touched_by_layer(layer, width, 1, HELD + 1, 2) / 1e6


def main() -> None:
    table = load_table(bundled_table("nvidia-h200"))
    for block, others in PAIRS.items():
        for other in others:
            for width in (1024, 2048):
                more = megabytes(other, width) / megabytes(block, width)
                times = [milliseconds(table, other, width, n) / milliseconds(table, block, width, n) for n in (0, 7)]
                print(f"{block} -> {other} @ {width}: bytes {more:.2f}, time {times[0]:.2f}, {times[1]:.2f}")


if __name__ == "__main__":
    main()
