"""Three token models whose weights are set by hand, so that what every probe should say of them is known.

Everything in their streams is 0 or 1, with as many ones at every token, so that a layer norm divides by a known number
and subtracts a known one: its gain and bias undo it. With a large ``eps`` that holds near these states too: the norm
only subtracts the mean, and what is pushed into a state stays apart from what was there.
"""

import torch

from loopprobe.config.sources import load_config
from loopprobe.model.looped import LoopedTransformer
from loopprobe.store.checkpoint import Checkpoint

SHARP = 200.0  # score of the token that is attended to, over all others
SURE = 20.0  # logit of the answer, over all others
LINEAR = 1e8  # an eps with which a norm is linear


def copier(length=4, n_ctx=17, symbols=8, eps=1e-5):
    """Copies: each loop moves the content of every token one place to the right, and the first keeps its own.

    The state is the content, one-hot. Head 0 brings that of the token before, head 1 takes the whole stream away.
    """
    vocabulary = symbols + 2
    model, config = _blank("copy", length, n_ctx, vocabulary + n_ctx, eps, f"task.symbols={symbols}")
    content, places = torch.arange(vocabulary), vocabulary + torch.arange(n_ctx)
    with torch.no_grad():
        model.read_in.weight[content, content] = 1
        model.W_pos[places - vocabulary, places] = 1
        attn = model.blocks[0].attn
        _attend(attn, 0, places, back=1)[content, content] = 1
        _attend(attn, 1, places, back=0).fill_diagonal_(-1)
        _undo(model.blocks[0].ln1, ones=2)
        _undo(model.ln_final, ones=1, kept=content)
        model.read_out.weight[content.where(content < symbols, 0), content] = SURE  # a mark is read as the letter a
    return Checkpoint(config, model, name="runs/copier")


# The pairs of the other model: a bit and its complement. The first two are in the input, the three BEFORE come from the
# token before. Those between are of the state, as (bit, -bit), to which the input adds (0, 1).
A, B, CARRY, DIGIT, STARTED, A_BEFORE, B_BEFORE, CARRY_BEFORE = range(0, 16, 2)


def carrier(length=4, n_ctx=10, eps=1e-5):
    """Adds binary numbers: each loop passes every carry one place on.

    The state of a token is the carry that comes in, the digit of the result, and that the loop has started. Layer 0:
    head 0 brings the column and the carry of the token before, head 1 takes the stream away but for the own column,
    and the MLP makes the new carry. Layer 1: the MLP makes the new digit. What is kept is read as the difference of a
    pair, which a norm's mean leaves as it is.
    """
    model, config = _blank("addition", length, n_ctx, 16 + n_ctx, eps, "model.n_layers=2")
    places, state = 16 + torch.arange(n_ctx), [CARRY, CARRY + 1, DIGIT, DIGIT + 1]
    with torch.no_grad():
        for token, (a, b) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1), (0, 0), (0, 0)]):  # columns, "=", start
            for pair, bit in ((A, a), (B, b), (CARRY, 0), (DIGIT, 0), (STARTED, 0)):
                model.read_in.weight[token, pair + 1 - bit] = 1
        model.W_pos[places - 16, places] = 1
        first, second = model.blocks
        before, own = _attend(first.attn, 0, places, back=1), _attend(first.attn, 1, places, back=0)
        own.fill_diagonal_(-1)
        for head, read, written in (
            (before, A, A_BEFORE), (before, B, B_BEFORE), (before, CARRY, CARRY_BEFORE), (own, A, A), (own, B, B),
        ):  # fmt: skip
            head[written : written + 2, read : read + 2] += torch.tensor([[0.5, -0.5], [-0.5, 0.5]])
            first.attn.out.bias[written : written + 2] = 0.5
        _steps(first.mlp, (A_BEFORE, B_BEFORE, CARRY_BEFORE), {1.5: 1}, CARRY)
        _steps(second.mlp, (A, B, CARRY), {0.5: 1, 1.5: -1, 2.5: 1}, DIGIT)
        for norm, ones in ((first.ln1, 6), (first.ln2, 5), (second.ln1, 6), (second.ln2, 6)):
            _undo(norm, ones)
        _undo(model.ln_final, ones=7, kept=state)
        model.ln_final.bias[[CARRY + 1, DIGIT + 1]] -= 1
        model.ln_final.bias[STARTED], model.ln_final.bias[STARTED + 1] = 1, -1
        model.read_out.weight[1, DIGIT], model.read_out.bias[1] = 2 * SURE, -SURE
    return Checkpoint(config, model, name="runs/carrier")


BITS, SUM, RIPPLE = range(0, 6, 2)  # the pairs of the third model, each (x, -x); the last is its carry


def rippler(length=4, n_ctx=7, eps=LINEAR):
    """Adds binary numbers: loop t, from 1, brings the carry that comes out of column t, and nothing else.

    At the token behind column t head 0 sums the two bits of the column and the carry into it, and the MLP writes the
    carry out: at least 2. It sees the column before where that is the one of the loop, and else the start, where all is
    0. So every token is written once, and nothing has to be cleared. The last carry is the answer at the query.
    """
    carry, first_place = RIPPLE, RIPPLE + 2
    first_loop = first_place + n_ctx
    model, config = _blank("addition", length, n_ctx, first_loop + length, eps, "model.loop_embedding=true")
    with torch.no_grad():
        for token, bits in enumerate([0, 1, 1, 2]):  # the columns; "=" and the start have none
            model.read_in.weight[token, [BITS, BITS + 1]] = torch.tensor([1.0, -1.0]) * bits
        model.W_pos[:, first_place:first_loop].fill_diagonal_(1)
        model.W_loop[:, first_loop:].fill_diagonal_(1)
        attn, mlp = model.blocks[0].attn, model.blocks[0].mlp
        width = attn.d_head
        queries, keys, values = (attn.qkv.weight[part * 2 * width : part * 2 * width + width] for part in range(3))
        sharp = SHARP * width**0.5
        for place in range(n_ctx):
            keys[place, first_place + place] = 1
            if 0 < place < n_ctx - 1:
                queries[place, first_place + place + 1] = sharp
            if 0 < place <= length:
                queries[place, first_loop + place - 1] = sharp
        attn.qkv.bias[0] = 1.5 * sharp
        values.fill_diagonal_(1)
        for pair in (BITS, carry):
            attn.out.weight[[SUM, SUM + 1], pair] = torch.tensor([1.0, -1.0])
        for unit, least in enumerate((1, 2)):
            mlp.fc_in.weight[unit, SUM], mlp.fc_in.bias[unit] = 1, -least
            mlp.fc_out.weight[[carry, carry + 1], unit] = torch.tensor([1.0, -1.0]) * (1 - 2 * unit)
        for norm in (model.blocks[0].ln1, model.blocks[0].ln2):
            _undo(norm, ones=2)
        _undo(model.ln_final, ones=2, kept=[carry, carry + 1])
        model.read_out.weight[1, carry], model.read_out.bias[1] = 2 * SURE, -SURE
    return Checkpoint(config, model, name="runs/rippler")


def _blank(task, length, n_ctx, d_model, eps, *more):
    """A model of a task, of two heads as wide as its stream, whose every weight is 0, with its configuration."""
    config = load_config(
        overrides=[
            f"task.name={task}", f"task.length={length}", f"model.n_loops={length}", f"model.n_ctx={n_ctx}",
            f"model.d_model={d_model}", "model.n_heads=2", f"model.d_head={d_model}", f"model.eps={eps}",
            f"model.injection={'none' if task == 'copy' else 'add'}", "model.act_fn=relu", "model.d_mlp=6",
            "model.positional_embedding_type=standard", "train.loops.kind=length", "train.loop_window=1",
            "train.device=cpu", *more,
        ]
    )  # fmt: skip
    model = LoopedTransformer(config.model).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model, config


def _attend(attn, head, places, back):
    """Let a head see the token some places back, the first ones themselves; return where what it writes is set."""
    queries, keys, values = ((part * attn.n_heads + head) * attn.d_head for part in range(3))
    own = torch.arange(len(places))
    attn.qkv.weight[keys + own, places] = 1
    attn.qkv.weight[queries + own[: len(own) - back], places[back:]] = SHARP * attn.d_head**0.5
    attn.qkv.weight[values : values + attn.d_head].fill_diagonal_(1)
    return attn.out.weight[:, head * attn.d_head : (head + 1) * attn.d_head]


def _steps(mlp, pairs, steps, written):
    """Write to a pair a sum of steps, {place: height}, of the sum of some bits; the steps are flat but for 1/4."""
    for i, (place, height) in enumerate(steps.items()):
        for unit, end, sign in ((2 * i, 0.5, 1), (2 * i + 1, -0.5, -1)):
            mlp.fc_in.weight[unit, list(pairs)] = 2
            mlp.fc_in.bias[unit] = end - 2 * place
            mlp.fc_out.weight[[written, written + 1], unit] = torch.tensor([1.0, -1.0]) * sign * height
    mlp.fc_out.bias[written + 1] = 1


def _undo(norm, ones, kept=slice(None)):
    """Let a norm leave a stream of so many ones as it is, or keep some places of it and set the others to 0."""
    mean = ones / len(norm.weight)
    norm.weight[kept] = (mean - mean**2 + norm.eps) ** 0.5
    norm.bias[kept] = mean
