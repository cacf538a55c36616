"""Loading a generator: names, GGUF files made into directories once, dtypes, devices, and what is broken."""

from __future__ import annotations

import json
import os
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from decoder import models
from decoder.contracts import UserError
from decoder.models import dequantise, load_model, pick_device, pick_dtype, resolve
from tests.tiny import BOS, CONTEXT, EOS, PAD, VOCAB, save_tiny, tiny_llama, tiny_tokenizer

IDS = torch.tensor([[5, 17, 200, 42]])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model cache of this test's own."""
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replace the conversion by one that writes a config; return the list of what was converted."""
    done: list[Path] = []

    def convert(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        done.append(source)

    monkeypatch.setattr(models, "_convert", convert)
    return done


def some_gguf(folder: Path, name: str = "some.gguf") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"GGUF")
    return path


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    """The second call reads the copy; it lies in the cache, named after the file."""
    source = some_gguf(tmp_path)
    first = dequantise(source)
    assert first.parent == cache
    assert first.name.startswith("some-")
    assert dequantise(source) == first
    assert conversions == [source]
    assert os.listdir(cache) == [first.name]


def test_the_copy_belongs_to_the_file(tmp_path: Path, cache: Path, conversions: list[Path]) -> None:
    """Another place, another size or another time of change is another model."""
    source, elsewhere = some_gguf(tmp_path), some_gguf(tmp_path / "other")
    found = [dequantise(source), dequantise(elsewhere)]
    source.write_bytes(b"GGUF!")
    found.append(dequantise(source))
    os.utime(source, ns=(1, 1))
    found.append(dequantise(source))
    assert len(set(found)) == len(conversions) == 4


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    """Half a copy is never found by the next run, which converts again."""
    source = some_gguf(tmp_path)

    def interrupted(source: Path, target: Path) -> None:
        (target / "config.json").write_text("{}")
        raise interruption

    monkeypatch.setattr(models, "_convert", interrupted)
    with pytest.raises(type(interruption)):
        dequantise(source)
    assert os.listdir(cache) == []


def test_a_full_disk_is_one_line(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write says where and why, and leaves nothing behind."""

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models, "_convert", full)
    with pytest.raises(UserError, match=r"cannot write .*No space left.*TILLER_CACHE"):
        dequantise(some_gguf(tmp_path))
    assert os.listdir(cache) == []


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache below something that is no folder is refused with the variable that moves it."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TILLER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot write the model cache .*TILLER_CACHE"):
        dequantise(some_gguf(tmp_path))


def test_two_processes_at_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes second uses the first one's copy and removes its own."""
    source = some_gguf(tmp_path)

    def slow(source: Path, target: Path) -> None:
        (target / "config.json").write_text("slow")
        monkeypatch.setattr(models, "_convert", quick)
        dequantise(source)

    def quick(source: Path, target: Path) -> None:
        (target / "config.json").write_text("quick")

    monkeypatch.setattr(models, "_convert", slow)
    found = dequantise(source)
    assert (found / "config.json").read_text() == "quick"
    assert os.listdir(cache) == [found.name]


def test_the_alias(
    tmp_path: Path, cache: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default name is the packaged file, or the hub's model where the package or its file is missing."""
    package, file, hub_id = models.PACKAGED[models.DEFAULT_MODEL]
    init = tmp_path / package / "__init__.py"
    spec: list[ModuleSpec | None] = [None]
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: spec[0] if name == package else None)
    assert resolve(models.DEFAULT_MODEL) == hub_id
    spec[0] = ModuleSpec(package, None, origin=str(init))
    assert resolve(models.DEFAULT_MODEL) == hub_id
    some_gguf(init.parent, file)
    assert Path(resolve(models.DEFAULT_MODEL)).parent == cache
    assert conversions == [init.parent / file]


def test_names_of_other_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hub ids and directories pass as they are, a home directory is expanded, a missing path is refused."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    assert resolve("someone/model") == "someone/model"
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("~/mine") == str(tmp_path / "mine")
    for missing in ("~/not", "./not", str(tmp_path / "not")):
        with pytest.raises(UserError, match=r"model directory .*not' does not exist"):
            resolve(missing)
    with pytest.raises(UserError, match=r"model file .*not.gguf' does not exist"):
        resolve("not.gguf")


def write_gguf(path: Path) -> None:
    """Write the tiny Llama as llama.cpp does: its names, its order of the rotary columns, its tokenizer."""
    model, config = tiny_llama(), tiny_llama().config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(VOCAB)
    spelling = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(sorted(spelling["vocab"], key=spelling["vocab"].get))
    writer.add_token_types([3 if i < 3 else 1 for i in range(VOCAB)])
    writer.add_token_merges([" ".join(pair) for pair in spelling["merges"]])
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        base, _, suffix = name.rpartition(".")
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        rotary = heads.get(base.rpartition(".")[2])
        weight = parameter.detach().numpy()
        writer.add_tensor(
            f"{names.get_name(base)}.{suffix}", interleaved(weight, rotary) if rotary else weight
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows in llama.cpp's order: the two halves of each head's rotary pairs take turns."""
    halves = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def test_a_real_gguf_file(tmp_path: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """From file to logits: the copy is the model that was written, and the second load does not convert."""
    write_gguf(tmp_path / "tiny.gguf")
    loaded = load_model(str(tmp_path / "tiny.gguf"), dtype="float32", device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.lm.model(IDS).logits, tiny_llama()(IDS).logits)
    text = "The kettle sang, 漢!"
    assert loaded.tokenizer(text).input_ids == tiny_tokenizer()(text).input_ids
    assert loaded.lm.model.generation_config.eos_token_id == EOS
    assert "Preparing tiny.gguf" in capfd.readouterr().err
    again = load_model(str(tmp_path / "tiny.gguf"), dtype="float32", device="cpu")
    assert again.lm.identity == loaded.lm.identity
    assert "Preparing" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(40)])
def test_a_broken_gguf_file(tmp_path: Path, cache: Path, content: bytes) -> None:
    """A file that is no GGUF, or is cut short, is one line and leaves nothing in the cache."""
    (tmp_path / "broken.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read .*broken.gguf"):
        load_model(str(tmp_path / "broken.gguf"), device="cpu")
    assert os.listdir(cache) == []


def test_a_directory(tiny_dir: Path) -> None:
    """A local model loads in the dtype asked for, ready to be read, with its tokenizer and identity."""
    loaded = load_model(str(tiny_dir), dtype="bfloat16", device="cpu")
    assert loaded.lm.model.dtype == torch.bfloat16
    assert not loaded.lm.model.training
    assert loaded.tokenizer("The").input_ids == tiny_tokenizer()("The").input_ids
    assert loaded.lm.identity == load_model(str(tiny_dir), dtype="float32", device="cpu").lm.identity
    assert loaded.lm.identity.name == str(tiny_dir)


def corrupt_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"\x00" * 100)


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def lost_tensor(directory: Path) -> None:
    tensors = load_file(directory / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def broken_config(directory: Path) -> None:
    (directory / "config.json").write_text("{")


def unknown_architecture(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": "no-such-thing"}')


def no_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def broken_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{")


def nothing(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        corrupt_weights, cut_weights, no_weights, lost_tensor, broken_config,
        unknown_architecture, no_tokenizer, broken_tokenizer, nothing,
    ],
)  # fmt: skip
def test_a_broken_directory(tmp_path: Path, damage: object) -> None:
    """Whatever file is missing or broken: one line that names the folder."""
    directory = save_tiny(tmp_path / "model")
    damage(directory)  # type: ignore[operator]
    with pytest.raises(UserError, match=f"cannot load the model in '{directory}'"):
        load_model(str(directory), device="cpu")


def test_a_model_that_is_nowhere() -> None:
    """A name that is neither local nor on the hub (here: no network) lists what a name may be."""
    with pytest.raises(UserError, match=r"cannot load model 'no-such/model'.*local directory"):
        load_model("no-such/model", device="cpu")


def test_devices() -> None:
    """The CPU is there; what is not there is refused; "auto" is always there."""
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UserError, match="'toaster' cannot be used"):
        pick_device("toaster")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'cuda' cannot be used"):
            pick_device("cuda")


@pytest.mark.parametrize(
    ("able", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_dtype_of_a_cpu(
    monkeypatch: pytest.MonkeyPatch, able: dict[str, bool], expected: torch.dtype
) -> None:
    """bfloat16 only where the CPU computes in it: elsewhere it would be slower than float32."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert pick_dtype("auto", torch.device("cpu")) == expected


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype asked for is taken, an unknown one refused; old GPUs get float16, Apple's float32."""
    assert pick_dtype("float16", torch.device("cpu")) == torch.float16
    for able, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able: able)
        assert pick_dtype("auto", torch.device("cuda")) == expected
    assert pick_dtype("auto", torch.device("mps")) == torch.float32
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        pick_dtype("int8", torch.device("cpu"))
