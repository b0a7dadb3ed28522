"""Nobody serves strangers by accident."""

from __future__ import annotations

import ipaddress

from shoal_core.errors import InvalidArgument


def check_listening(host: str, field: str, *, authenticates: bool, allow_unauthenticated: bool) -> None:
    """Raise `InvalidArgument` for an address that others can reach, where nobody is asked who they are.

    Args:
        host: to listen on. A name counts as reachable, unless it is ``localhost``.
        field: the setting that has the address.
    """
    if authenticates or allow_unauthenticated or is_loopback(host):
        return
    raise InvalidArgument(
        f"{host} can be reached from other machines, and everybody who connects could do everything. Turn authentication on "
        "(frontend.access.root_token, or frontend.access.enabled once there are credentials), listen on 127.0.0.1, or say "
        "that it is meant (frontend.access.allow_unauthenticated=true)",
        field=field,
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect there."""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host.lower() == "localhost"
