"""Where a run's training tokens come from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from nfsearch.proxies import Proxy, Reads
from nfsearch.support.terminal import say


def tell_sources(proxy: Proxy) -> list[dict[str, Any]]:
    """Says how many tokens of each source there are, and which of them training sees often. Returns what the study
    keeps of that."""
    sources = proxy.sources if isinstance(proxy, Reads) else ()
    if sources:
        shares = [f"{one.name} {one.tokens:,} ({one.share:.1%})" for one in sources]
        text = ", ".join(shares) if len(sources) > 1 else sources[0].name
        say(f"Training tokens: {sum(one.tokens for one in sources):,} of {text}")
    for one in sources:
        if one.seen > 1:
            repeated = ", repeated to keep its share" if one.different < one.tokens else ""
            text = f"a candidate sees each of the {one.different:,} tokens of {one.name} {one.seen:.1f} times{repeated}"
            say(f"Beware: {text}")
    return [asdict(one) for one in sources]
