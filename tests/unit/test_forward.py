"""The pass without padding, against the network's own pass, for the architectures that people embed with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch
import torch.nn.attention.varlen
import transformers
from sentence_transformers import SentenceTransformer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semantik import apart
from semantik import forward as forward_module
from semantik.forward import Forward, unpadded
from semantik.packed import PackedLinear

MODES = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
SMALL = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96}

# name -> (configuration, pooling mode)
NETWORKS: dict[str, tuple[Callable[[], Any], str]] = {
    "bert": (lambda: transformers.BertConfig(**SMALL), "mean"),
    "roberta": (lambda: transformers.RobertaConfig(**SMALL, max_position_embeddings=130), "cls"),
    "xlm-roberta": (lambda: transformers.XLMRobertaConfig(**SMALL, vocab_size=30522), "mean"),
    "modernbert": (
        # A window of 8 tokens in two layers of three: shorter than the texts.
        lambda: transformers.ModernBertConfig(
            **SMALL, vocab_size=30522, local_attention=16, global_attn_every_n_layers=3, pad_token_id=0
        ),
        "mean",
    ),
    "qwen3": (
        # Four heads share two of keys and values; the last token stands for the text.
        lambda: transformers.Qwen3Config(**SMALL, vocab_size=30522, num_key_value_heads=2, head_dim=16),
        "lasttoken",
    ),
}
# Relative positions, and attention of its own: texts in one row would see each other.
NOT_APART: dict[str, Callable[[], Any]] = {
    "mpnet": lambda: transformers.MPNetConfig(**SMALL, vocab_size=30522),
    "t5": lambda: transformers.T5Config(d_model=64, d_kv=16, num_layers=2, num_heads=4, d_ff=96),
}


@pytest.fixture
def network(model_dir: Path, tmp_path: Path) -> Callable[..., SentenceTransformer]:
    """Build a sentence-transformers network with random weights in a directory, and load it from there."""

    def build(config: Any, mode: str = "mean") -> SentenceTransformer:
        torch.manual_seed(5)
        kind = transformers.T5EncoderModel if config.model_type == "t5" else transformers.AutoModel
        own = (
            kind.from_config(config)
            if kind is transformers.AutoModel
            else transformers.T5EncoderModel(config)
        )
        with torch.no_grad():
            for weights in own.parameters():
                if weights.ndim == 2:  # large enough that a mistake in attention shows
                    weights.mul_(4)
        own.save_pretrained(tmp_path)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            if (model_dir / name).exists():
                (tmp_path / name).write_bytes((model_dir / name).read_bytes())
        (tmp_path / "1_Pooling").mkdir()
        pooling = {"word_embedding_dimension": 64, f"pooling_mode_{MODES[mode]}": True}
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
        modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
        (tmp_path / "modules.json").write_text(
            json.dumps(
                [
                    {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{name}"}
                    for at, (path, name) in enumerate(modules)
                ]
            )
        )
        (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 128}))
        loaded = SentenceTransformer(str(tmp_path), device="cpu", local_files_only=True)
        return loaded.eval()

    return build


def texts_of(lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(1_000, 20_000, (length,), generator=generator) for length in lengths]


def alone(network: SentenceTransformer, texts: list[torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(
            [
                network({"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]})[
                    "sentence_embedding"
                ]
                for ids in texts
            ]
        )


@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_are_those_of_each_text_alone(name: str, network: Callable[..., SentenceTransformer]) -> None:
    config, mode = NETWORKS[name]
    built = network(config(), mode)
    rng = random.Random(2)
    lengths = sorted([*rng.choices(range(3, 100), k=9), 100, 100, 1], reverse=True)
    texts = texts_of(lengths)
    expected = alone(built, texts)
    forward = unpadded(built, "cpu")
    assert isinstance(forward, Forward)
    found = forward(torch.cat(texts), lengths)
    assert found.shape == (12, 64)
    assert torch.allclose(found, expected, atol=2e-5)
    # The same texts in another company: nothing of a neighbour gets in.
    part = forward(torch.cat(texts[3:5]), lengths[3:5])
    assert torch.allclose(part, expected[3:5], atol=2e-5)


def test_outside_of_such_a_batch_the_network_is_what_it_was(
    network: Callable[..., SentenceTransformer],
) -> None:
    built = network(NETWORKS["bert"][0]())
    sentences = ["One short text.", "A much longer one, which pads the other by a good deal of tokens."]
    expected = built.encode(sentences, convert_to_tensor=True)
    assert unpadded(built, "cpu") is not None
    assert torch.allclose(built.encode(sentences, convert_to_tensor=True), expected, atol=1e-5)


@pytest.mark.parametrize("name", NOT_APART)
def test_a_network_that_mixes_texts_goes_the_padded_way(
    name: str, network: Callable[..., SentenceTransformer]
) -> None:
    built = network(NOT_APART[name]())
    sentences = ["One short text.", "A much longer one, which pads the other by a good deal of tokens."]
    expected = built.encode(sentences, convert_to_tensor=True)
    assert unpadded(built, "cpu") is None
    assert torch.allclose(built.encode(sentences, convert_to_tensor=True), expected, atol=1e-5)


def test_the_probe_sees_texts_that_look_at_each_other(
    network: Callable[..., SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attention of this module without its borders, as a network would have it that ignores them."""
    built = network(NETWORKS["bert"][0]())

    def borderless(query: Any, key: Any, value: Any, *_: object) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2)

    monkeypatch.setattr(forward_module, "_attend_cpu", borderless)
    assert unpadded(built, "cpu") is None


def test_the_probe_reaches_beyond_the_window_of_layers(
    network: Callable[..., SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This architecture tells its window to the mask alone, which a batch without padding has not."""
    config = transformers.Qwen2MoeConfig(
        **SMALL, vocab_size=30522, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32,
        use_sliding_window=True, sliding_window=48, max_window_layers=1,
    )  # fmt: skip
    built = network(config)
    assert unpadded(built, "cpu") is None
    monkeypatch.setattr(apart, "_WINDOWS", ())
    assert unpadded(built, "cpu") is not None, "without such a text nothing is found"


def test_a_window_too_long_to_be_tried_goes_the_padded_way(
    network: Callable[..., SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.MistralConfig(**SMALL, vocab_size=30522, num_key_value_heads=2, sliding_window=100)
    built = network(config)
    with monkeypatch.context() as quick:
        quick.setattr(apart, "_LONGEST", {"cpu": 60})
        assert unpadded(built, "cpu") is None
        built.max_seq_length = 90  # no text is as long as the window
        assert apart.lengths(built, "cpu") == list(apart._LENGTHS)
    built.max_seq_length = 128
    assert unpadded(built, "cpu") is not None


def test_a_device_without_memory_says_nothing_of_the_network(
    network: Callable[..., SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(forward_module, "_attend_cpu", full)
    with pytest.raises(torch.OutOfMemoryError):
        unpadded(network(NETWORKS["bert"][0]()), "cpu")


def test_a_long_text_among_short_ones_takes_no_more_memory(
    network: Callable[..., SentenceTransformer],
) -> None:
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided:
                    self.size = max(self.size, leaf.numel())
            return out

    built = network(NETWORKS["bert"][0]())
    lengths = [100, 31, 30, *[3] * 120, 50]
    texts = texts_of(lengths)
    expected = alone(built, texts)
    forward = unpadded(built, "cpu")
    assert forward is not None
    with Largest() as largest:
        found = forward(torch.cat(texts), lengths)
    assert torch.allclose(found, expected, atol=2e-5)
    tokens = 640  # 571, rounded
    assert largest.size <= tokens * 96, (
        "what the widest layer takes; all texts as wide as one: 124 * 100 * 64"
    )


def test_linear_layers_are_packed_and_gelu_is_computed_with_them(
    network: Callable[..., SentenceTransformer],
) -> None:
    built = network(NETWORKS["bert"][0]())
    layer = built[0].auto_model.encoder.layer[0]
    states = torch.randn(7, 64)
    with torch.inference_mode():
        expected = layer.intermediate(states)
        unpadded(built, "cpu")
        layer = built[0].auto_model.encoder.layer[0]
        assert isinstance(layer.intermediate.dense, PackedLinear)
        assert torch.allclose(layer.intermediate(states), expected, atol=1e-5)
        assert torch.allclose(layer.intermediate(states[None]), expected[None], atol=1e-5)


def test_bfloat16_on_the_cpu(network: Callable[..., SentenceTransformer]) -> None:
    built = network(NETWORKS["bert"][0]())
    lengths = [40, 31, 31, 9]
    texts = texts_of(lengths)
    expected = alone(built, texts)
    forward = unpadded(built.to(torch.bfloat16), "cpu")
    assert forward is not None
    found = forward(torch.cat(texts), lengths)
    assert found.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(found.float(), expected).min() > 0.99


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 5])
def test_a_gpu_asks_torchs_kernel_for_what_the_cpu_computes(
    causal: bool, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel needs a GPU: a reference stands in for it, behind the very signature of this torch."""
    lengths = [9, 9, 4, 1]
    layout = forward_module._lay_out(lengths, "cpu")
    generator = torch.Generator().manual_seed(3)
    query = torch.randn(1, 4, 23, 8, generator=generator)
    key, value = (torch.randn(1, 2, 23, 8, generator=generator) for _ in range(2))

    def reference(
        queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, *rest: Any, **options: Any
    ) -> Any:
        bounds = rest[0].tolist()
        assert (bounds, rest[1].tolist(), rest[2], rest[3]) == ([0, 9, 18, 22, 23], bounds, 9, 9)
        assert rest[0].dtype == torch.int32, "what the kernel takes"
        left, right = options["window_size"]
        parts = []
        for start, end in pairwise(bounds):
            q, k, v = (states[start:end].transpose(0, 1) for states in (queries, keys, values))
            at = torch.arange(end - start)
            ahead = at[None, :] - at[:, None]
            seen = ((left < 0) | (-ahead <= left)) & ((right < 0) | (ahead <= right))
            attended = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=options["scale"], enable_gqa=options["enable_gqa"]
            )
            parts.append(attended.transpose(0, 1))
        return torch.cat(parts)

    kernel = create_autospec(torch.nn.attention.varlen.varlen_attn, side_effect=reference)
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    found = forward_module._attend_cuda(query, key, value, layout, causal, 0.3, window)
    kernel.assert_called_once()
    expected = forward_module._attend_cpu(query, key, value, layout, causal, 0.3, window)
    assert found.shape == (1, 23, 4, 8)
    assert torch.allclose(found, expected, atol=1e-6)


def test_a_network_that_looks_into_its_layers_keeps_them(
    network: Callable[..., SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = network(NETWORKS["bert"][0]())
    layer = type(built[0].auto_model.encoder.layer[0].intermediate)
    forward_of = layer.forward

    def looks(self: Any, states: torch.Tensor) -> Any:
        assert self.dense.weight is not None
        return forward_of(self, states)

    monkeypatch.setattr(layer, "forward", looks)
    forward = unpadded(built, "cpu")
    assert forward is not None
    assert type(built[0].auto_model.encoder.layer[0].intermediate.dense) is torch.nn.Linear
    texts = texts_of([12, 5])
    assert torch.allclose(forward(torch.cat(texts), [12, 5]), alone(built, texts), atol=2e-5)


def test_a_processor_that_cannot_pack_keeps_its_layers(
    network: Callable[..., SentenceTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = network(NETWORKS["bert"][0]())
    pack, packed = torch.ops.mkldnn._reorder_linear_weight, []

    def reorder(*arguments: Any) -> torch.Tensor:
        if len(packed) == 2:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")
        packed.append(pack(*arguments))
        return packed[-1]

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)
    forward = unpadded(built, "cpu")
    assert forward is not None
    assert len(packed) == 2
    assert not any(isinstance(module, PackedLinear) for module in built.modules())
    texts = texts_of([12, 5])
    assert torch.allclose(forward(torch.cat(texts), [12, 5]), alone(built, texts), atol=2e-5)


def test_memory_does_not_grow_with_the_numbers_of_rows_that_were_met() -> None:
    """Without rounding, these 120 numbers of rows leave more than 600 MB behind."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096

    plain = torch.nn.Linear(384, 1_536)
    packed = PackedLinear(plain, gelu=False)
    with torch.inference_mode():
        for rows in (0, 1, 15, 16, 17, 64, 65, 127, 128, 129, 900, 1_024):
            states = torch.randn(rows, 384)
            assert torch.allclose(packed(states), plain(states), atol=1e-5), rows
        settled = resident()
        for rows in range(900, 1_020):
            packed(torch.empty(rows, 384))
    assert resident() < settled + 32 * 2**20
