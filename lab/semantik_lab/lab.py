"""A lab as a whole: up, stop, start, destroy, snapshot."""

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from semantik_lab import base, doctor, inventory, keys, network, proxy, snapshots, state
from semantik_lab.errors import LabError
from semantik_lab.host import Node, State
from semantik_lab.service import Service
from semantik_lab.shell import remove_tree, run, say, step
from semantik_lab.topology import DEFAULT_TOPOLOGY, Topology, check_name, load, parse_subnet

DEFAULT_NAME = "semantik"
_REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Lab:
    """A lab with the topology and the record that describe it."""

    paths: state.Paths
    record: state.Record
    topology: Topology

    @classmethod
    def open(cls, name: str) -> "Lab":
        """Read an existing lab; a LabError where there is none."""
        record = state.require(check_name(name))
        return cls(state.Paths(name), record, load(record.topology))

    @property
    def bridge(self) -> str:
        """Name of the lab's bridge."""
        return network.bridge_name(self.paths.lab)

    @property
    def proxy_url(self) -> str:
        """What the hosts' apt uses."""
        return proxy.url(self.record.subnet, self.topology.proxy_port)

    def nodes(self, names: Collection[str] = ()) -> list[Node]:
        """Return the named hosts of this lab, or all of them."""
        own = self.topology.select(self.record.hosts)
        unknown = sorted(set(names) - {host.name for host in own})
        if unknown:
            has = ", ".join(host.name for host in own)
            raise LabError(f"lab {self.paths.lab} has no host {', '.join(unknown)}; it has {has}")
        return [
            Node(self.paths, host, str(network.host_address(self.record.subnet, host)), self.bridge)
            for host in own
            if not names or host.name in names
        ]

    def describe(self) -> dict[str, Any]:
        """Return the lab as `--json` prints it."""
        return inventory.describe(
            self.paths, self.nodes(), str(self.record.subnet), self.proxy_url, self.record.inventory
        )


def up(
    name: str,
    *,
    subnet: str | None = None,
    topology: Path | None = None,
    hosts: Sequence[str] = (),
    inventory_path: Path | None = None,
    snapshot: str | None = None,
    keep_on_failure: bool = False,
) -> Lab:
    """Bring a lab up, or what is missing of it; on failure what this call made is removed again."""
    doctor.require_good(doctor.examine())
    # One plan at a time, written down before the next: two new labs must not choose the same subnet.
    with state.lock(state.STATE / ".plan.lock", "the plan of another lab"):
        lab, fresh = _plan(name, subnet, topology, hosts, inventory_path)
        lab.record.save(lab.paths)
    nodes = lab.nodes()
    with ExitStack() as undo:
        if fresh:
            undo.callback(_remove_state, lab)
        try:
            _prepare_directories(lab)
            made = _create(lab, nodes, snapshot, undo)
            _network_and_proxy(lab, undo)
            keys.pin(lab.paths, {node.host.name: (node.address, node.host_key()) for node in nodes})
            _boot(lab, nodes, undo, strict=[] if snapshot else made)
            _check_reach(lab, nodes)
            inventory.save(
                lab.record.inventory,
                inventory.render(lab.paths, nodes, str(lab.record.subnet), lab.proxy_url),
            )
        except BaseException:
            if keep_on_failure:
                undo.pop_all()
            raise
        undo.pop_all()
    return lab


def start(lab: Lab, names: Collection[str]) -> None:
    """Boot hosts that are off; bridge and proxy come back too, after a reboot of the machine for example."""
    with ExitStack() as undo:
        _prepare_directories(lab)
        _network_and_proxy(lab, undo)
        _boot(lab, lab.nodes(names), undo, strict=[])
        undo.pop_all()


def stop(lab: Lab, names: Collection[str]) -> None:
    """Shut hosts down and keep them; with no host left running, proxy and bridge go too."""
    _each(lab.nodes(names), "shut down", Node.stop)
    if all(node.state() is not State.RUNNING for node in lab.nodes()):
        proxy.stop(lab.paths.lab)
        network.remove_bridge(lab.bridge, lab.paths.lab)


def power_off(lab: Lab, names: Collection[str]) -> None:
    """Cut the power of hosts."""
    _each(lab.nodes(names), "power cut", Node.power_off)


def destroy(name: str, purge: bool) -> None:
    """Remove a lab with everything it holds, also when its record is damaged or half written."""
    paths = state.Paths(check_name(name))
    if not paths.root.exists():
        raise LabError(f"there is no lab {name}; `lab/lab list` shows the labs")
    try:
        record = state.load(name)
    except LabError as error:
        say(f"{error.args[0].split(';')[0]}; clearing it away all the same")
        record = None
    with step(f"lab {name}: destroyed"):
        for directory in sorted(paths.root.glob("hosts/*")):
            _remove_host_directory(paths, directory)
        proxy.stop(name)
        network.remove_bridge(network.bridge_name(name), name)
        if record is not None:
            inventory.remove(record.inventory)
        remove_tree(paths.control)
        remove_tree(paths.root)
        if purge:
            proxy.forget(name)


def snapshot(lab: Lab, name: str) -> None:
    """Freeze the hosts' trees under a name and go on; hosts are off for that moment."""
    check_name(name)
    nodes = lab.nodes()
    snapshots.check_free(name)
    running = [node.host.name for node in nodes if node.state() is not State.STOPPED]
    _each([node for node in nodes if node.host.name in running], "shut down", Node.stop)
    with step(f"snapshot {name}"):
        snapshots.take(name, nodes)
    if running:
        start(lab, running)


def _plan(
    name: str, subnet: str | None, topology: Path | None, hosts: Sequence[str], inventory_path: Path | None
) -> tuple[Lab, bool]:
    """Settle what the lab shall be, from the arguments and from what it is already; nothing is changed."""
    paths = state.Paths(check_name(name))
    old = state.load(name)
    path = (topology or (old.topology if old else DEFAULT_TOPOLOGY)).resolve()
    wanted = load(path)
    chosen = tuple(host.name for host in wanted.select(hosts)) if hosts else ()
    if old is None:
        network_ = _free_subnet(name, subnet, wanted)
        default = (
            _REPOSITORY / "inventories" / "lab" / "hosts.yml"
            if name == DEFAULT_NAME
            else paths.root / "hosts.yml"
        )
    else:
        network_, default = old.subnet, old.inventory
        if subnet is not None and parse_subnet(subnet) != old.subnet:
            raise LabError(
                f"lab {name} has subnet {old.subnet}; "
                f"`lab/lab destroy --name {name}` before giving it another"
            )
        if topology is not None and path != old.topology:
            raise LabError(
                f"lab {name} is made from {old.topology}; "
                f"`lab/lab destroy --name {name}` before changing that"
            )
        # Hosts join a lab, they never leave it unasked.
        chosen = tuple(dict.fromkeys([*old.hosts, *chosen])) if old.hosts else ()
    record = state.Record(network_, path, chosen, (inventory_path or default).resolve())
    return Lab(paths, record, wanted), old is None


def _free_subnet(name: str, asked: str | None, topology: Topology) -> IPv4Network:
    """Return the subnet asked for, the topology's for the default lab, or the next free one."""
    taken = {f"interface {owner}": nets for owner, nets in network.machine_networks().items()}
    # A bridge that a killed run left behind is no obstacle: it will be this lab's again.
    taken.pop(f"interface {network.bridge_name(name)}", None)
    taken |= {f"lab {other}": [state.require(other).subnet] for other in state.labs() if other != name}
    if asked is None and name != DEFAULT_NAME:
        return network.choose_subnet(topology.subnet, [net for nets in taken.values() for net in nets])
    chosen = parse_subnet(asked) if asked else topology.subnet
    network.check_subnet(chosen, taken)
    return chosen


def _prepare_directories(lab: Lab) -> None:
    lab.paths.documents.mkdir(parents=True, exist_ok=True)
    lab.paths.documents.chmod(0o755)
    keys.make_identity(lab.paths)


def _create(lab: Lab, nodes: list[Node], snapshot_name: str | None, undo: ExitStack) -> list[Node]:
    """Make the trees of hosts that have none; returns those hosts."""
    absent = [node for node in nodes if node.state() is State.ABSENT]
    if snapshot_name and absent != nodes:
        raise LabError(
            f"lab {lab.paths.lab} has hosts already, and a snapshot is for a new lab: "
            f"`lab/lab destroy --name {lab.paths.lab}` first"
        )
    if snapshot_name:
        below = {node.host.name: snapshots.layers(snapshot_name, node.host.name) for node in absent}
    else:
        releases = sorted({node.host.release for node in absent})
        trees = {release: base.ensure(release, lab.topology.packages) for release in releases}
        below = {node.host.name: [trees[node.host.release]] for node in absent}
    public = keys.make_identity(lab.paths)
    names = {host.name: str(network.host_address(lab.record.subnet, host)) for host in lab.topology.hosts}
    for node in absent:
        # What a killed run left half made goes first.
        node.destroy()
        undo.callback(node.destroy)
        node.create(below[node.host.name], public, names, lab.record.subnet.prefixlen)
    return absent


def _network_and_proxy(lab: Lab, undo: ExitStack) -> None:
    name, subnet = lab.paths.lab, lab.record.subnet
    if not network.bridge_exists(lab.bridge):
        undo.callback(network.remove_bridge, lab.bridge, name)
    network.make_bridge(lab.bridge, name, subnet)
    trees = {node.layers()[-1] for node in lab.nodes()}
    mirrors = base.mirror_hosts(trees) | set(lab.topology.proxy_extra_hosts)
    if not proxy.service(name).running():
        undo.callback(proxy.stop, name)
    with step(f"bridge {lab.bridge}, apt proxy {lab.proxy_url}"):
        proxy.ensure(name, subnet, lab.topology.proxy_port, mirrors, base.upstream_proxy())


def _boot(lab: Lab, nodes: list[Node], undo: ExitStack, *, strict: Collection[Node]) -> None:
    """Boot what is off. A host that Ansible has filled may be degraded, a fresh one (`strict`) may not."""
    waiting = []
    for node in nodes:
        state_ = node.state()
        if state_ is State.RUNNING and node.ssh_answers():
            continue
        if state_ is State.ORPHANED:
            say(f"  {node.host.name}: its supervisor was killed; shutting it down and booting it again")
            node.stop()
        # One that runs and is silent may be on its way up, or hang: the wait below tells which.
        if state_ is not State.RUNNING:
            keys.close_connection(lab.paths, node.address)
            undo.callback(node.power_off)
            node.start()
        waiting.append(node)

    def wait(node: Node) -> None:
        outcome = node.wait_up()
        if outcome != "running":
            hint = f"`lab/lab logs --name {lab.paths.lab} {node.host.name}` shows its journal"
            if node in strict:
                raise LabError(f"fresh host {node.host.name} came up {outcome}; {hint}")
            say(f"  {node.host.name}: {outcome}; {hint}")

    _each(waiting, "up", wait)


def _check_reach(lab: Lab, nodes: list[Node]) -> None:
    """Ask each host to reach each other one: a machine's firewall may filter what crosses a bridge."""
    for node in nodes:
        others = [other.address for other in nodes if other is not node]
        script = "".join(f"timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/22' && " for address in others)
        run(
            [*keys.ssh_command(lab.paths, node.address), f"{script}true"],
            what=f"{node.host.name} cannot reach the other hosts over {lab.bridge}: this machine filters "
            "bridged traffic (br_netfilter and a FORWARD policy of drop, as Docker sets it); see docs/lab.md",
        )


def _each(nodes: Sequence[Node], done: str, action: Callable[[Node], None]) -> None:
    """Do the same to several hosts at once; the first error is raised when all have ended."""

    def one(node: Node) -> None:
        with step(f"{node.host.name}: {done}"):
            action(node)

    with ThreadPoolExecutor(max_workers=max(1, len(nodes))) as pool:
        for future in [pool.submit(one, node) for node in nodes]:
            future.result()


def _remove_state(lab: Lab) -> None:
    remove_tree(lab.paths.control)
    remove_tree(lab.paths.root)


def _remove_host_directory(paths: state.Paths, directory: Path) -> None:
    """End and remove a host known by its directory alone."""
    Service(f"{paths.lab}-{directory.name}", directory / "console.log").kill()
    if os.path.ismount(directory / "root"):
        run(["umount", str(directory / "root")], what=f"unmounting {directory / 'root'}")
    remove_tree(directory)
