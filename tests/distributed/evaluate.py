"""Run by `test_launched_evaluation.py` under `torchrun`: evaluate a tiny student in float64."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

from students import byte_tokenizer, tiny_llama

from md_trl.launched_evaluation import Process, evaluate_launched
from md_trl.records import SamplingParams
from md_trl.sampling.engines.transformers import TransformersEngine
from md_trl.student_evaluation import StudentEvaluation
from md_trl.tasks import load_questions


def main(folder: str, questions: str, max_tokens: str) -> None:
    engine = TransformersEngine(tiny_llama().double(), byte_tokenizer(), batch_size=8)
    evaluation = StudentEvaluation(
        load_questions("stories", "test")[: int(questions)], SamplingParams(max_tokens=int(max_tokens)), n=3
    )
    process = Process.from_environment()
    summary, result = evaluate_launched(evaluation, "student", engine, f"{folder}/student.db", process)
    Path(folder, f"sampled-{process.rank}").write_text(str(summary.thoughts))
    if result is not None:
        result.save(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
