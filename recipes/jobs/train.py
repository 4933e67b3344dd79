# /// script
# requires-python = ">=3.11"
# dependencies = [
#     # Not on PyPI yet: until it is, put the address of a repository here, `md_trl @ git+https://...`
#     "md_trl",
#     "pyyaml>=6",
# ]
# ///
"""Train a recipe as a job on Hugging Face's machines. We have not run it there.

    hf jobs uv run --flavor l40sx1 --secrets HF_TOKEN --timeout 24h -v ./recipes:/recipes \
        recipes/jobs/train.py --config /recipes/llama2-7b/svamp.yaml \
        --dataset YOU/mixed-thoughts --hub_model_id YOU/llama2-svamp

A job starts with an empty disk and loses it at the end. So `--dataset` is a dataset on the Hub, uploaded with `md-trl
publish`, the recipe's store of teacher thoughts is left out, and the student is pushed to `--hub_model_id`
(`--push_to_hub false` prevents that). All arguments are those of `md-trl train`.
"""

import argparse
import tempfile
from pathlib import Path

import yaml

from md_trl.cli import run_verb


def main() -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True)
    options, arguments = parser.parse_known_args()
    recipe = yaml.safe_load(options.config.read_text())
    recipe.pop("store", None)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, options.config.name)
        config.write_text(yaml.safe_dump(recipe))
        run_verb("train", ["--config", str(config), "--push_to_hub", "true", *arguments])


if __name__ == "__main__":
    main()
