"""Filters that the roles share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any


def cluster_addresses(hosts: Iterable[str], hostvars: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return each host's address on the cluster's network.

    Role defaults are not in hostvars, so the default of `cluster_address` is applied here for every host.
    """
    addresses = {}
    for host in hosts:
        variables = hostvars[host]
        addresses[host] = str(variables.get("cluster_address") or variables.get("ansible_host") or host)
    return addresses


class FilterModule:
    """Names the filters for Ansible."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters by name."""
        return {"cluster_addresses": cluster_addresses}
