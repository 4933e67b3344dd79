"""The Space of the metric: a form to paste answers into, which shows their scores."""

import evaluate
import gradio as gr


metric = evaluate.load("md_vote.py")
INTRODUCTION = """# md_vote
Enter one question per line. Separate the answers of a path with `|` and leave unusable answers empty. If a path has no
answer for a question, leave its line empty."""


def score(cot: str, pot: str, references: str) -> dict:
    gold = references.strip().split("\n")

    def answers(text: str) -> list[list[str]]:
        lines = text.split("\n")[: len(gold)]
        lines += [""] * (len(gold) - len(lines))
        return [[answer.strip() for answer in line.split("|")] for line in lines]

    return metric.compute(cot=answers(cot), pot=answers(pot), references=gold)


with gr.Blocks(title="md_vote") as demo:
    gr.Markdown(INTRODUCTION)
    with gr.Row():
        cot = gr.Textbox("5 | 6\n$1,080 | 1080\nyes", lines=8, label="Chain of thought")
        pot = gr.Textbox("5\n108 | 108\n", lines=8, label="Program of thought")
        references = gr.Textbox("5\n1080\nno", lines=8, label="Gold answers")
    button = gr.Button("Score", variant="primary")
    scores = gr.JSON(label="Scores")
    button.click(score, inputs=[cot, pot, references], outputs=scores)
    gr.Markdown(metric.inputs_description)

if __name__ == "__main__":
    demo.launch()
