import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_layers import GradientCheckpointingLayer

from md_trl.trainer.prefix_tree import build_tree
from md_trl.trainer.recurrence import TreePaths, tree_paths, unroll_recurrent_layers


sequences = st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=8), min_size=1, max_size=6)


def rows_of(*trees):
    """Ends, depths and tokens of trees, one per row; nodes that fill a row up see only themselves."""
    width = max(len(tree.tokens) for tree in trees)
    ends = torch.arange(1, width + 1).repeat(len(trees), 1)
    depths, tokens = torch.zeros_like(ends), torch.full_like(ends, -1)
    for i, tree in enumerate(trees):
        for row, values in ((ends, tree.ends), (depths, tree.depths), (tokens, tree.tokens)):
            row[i, : len(tree.tokens)] = torch.from_numpy(values)
    return ends, depths, tokens


@settings(max_examples=300)
@given(st.lists(sequences, min_size=1, max_size=3))
def test_paths_are_the_longest_sequences_and_hold_every_node_after_its_ancestors(groups):
    trees = [build_tree(group) for group in groups]
    ends, depths, tokens = rows_of(*trees)
    paths = tree_paths(ends, depths)
    unrolled = tokens.flatten()[paths.nodes]
    expected = []
    for group in groups:
        distinct = sorted(map(tuple, group))
        expected += [s for i, s in enumerate(distinct) if not any(t[: len(s)] == s for t in distinct[i + 1 :])]
    found = [tuple(row[: len(s)].tolist()) for row, s in zip(unrolled, expected, strict=True)]
    assert found == expected
    for row, tree in enumerate(trees):
        for nodes in tree.paths:
            for depth, node in enumerate(nodes):
                path, place = divmod(paths.places[row, node].item(), unrolled.shape[1])
                assert place == depth
                beginning = paths.nodes[path, : depth + 1].tolist()
                assert beginning == (row * ends.shape[1] + torch.from_numpy(nodes[: depth + 1])).tolist()


def test_a_batch_without_a_sequence_has_a_path_all_the_same():
    paths = tree_paths(torch.tensor([[1]]), torch.tensor([[0]]))
    assert paths.nodes.tolist() == [[0]] and paths.places.tolist() == [[0]]


class RunningSum(torch.nn.Module):
    """A recurrent block: its output at a token is the sum of all before it, in the row and at the positions given."""

    def forward(self, hidden_states, attention_mask=None, position_ids=None):
        assert attention_mask is None or attention_mask.dim() == 2
        return hidden_states.cumsum(1), position_ids


class Layer(GradientCheckpointingLayer):
    def __init__(self):
        super().__init__()
        self.block = RunningSum()

    def forward(self, hidden_states, **kwargs):
        return self.block(hidden_states, **kwargs)[0]


def test_a_recurrent_block_gets_paths_and_its_gradient_is_that_of_single_sequences():
    group = [[1, 2, 3], [1, 2, 4, 5], [1, 6], [1, 2]]
    tree = build_tree(group)
    ends, depths, _ = rows_of(tree, build_tree([[7, 8]]))
    states = torch.randn(*ends.shape, 3, requires_grad=True)
    layer = Layer()
    model = torch.nn.Sequential(layer)
    unroll_recurrent_layers(model)
    found = layer(states, attention_mask=tree_paths(ends, depths), position_ids=depths)
    weights = torch.randn(len(group), 3)
    loss = sum((found[0, nodes[-1]] * weight).sum() for nodes, weight in zip(tree.paths, weights, strict=True))
    alone = sum((states[0, nodes].sum(0) * weight).sum() for nodes, weight in zip(tree.paths, weights, strict=True))
    assert torch.allclose(loss, alone)
    assert torch.allclose(*(torch.autograd.grad(value, states, retain_graph=True)[0] for value in (loss, alone)))
    # Anything but paths is passed on
    assert torch.equal(layer(states, attention_mask=torch.ones_like(depths)), states.cumsum(1))
    assert isinstance(tree_paths(ends, depths), TreePaths)
