"""What an architecture is worth: data, short training, and the score they give."""

from nfsearch.proxies.score import Score
from nfsearch.proxies.settings import ProxySettings

__all__ = ["ProxySettings", "Score"]
