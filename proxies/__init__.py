"""What an architecture is worth: jobs, the proxies that evaluate them, and the data they train on."""

from nfsearch.proxies.bounds import Bounds, TooLarge
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.job import Evaluation, Job, Report
from nfsearch.proxies.proxy import PROXIES, Foresees, Keeps, Proxy, ProxySettings, Reads, TokenSource, Trains

__all__ = [
    "PROXIES",
    "Bounds",
    "Evaluation",
    "Fidelity",
    "Foresees",
    "Job",
    "Keeps",
    "Proxy",
    "ProxySettings",
    "Reads",
    "Report",
    "TokenSource",
    "TooLarge",
    "Trains",
]
