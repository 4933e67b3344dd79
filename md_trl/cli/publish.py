"""`md-trl publish`: publish a dataset, or the metric `md_vote`, on the Hub."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import UsageError


@dataclass
class PublishArguments:
    r"""
    Arguments of `md-trl publish`.

    Args:
        repo (`str`):
            Hub id to publish to, for example `md/mixed-thoughts`. It is created if it does not exist.
        dataset (`str`, *optional*):
            Folder that `md-trl mix` wrote.
        thoughts (`str`, *optional*):
            Store whose thoughts to publish with the dataset, wrong ones and type 4 included.
        metric (`bool`, *optional*, defaults to `False`):
            Publish the metric `md_vote` as a Space instead of a dataset.
        private (`bool`, *optional*, defaults to `False`):
            Create the repository as a private one.
        tag (`str`, *optional*):
            Tag of the commit, for example `v1.0`.
        allow (`list[str]`, *optional*, defaults to `[]`):
            Kinds of secrets that are known to be harmless: `api_key`, `token`, `private_key`, `password`, `email`.
    """

    repo: str = field(metadata={"help": "Hub id to publish to. It is created if it does not exist."})
    dataset: str | None = field(default=None, metadata={"help": "Folder that `md-trl mix` wrote."})
    thoughts: str | None = field(
        default=None,
        metadata={"help": "Store whose thoughts to publish with the dataset, wrong ones and type 4 included."},
    )
    metric: bool = field(
        default=False, metadata={"help": "Publish the metric `md_vote` as a Space instead of a dataset."}
    )
    private: bool = field(default=False, metadata={"help": "Create the repository as a private one."})
    tag: str | None = field(default=None, metadata={"help": "Tag of the commit, for example `v1.0`."})
    allow: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Kinds of secrets that are known to be harmless: `api_key`, `token`, `private_key`, `password`, "
            "`email`."
        },
    )


ARGUMENTS = PublishArguments


def run(args: PublishArguments) -> None:
    """Publish, and print what was published."""
    from ..hub import publish_dataset, publish_metric

    if args.metric == (args.dataset is not None):
        raise UsageError("Name either a folder with `--dataset`, or `--metric`.")
    if args.metric:
        if args.thoughts is not None or args.allow:
            raise UsageError("`--thoughts` and `--allow` need `--dataset`: the metric holds no thoughts.")
        published = publish_metric(args.repo, args.private, args.tag)
    else:
        published = publish_dataset(args.dataset, args.repo, args.thoughts, args.private, args.tag, args.allow)
    print(published.format())
