"""Each role's defaults, argument specification and README say the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted(path for path in (Path(__file__).resolve().parents[2] / "roles").iterdir() if path.is_dir())


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {} if path.is_file() else {}


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_defaults_match_the_argument_specification(role: Path) -> None:
    options: dict[str, Any] = {}
    for entry_point in read(role / "meta" / "argument_specs.yml")["argument_specs"].values():
        options |= entry_point.get("options", {})
    defaults = {
        name: value
        for name, value in read(role / "defaults" / "main.yml").items()
        if not name.startswith("__")
    }
    # Secrets have no default: they are read from files that the first run makes.
    required = {name for name, option in options.items() if option.get("required")}
    assert set(defaults) | required == set(options)
    for name, option in options.items():
        assert option.get("description"), f"{name} has no description"
        assert name.startswith(f"{role.name}_")
        if "default" in option:
            assert defaults[name] == option["default"], name
        elif name not in required:
            assert "{{" in str(defaults[name]), (
                f"{name}: a plain default belongs into the specification as well"
            )


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_internal_variables_are_marked(role: Path) -> None:
    for path in (role / "vars").glob("*.yml"):
        assert [name for name in read(path) if not name.startswith(f"__{role.name}_")] == []


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
def test_the_readme_names_every_variable(role: Path) -> None:
    text = (role / "README.md").read_text(encoding="utf-8")
    for entry_point in read(role / "meta" / "argument_specs.yml")["argument_specs"].values():
        for name in entry_point.get("options", {}):
            assert f"`{name}`" in text
