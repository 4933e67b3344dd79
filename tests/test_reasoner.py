import pytest
from students import byte_tokenizer, tiny_llama

from md_trl import MixedReasoner
from md_trl.voting import vote


def test_a_student_that_learned_two_answers_by_heart_votes_for_them(tmp_path):
    from datasets import Dataset

    from md_trl import MDConfig, MDTrainer

    rows = [
        {"question": "Two and two?", "type": 3, "lambda": 0.5, "cot": ["The answer is 4."], "pot": ["answer = 2 + 2"]},
        {"question": "Who?", "type": 3, "lambda": 0.5, "cot": ["The answer is Ann."], "pot": ["answer = 'Ann'"]},
    ]
    model, tokenizer = tiny_llama(), byte_tokenizer()
    args = MDConfig(
        output_dir=str(tmp_path), max_steps=150, learning_rate=1e-2, use_cpu=True, report_to="none", disable_tqdm=True
    )
    MDTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    reasoner = MixedReasoner(model, tokenizer, n_cot=2, n_pot=3, temperature=0.3, max_tokens=30)
    first, second = reasoner([row["question"] for row in rows])
    assert (first.answer, second.answer) == ("4", "ann")
    for reasoned in (first, second):
        assert [len(reasoned.cot), len(reasoned.pot)] == [2, 3]
        assert reasoned.answer == vote([t.answer for t in reasoned.cot], [t.answer for t in reasoned.pot])
    assert reasoner([]) == []


def test_nothing_to_vote_on_is_refused():
    with pytest.raises(ValueError, match="leave nothing to vote on"):
        MixedReasoner(tiny_llama(), byte_tokenizer(), n_cot=0, n_pot=0)


def test_a_bare_text_is_refused():
    reasoner = MixedReasoner(tiny_llama(), byte_tokenizer(), n_cot=1, n_pot=0)
    with pytest.raises(TypeError, match=r"Write \[question\]"):
        reasoner("What is 2 plus 3?")
