"""Hints in YAML and JSON."""

import pytest

import torch_bnb as bnb
from torch_bnb import OverrideError


def test_yaml_and_json_say_the_same(tmp_path):
    yaml, js = tmp_path / "hints.yaml", tmp_path / "hints.json"
    yaml.write_text(
        '"*.embed*.weight": {optim_bits: 32, lr: 1e-4}\nhead.bias:\n  betas: [0.9, 0.98]\n  is_sparse: false\n'
    )
    js.write_text(
        '{"*.embed*.weight": {"optim_bits": 32, "lr": 1e-4},\n "head.bias": {"betas": [0.9, 0.98], "is_sparse": false}}'
    )
    expected = {
        "*.embed*.weight": {"optim_bits": 32, "lr": 1e-4},
        "head.bias": {"betas": (0.9, 0.98), "skip_zeros": False},
    }
    assert bnb.load_overrides(yaml) == bnb.load_overrides(str(js)) == expected


def test_an_empty_file_has_no_hints(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert bnb.load_overrides(tmp_path / "empty.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.weight: {lr: 0.1}\nb.weight:\n  optim_bit: 8\n", "line 3: 'b.weight': unknown option 'optim_bit', did you"),
        ("a.weight:\n  lr: 0.1\n  eps: small\n", "line 3: 'a.weight': eps='small': expected a finite number"),
        ("a.weight: {lr: 0.1}\na.weight: {lr: 0.2}\n", "line 2: 'a.weight' stands there twice"),
        ("a.weight:\n  lr: 0.1\n  lr: 0.2\n", "line 3: 'a.weight': 'lr' stands there twice"),
        ("- a\n- b\n", r"line 1: the file must be a mapping, got \['a', 'b'\]"),
        ("a.weight: 32\n", "line 1: 'a.weight' must be a mapping, got 32"),
        ("1: {lr: 0.1}\n", "line 1: the file has a key that is no string: '1'"),
        ("a: {lr: 0.1\nb: [}\n", "line 2: "),
        ("*.weight: {lr: 0.1}\n", "line 1: .*; a name that begins with \\* must be quoted"),
        ("a: !!python/object/apply:os.system [ls]\n", "line 1: "),
    ],
)
def test_a_bad_file_names_file_line_and_key(tmp_path, text, message):
    path = tmp_path / "hints.yaml"
    path.write_text(text)
    with pytest.raises(OverrideError, match=rf"hints\.yaml, {message}"):
        bnb.load_overrides(path)
