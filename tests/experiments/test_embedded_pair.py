"""The pair that ships with the project is small, true to bytes, and accepted often enough to be worth using."""

import tomllib
from pathlib import Path

import pytest

from calibrate.acceptance import acceptance_table
from engines.pairs.origin import EMBEDDED
from engines.pairs.shapes import find_shape
from engines.workload.corpus import held_out_files, held_out_prompt, is_held_out, stdlib_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from engines.live.model.permutation import shape_config  # noqa: E402
from experiments.embedded_pair.byte_level import EOS  # noqa: E402
from experiments.embedded_pair.quality import live_positions, measure_acceptance  # noqa: E402

NAMES = ("target", "draft")
pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def tokenizers() -> list[transformers.PreTrainedTokenizerFast]:
    load = transformers.AutoTokenizer.from_pretrained
    return [load(EMBEDDED / name, local_files_only=True) for name in NAMES]


def parameters(folder: Path) -> int:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert model.generation_config.eos_token_id == EOS
    return model.num_parameters()


def test_the_draft_has_at_most_a_tenth_of_the_targets_parameters() -> None:
    assert 10 * parameters(EMBEDDED / "draft") <= parameters(EMBEDDED / "target")


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_shapes_has_those_of_the_pair(name: str) -> None:
    shipped = transformers.AutoConfig.from_pretrained(EMBEDDED / name, local_files_only=True)
    made = shape_config(find_shape(f"embedded-{name}")).to_dict()
    assert {field: value for field, value in shipped.to_dict().items() if made.get(field) != value}.keys() <= {
        "architectures", "dtype", "transformers_version", "_name_or_path", "pretraining_tp",
    }  # fmt: skip


def test_the_pair_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) <= 12_000_000


@pytest.mark.parametrize(
    "text",
    [
        "def f(x):\n\treturn x\r\n",
        "  two  spaces , and n't 's \u00e9 \u4e16\u754c \U0001f600 \x00\x7f\xad\u00a0",
        "<bos>text is never special<eos><pad>",
        "".join(chr(code) for code in range(0x800)),
        "",
    ],
)
def test_a_token_is_a_byte_and_any_text_survives_the_round_trip(
    tokenizers: list[transformers.PreTrainedTokenizerFast], text: str
) -> None:
    for tokenizer in tokenizers:
        assert tokenizer.encode(text) == list(text.encode())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids_follow_the_bytes(tokenizers: list[transformers.PreTrainedTokenizerFast]) -> None:
    for tokenizer in tokenizers:
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (256, 257, 258)
        assert tokenizer.decode([104, 105, 257, 258], skip_special_tokens=True) == "hi"
        assert len(tokenizer) == 264


def test_the_shipped_pair_emits_at_least_two_and_a_half_tokens_per_verify() -> None:
    tapes = measure_acceptance(EMBEDDED, requests=12, prompt_tokens=96, output_tokens=48)
    assert len(tapes) == 12
    assert 1 + acceptance_table(tapes, 4)["rate"].sum() >= 2.5


def test_the_recorded_acceptance_length_is_one_plus_the_sum_of_the_rates() -> None:
    acceptance = tomllib.loads((EMBEDDED / "training.toml").read_text())["acceptance"]
    for measured in (acceptance["k4"], acceptance["k8"]):
        assert measured["acceptance_length"] == pytest.approx(1 + sum(measured["rates"]), abs=2e-3)
        assert measured["rates"] == sorted(measured["rates"], reverse=True)


def test_output_after_the_first_eos_is_not_live() -> None:
    output = torch.tensor([[1, EOS, 2, EOS], [1, 2, 3, 4]])
    assert live_positions(output).tolist() == [[True, True, False, False], [True] * 4]


def test_held_out_prompts_come_from_held_out_files_and_depend_on_seed_and_index_alone() -> None:
    text = b"".join(held_out_files().values())
    prompts = [held_out_prompt(7, index, 200) for index in range(20)]
    assert prompts[13] == held_out_prompt(7, 13, 200)
    assert len(set(prompts)) > 15
    for prompt in prompts:
        assert len(prompt) == 200
        assert prompt in text
    share = sum(map(is_held_out, stdlib_files())) / len(stdlib_files())
    assert 0.02 < share < 0.10
