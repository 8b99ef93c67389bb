"""Which block of a network a line belongs to, judging by the names of its layers."""

from collections.abc import Sequence

from prunetrain.graph.layergraph import TRAINING, LayerGraph, Step

# Functions that prepare the input of the next layer, and so belong to its block.
_BLOCK_OPENERS = frozenset({"F.adaptive_avg_pool2d", "torch.mean", "torch.flatten", "torch.index_select", "[:]", "[]"})


def block_of(name: str) -> str:
    """Return the block in a layer's name: "layer1.0" for layer1_0_conv1 and layer1_0_downsample_0, "" for conv1 and fc.

    That is the name up to the end of its first run of numbers or, if nothing follows them, without its last part.
    """
    parts = name.split("_")
    for start, part in enumerate(parts):
        if part.isdigit():
            end = start
            while end < len(parts) and parts[end].isdigit():
                end += 1
            if end < len(parts):
                return ".".join(parts[:end])
            break
    return ".".join(parts[:-1])


def block_of_tensor(name: str, graph: LayerGraph) -> str:
    """Return the block in the name of a declared tensor; class_token has none, unless a layer is in "class" as well."""
    block = block_of(name)
    counted = any(part.isdigit() for part in block.split("."))
    return block if counted or any(block_of(layer.name) == block for layer in graph.layers) else ""


def blocks_of(graph: LayerGraph, lines: Sequence[Sequence[int]]) -> list[str]:
    """Return the block of every line: its layer's; without a layer, that of the line before or, if it opens a block, the line after.

    Args:
        graph: the network.
        lines: for each line the numbers of its steps.
    """
    own: list[str | None] = []
    for line in lines:
        found = [block for number in line for block in _blocks_of_step(graph, graph.steps[number])]
        own.append(found[0] if found else None)
    in_training_only = [line[0] in graph.in_training_only for line in lines]
    blocks: list[str] = []
    for number, block in enumerate(own):
        following = next((b for b in own[number:] if b is not None), "")
        previous = blocks[-1] if blocks else following
        opens = graph.steps[lines[number][0]].target in _BLOCK_OPENERS or (
            number and in_training_only[number] > in_training_only[number - 1]
        )
        if block is not None:
            inside = previous and block.startswith(previous + ".")
            blocks.append(previous if inside else block)
        else:
            blocks.append(following if opens else previous)
    for number in range(len(lines) - 1, 0, -1):  # what runs in train mode only is one block, not "aux1.conv" and then "aux1"
        if in_training_only[number - 1] and in_training_only[number] and blocks[number - 1].startswith(blocks[number] + "."):
            blocks[number - 1] = blocks[number]
    return blocks


def _blocks_of_step(graph: LayerGraph, step: Step) -> list[str]:
    """Return the block of the layer that a step calls, or the blocks of the tensors that it reads."""
    if step.layer is not None:
        return [block_of(step.layer)]
    return [block_of_tensor(name, graph) for name in step.attributes() if name != TRAINING.name]
