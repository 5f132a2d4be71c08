"""The reader of safetensors, against bytes written by hand."""

from __future__ import annotations

import json
import struct

import pytest
import torch

from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from models.safetensors_file import DTYPES, read_safetensors


def write(path, header, data=b""):
    """A file with a header given as an object or as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype, shape, first, last):
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, last]}


def test_numbers_written_by_hand(tmp_path):
    """Each value's bytes, little-endian, from the definition of its format."""
    data = (
        struct.pack("<2f", 1.5, -2.0)
        + struct.pack("<e", 0.25)
        + b"\x80\x3f"  # bfloat16: the upper half of float32's 1.0, 0x3f800000
        + struct.pack("<q", -7)
        + b"\x01"
    )
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [1, 1], 10, 12),  # names need not be in the order of the data
        "a": entry("F32", [2], 0, 8),
        "h": entry("F16", [], 8, 10),
        "n": entry("I64", [1], 12, 20),
        "t": entry("BOOL", [1], 20, 21),
        "empty": entry("F32", [0, 3], 21, 21),
    }
    found = read_safetensors(write(tmp_path / "x.safetensors", header, data))
    assert found.keys() == {"a", "b", "h", "n", "t", "empty"}
    assert found["a"].tolist() == [1.5, -2.0]
    assert found["h"].item() == 0.25
    assert found["h"].shape == ()
    assert found["b"].dtype == torch.bfloat16
    assert found["b"].tolist() == [[1.0]]
    assert found["n"].tolist() == [-7]
    assert found["t"].tolist() == [True]
    assert found["empty"].shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "byte", "value"),
    # Sign, exponent and mantissa bits: 0 0111 000 and 0 01111 00 are 1; 0 1000 100 is 2 * 1.5.
    [("F8_E4M3", 0b0_0111_000, 1.0), ("F8_E4M3", 0b0_1000_100, 3.0), ("F8_E5M2", 0b0_01111_00, 1)],
)
def test_8_bit_floats(tmp_path, kind, byte, value):
    file = write(tmp_path / "x.safetensors", {"w": entry(kind, [1], 0, 1)}, bytes([byte]))
    assert read_safetensors(file)["w"].float().item() == value


@pytest.mark.parametrize("kind", sorted(DTYPES))
def test_every_dtype_keeps_its_bytes(tmp_path, kind):
    size = DTYPES[kind].itemsize
    data = bytes(i % 2 for i in range(6 * size))  # bool has bytes 0 and 1 only
    # A first entry of one byte, so that the second is not aligned.
    header = {"x": entry("U8", [1], 0, 1), "w": entry(kind, [2, 3], 1, 1 + len(data))}
    found = read_safetensors(write(tmp_path / "x.safetensors", header, b"\x05" + data))
    assert found["w"].dtype == DTYPES[kind]
    assert found["w"].shape == (2, 3)
    assert bytes(found["w"].reshape(-1).view(torch.uint8).tolist()) == data


FOUR = b"\x00\x00\x80\x3f"
BAD = {
    "empty": (b"", "header is 0 bytes"),
    "three bytes": (b"\x01\x02\x03", "header is"),
    "header longer than the file": (struct.pack("<Q", 500) + b"{}", "500 bytes long, the file 10"),
    "huge header": (struct.pack("<Q", 1 << 62) + b"{}", "bytes long, the file 10"),
    "no JSON": (struct.pack("<Q", 3) + b"{a}", "not a complete safetensors file"),
    "not UTF-8": (struct.pack("<Q", 3) + b"{\xff}", "not a complete safetensors file"),
    "a list": (struct.pack("<Q", 2) + b"[]", "header is not an object"),
}
BAD_ENTRIES = {
    "cut off": ({"w": entry("F32", [2], 0, 8)}, FOUR, "tensors take 8 bytes, but it holds 4"),
    "too long": ({"w": entry("F32", [1], 0, 4)}, FOUR * 2, "take 4 bytes, but it holds 8"),
    "unknown dtype": ({"w": entry("F4", [1], 0, 4)}, FOUR, "w has the unknown dtype F4"),
    "other size": ({"w": entry("F32", [3], 0, 4)}, FOUR, "w has 4 bytes, which do not fit F32 [3]"),
    "backwards": ({"w": entry("F32", [1], 4, 0)}, FOUR, "w has -4 bytes"),
    "negative": ({"w": entry("F32", [-1], 0, 4)}, FOUR, "the entry of w is malformed"),
    "true": ({"w": entry("F32", [True], 0, 4)}, FOUR, "the entry of w is malformed"),
    "text": ({"w": "F32"}, FOUR, "the entry of w is malformed"),
    "no shape": ({"w": {"dtype": "F32", "data_offsets": [0, 4]}}, FOUR, "the entry of w is malf"),
    "one offset": ({"w": {**entry("F32", [1], 0, 4), "data_offsets": [0]}}, FOUR, "malformed"),
    "a list as dtype": ({"w": entry(["F32"], [1], 0, 4)}, FOUR, "malformed"),
    "overlap": (
        {"w": entry("F32", [1], 0, 4), "v": entry("F32", [1], 2, 6)},
        FOUR * 2,
        "byte 2 of its data belongs to two tensors or none",
    ),
    "gap": ({"w": entry("F32", [1], 4, 8)}, FOUR * 2, "byte 0 of its data belongs to two"),
}


def check_refused(file, words):
    with pytest.raises(ValueError, match="x.safetensors: not a complete safetensors") as caught:
        read_safetensors(file)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert message.endswith("; download or save it again")


@pytest.mark.parametrize("case", BAD)
def test_damaged_files(tmp_path, case):
    content, words = BAD[case]
    (tmp_path / "x.safetensors").write_bytes(content)
    check_refused(tmp_path / "x.safetensors", words)


@pytest.mark.parametrize("case", BAD_ENTRIES)
def test_damaged_entries(tmp_path, case):
    header, data, words = BAD_ENTRIES[case]
    check_refused(write(tmp_path / "x.safetensors", header, data), words)


def safetensors(path, weights):
    """Write a state_dict, with nothing but struct and json."""
    header, data = {}, b""
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    for name, tensor in weights.items():
        raw = tensor.contiguous().numpy().tobytes()
        header[name] = entry(kinds[tensor.dtype], list(tensor.shape), len(data), len(data + raw))
        data += raw
    return write(path, header, data)


@pytest.mark.parametrize("name", ["model.safetensors", "model.bin"])  # told by content, too
@pytest.mark.parametrize("cut", [0, 1000])
def test_a_backbone(tmp_path, name, cut):
    theirs = {
        f"model.{key}": value for key, value in build_backbone("resnet18").state_dict().items()
    }
    file = safetensors(tmp_path / name, theirs)
    file.write_bytes(file.read_bytes()[: file.stat().st_size - cut])
    ours = build_backbone("resnet18")
    if cut:
        with pytest.raises(ValueError, match=f"{name}: not a complete safetensors file"):
            load_backbone_weights(ours, file)
        return
    report = load_backbone_weights(ours, file)
    assert report.layout == "torchvision's names (model.)"
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs[f"model.{key}"])
