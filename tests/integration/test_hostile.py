"""The hostile set with a shorter line and a smaller parser: all is accounted for, nothing ends the run."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hostile.run import run


def test_every_entry_is_accounted_for(tmp_path: Path) -> None:
    ended = run(tmp_path, line_megabytes=50, env={"SEMANTIK_PARSE_MEMORY_MB": "160"})
    assert ended.wrong() == []
    assert len(ended.accounts) > 40
