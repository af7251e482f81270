"""Who may reach a cluster: a Dask port is code execution for whoever reaches it, so nothing is open unless told.

Loopback needs nothing. Anything that crosses a network needs TLS, or a cluster file that says ``allow_insecure: true``.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from geoflow.errors import ClusterError
from geoflow.extras import how_to_install
from geoflow.jobs import clusterfile as kinds

if TYPE_CHECKING:
    from distributed import Security

_EXPLAINED = (
    "whoever reaches a port of a Dask cluster without TLS can run code on it. Give certificates in a cluster file "
    "(tls: {ca: ..., cert: ..., key: ...}), or, where the network is closed to all others, say allow_insecure: true "
    "there; see docs/how-to/clusters.md"
)


def is_loopback(address: str) -> bool:
    """Whether the address of a scheduler is one of this machine that no other can reach."""
    if address.startswith("inproc://"):
        return True
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_safe_address(cluster: kinds.Running, address: str) -> None:
    """Raise `ClusterError` unless talking to a running scheduler is encrypted, stays here, or was allowed."""
    if address.startswith("tls://") or is_loopback(address) or cluster.allow_insecure:
        return
    raise ClusterError(
        f"--cluster {address} leads to another machine, unencrypted: {_EXPLAINED}. If the scheduler runs on this "
        "machine, start it with `dask scheduler --host 127.0.0.1`"
    )


def require_safe_start(cluster: kinds.Cluster) -> None:
    """Raise `ClusterError` if a cluster would open unencrypted ports to other machines without being allowed to."""
    if isinstance(cluster, kinds.Kubernetes | kinds.Ssh) and cluster.tls is None and not cluster.allow_insecure:
        raise ClusterError(f"kind {cluster.kind} has neither tls nor allow_insecure: {_EXPLAINED}")
    if isinstance(cluster, kinds.Kubernetes) and cluster.tls is not None:
        raise ClusterError(
            "kind kubernetes: the Dask operator starts pods without TLS, so tls has no effect; close the "
            "namespace with a NetworkPolicy and say allow_insecure: true"
        )


def security_of(cluster: kinds.Cluster) -> Security | None:
    """Certificates of a cluster: those of its file; temporary ones for batch jobs; None where it speaks openly.

    Raises
    ------
    ClusterError
        If a file is missing or is no certificate.
    """
    from distributed import Security

    if cluster.tls is not None:
        return _from_files(cluster.tls)
    if isinstance(cluster, kinds.Slurm | kinds.Pbs | kinds.Lsf) and not cluster.allow_insecure:
        try:
            return Security.temporary()  # made for this run, and gone with it
        except ImportError as error:
            raise ClusterError(
                f"kind {cluster.kind} makes its own certificates, which needs the package cryptography: "
                f"{how_to_install('slurm')} ({error})"
            ) from None
    return None


def _from_files(tls: kinds.Tls) -> Security:
    from distributed import Security

    for name in ("ca", "cert", "key"):
        path = getattr(tls, name)
        if not path.is_file():
            raise ClusterError(f"tls.{name}: there is no file {path}")
    roles = {
        f"tls_{role}_{what}": str(getattr(tls, what))
        for role in ("client", "scheduler", "worker")
        for what in ("cert", "key")
    }
    security = Security(tls_ca_file=str(tls.ca), require_encryption=True, **roles)
    try:
        security.get_connection_args("client")
    except OSError as error:
        raise ClusterError(f"tls: {tls.cert}, {tls.key} and {tls.ca} are not certificates that fit: {error}") from None
    return security


def configured_tls() -> bool:
    """Whether Dask's own configuration names certificates for a client (``distributed.comm.tls``)."""
    import dask

    names = ("ca-file", "client.cert", "client.key")
    return all(dask.config.get(f"distributed.comm.tls.{name}", None) for name in names)
