import pytest
from architectures import ARCHITECTURES, NOT_BUILT, Outcome, compare


EXACT = (
    "llama gpt2 mistral qwen3 gemma3_text gpt_oss olmo3 llama4_text deepseek_v32 mixtral qwen3_moe roberta opt lfm2 "
    "qwen3_next jamba"
).split()
PADDED = "bart bloom mpt falcon-alibi roformer gpt_neo mamba mamba2 rwkv recurrent_gemma zaya whisper".split()
REFUSED = "xlnet cpmant bert-encoder prophetnet reformer".split()


def verdict(outcome: Outcome) -> str:
    """The verdict, with what led to it where it is a bad one."""
    if outcome.verdict in ("exact", "falls back", "refused"):
        return outcome.verdict
    return f"{outcome.verdict} {outcome}"


@pytest.mark.parametrize("architecture", EXACT)
def test_an_architecture_trains_exactly_in_a_tree(architecture):
    assert verdict(compare(architecture)) == "exact"


@pytest.mark.parametrize("architecture", PADDED)
def test_an_architecture_falls_back_to_padded_rows_and_trains_exactly(architecture):
    assert verdict(compare(architecture)) == "falls back"


@pytest.mark.parametrize("architecture", REFUSED)
def test_an_architecture_that_cannot_train_exactly_is_refused_by_name(architecture):
    outcome = compare(architecture)
    assert verdict(outcome) == "refused" and "check_layout=False" in outcome.refusal


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tree", "packed", "padded"])
def test_no_architecture_is_silently_wrong_or_crashes(layout):
    outcomes = [compare(architecture, layout) for architecture in ARCHITECTURES]
    assert len(outcomes) >= 160
    bad = [verdict(o) for o in outcomes if o.verdict not in ("exact", "falls back", "refused")]
    assert not bad, "\n".join(bad)
    assert {o.architecture for o in outcomes if o.verdict == "refused"} == set(REFUSED) | {"xlm"}
    assert not set(ARCHITECTURES) & set(NOT_BUILT)
