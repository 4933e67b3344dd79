"""A stand-in for the metric `exact_match`, which `evaluate` loads from the Hub: its inputs, defaults and output."""

import datasets
import evaluate
import numpy


class ExactMatch(evaluate.Metric):
    def _info(self):
        text = datasets.Value("string", id="sequence")
        features = datasets.Features({"predictions": text, "references": text})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"exact_match": numpy.mean(numpy.asarray(predictions) == numpy.asarray(references))}
