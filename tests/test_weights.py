"""What weights tell is what plain products of them tell, and chance is that of matrices drawn by hand."""

import numpy as np
import pytest
import torch
from conftest import TINY_CFG, TOKEN_CFG, make_model, make_token_model
from hand_built import copier
from looped_others import albert, save, wrapped
from other_model import OtherSubject, draw
from transformer_lens.FactoredMatrix import FactoredMatrix
from transformer_lens.utilities.matrix import composition_scores
from transformer_lens.weight_processing import ProcessWeights

from loopprobe import figures, probe
from loopprobe.errors import LoopprobeError
from loopprobe.probes import weights
from loopprobe.probes.dataset import read_dataset, write_dataset
from loopprobe.probes.weights_chance import corners, drawn_circuits, effective_rank, real_share, turned_scores
from loopprobe.show.present import findings, tables_for
from loopprobe.store.checkpoint import Checkpoint


def subject(model, config=TINY_CFG):
    return Checkpoint(config, model, name="runs/tiny")


def asked(model, **options):
    one = subject(model)
    return weights.run(one, one.held_out(1), weights.WeightsConfig(draws=200, **options))


def by_hand(model, fold):
    """W_Q, W_K, W_V, W_O of all heads by TransformerLens's own folding, and the norm between loops, in float64."""
    parts = [getattr(model, name).detach().double() for name in ("W_Q", "W_K", "W_V", "W_O")]
    d_model = parts[0].shape[2]
    if not fold:
        return [part.flatten(0, 1) for part in parts], torch.eye(d_model, dtype=torch.float64)
    folded = []
    for layer, block in enumerate(model.blocks):
        read = ProcessWeights.fold_layer_norm_weights(
            *(part[layer] for part in parts[:3]), block.ln1.w.detach().double()
        )
        if model.cfg.normalization_type == "LN":
            read = ProcessWeights.center_attention_weights(*read)
        folded.append(read)
    reading = [torch.cat(list(same)) for same in zip(*folded, strict=True)]
    written, gain = parts[3].flatten(0, 1), model.ln_final.w.detach().double()
    centre = torch.eye(d_model, dtype=torch.float64) - 1 / d_model * (model.cfg.normalization_type == "LN")
    return [*reading, written @ centre], centre @ torch.diag(gain)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("norm", ["LN", "RMS"])
def test_circuits_and_scores_are_those_of_factored_matrices_and_of_plain_products(fold, norm):
    model = make_model(torch.float32, normalization_type=norm)
    data = asked(model, fold=fold)
    (W_Q, W_K, W_V, W_O), between = by_hand(model, fold)
    circuits = {"OV": FactoredMatrix(W_V, W_O), "QK": FactoredMatrix(W_Q, W_K.mT)}
    for name, circuit in circuits.items():
        found = data.sel(circuit=name)
        product = circuit.AB.numpy()
        np.testing.assert_allclose(found.singular_value, circuit.S, atol=1e-6)
        np.testing.assert_allclose(found.singular_value, np.linalg.svd(product, compute_uv=False)[:, :8], atol=1e-6)
        for i in range(4):
            assert (found.reads[i].max("dim") >= abs(found.reads[i]).max("dim") - 1e-12).all(), "signs are told"
            u, s, v = found.reads[i].values, found.singular_value[i, :3].values[:, None], found.writes[i].values
            np.testing.assert_allclose(u @ product[i], s * v, atol=1e-6)
            eigen = np.linalg.eigvals(product[i])
            eigen = eigen[np.abs(eigen).argsort()[::-1]][:8]
            np.testing.assert_allclose(
                np.hypot(found.eigenvalue_real[i], found.eigenvalue_imag[i]), abs(eigen), atol=1e-6
            )
            assert float(found.real_share[i]) == pytest.approx(eigen.real.sum() / abs(eigen).sum(), abs=1e-6)
    assert data["head"].values.tolist() == ["head 0.0", "head 0.1", "head 1.0", "head 1.1"]
    assert data.lag.values.tolist() == [0, 1]
    ov, qk = (circuit.AB.numpy() for circuit in circuits.values())
    lens = composition_scores(circuits["OV"], circuits["QK"], broadcast_dims=True)
    np.testing.assert_allclose(
        data.composition.sel(mode="Q", lag=0, writer=["head 0.0", "head 0.1"])[:, 2:], lens[:2, 2:], atol=1e-6
    )
    for lag, through in ((0, np.eye(16)), (1, between.numpy())):
        readers = {
            "Q": through @ qk,
            "K": through @ qk.transpose(0, 2, 1),
            "V": through @ ov,
        }
        for mode, read in readers.items():
            scores = data.composition.sel(mode=mode, lag=lag)
            for i, j in ((0, 2), (1, 3), (3, 0), (2, 2)):
                if lag == 0 and i >= 2:
                    assert scores[i].isnull().all(), "the last layer writes to no later one"
                    continue
                norm = np.linalg.norm
                expected = norm(ov[i] @ read[j]) / norm(ov[i]) / norm(read[j])
                np.testing.assert_allclose(scores[i, j], expected, atol=1e-6)


def test_raw_scores_are_those_of_the_model_itself():
    model = make_model(torch.float64)
    data = asked(model, fold=False)
    for lag in (0, 1):
        for mode in "QKV":
            expected = model.all_composition_scores(mode, next_loop=lag == 1).flatten(2, 3).flatten(0, 1).detach()
            found = data.composition.sel(mode=mode, lag=lag).fillna(0)
            np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("d_head", [3, 20])
def test_heads_smaller_and_larger_than_the_stream(d_head):
    data = asked(make_model(torch.float64, d_head=d_head))
    assert data.sizes["rank"] == min(d_head, 15)
    assert (data.singular_value.diff("rank") <= 1e-9).all()
    score = data.composition.sel(lag=1)
    assert bool(((score > 0) & (score <= 1 + 1e-9)).all())


# Heads built by hand


def hand_made(**heads):
    """One layer of two heads as wide as a stream of 8, with these weights and no gains."""
    model = make_model(torch.float64, n_layers=1, d_model=8, d_head=8, n_heads=2, normalization_type="RMS")
    with torch.no_grad():
        for norm in (model.blocks[0].ln1, model.ln_final):
            norm.weight.fill_(1)
        attn = model.blocks[0].attn
        attn.qkv.weight.zero_()
        attn.out.weight.zero_()
        for name, matrices in heads.items():
            for head, matrix in enumerate(matrices):
                rows = slice(8 * head, 8 * head + 8)
                if name == "O":
                    attn.out.weight[:, rows] = matrix.T
                else:
                    attn.qkv.weight[16 * "QKV".index(name) :][rows] = matrix.T
    return model


def onto(*places):
    """The projection onto some dimensions of 8."""
    return torch.diag(torch.tensor([float(i in places) for i in range(8)], dtype=torch.float64))


def test_a_head_that_copies_one_that_erases_and_one_that_turns():
    turn = torch.zeros(8, 8, dtype=torch.float64)
    for i in range(0, 8, 2):
        turn[i, i + 1], turn[i + 1, i] = 1, -1
    whole = torch.eye(8, dtype=torch.float64)
    for matrix, share in ((whole, 1), (-whole, -1), (turn, 0)):
        data = asked(hand_made(V=[whole, whole], O=[matrix, 3 * matrix], Q=[whole, whole], K=[whole, matrix]))
        np.testing.assert_allclose(data.real_share.sel(circuit="OV"), share, atol=1e-9)
        np.testing.assert_allclose(data.real_share.sel(circuit="QK"), [1, share], atol=1e-9)
        np.testing.assert_allclose(data.effective_rank, 8, rtol=1e-9)


def test_an_orthogonal_pair_scores_nothing_and_an_induction_pair_everything():
    """Head 0 moves dimension 0 of a token to 6; head 1 asks with 0 for what stands in 6."""
    moved = torch.zeros(8, 8, dtype=torch.float64)
    moved[0, 6] = 1
    whole = torch.eye(8, dtype=torch.float64)
    model = hand_made(V=[whole, whole], O=[moved, onto(2)], Q=[onto(0), onto(0)], K=[onto(2), moved.T])
    data = asked(model)
    pair = data.sel(lag=1, writer="head 0.0", reader="head 0.1")
    assert pair.composition.values.tolist() == pytest.approx([0, 1, 0])
    assert pair.verdict.values.tolist() == [-1, 1, -1]
    assert float(pair.sel(mode="K").chance_high) < 1
    assert data.lag.values.tolist() == [1], "in one layer every head reads what was written a loop before"
    words = findings([data])[0]
    assert "K of head 0.1 in the next loop reading head 0.0, 1.00" in words
    two = moved + torch.diag(torch.ones(7, dtype=torch.float64), 1) * (torch.arange(8) == 1)[:, None]  # and 1 to 2
    model = hand_made(V=[whole, whole], O=[two, onto(2)], Q=[onto(0, 1), onto(0, 1)], K=[onto(3), two.T])
    both = asked(model).composition.sel(mode="K", lag=1, writer="head 0.0", reader="head 0.1")
    assert float(both) == pytest.approx(2**-0.5), "of rank 2, however well they fit"


def test_the_copier_copies_and_its_other_head_takes_the_stream_away():
    data = probe("weights", copier(), 1, draws=100, fold=False)
    assert data.real_share.sel(circuit="OV").values.tolist() == pytest.approx([1, -1])


# Chance


def test_chance_is_that_of_turned_matrices():
    """Scores of whole matrices with a rotation between them, drawn by another road, have the same distribution."""
    rng = np.random.default_rng(0)
    one, other = (
        rng.normal(size=(12, 3)) @ np.diag(scale) @ rng.normal(size=(3, 12)) for scale in ([5, 1, 1], [1, 1, 0])
    )
    turned = []
    for _ in range(4000):
        q, r = np.linalg.qr(rng.normal(size=(12, 12)))
        turned.append(
            np.linalg.norm(one @ (q * np.sign(np.diag(r))) @ other) / np.linalg.norm(one) / np.linalg.norm(other)
        )
    spectra = [torch.tensor(np.linalg.svd(matrix, compute_uv=False)[:3]) for matrix in (one, other)]
    found = turned_scores(spectra[0], spectra[1][None], corners(4000, 3, 12, 1))[:, 0].numpy()
    assert (found**2).mean() == pytest.approx(1 / 12, rel=0.05)
    for level in (0.025, 0.5, 0.975):
        assert np.quantile(found, level) == pytest.approx(np.quantile(turned, level), rel=0.06)


def test_random_circuits_are_those_of_products_of_normal_matrices():
    rng = np.random.default_rng(1)
    ranks, scores = [], []
    for _ in range(800):
        ov, qk = (rng.normal(size=(10, 4)) @ rng.normal(size=(4, 10)) for _ in range(2))
        values = np.linalg.svd(ov, compute_uv=False)
        ranks.append((values**2).sum() ** 2 / (values**4).sum())
        scores.append(np.linalg.norm(ov @ qk) / np.linalg.norm(ov) / np.linalg.norm(qk))
    drawn = drawn_circuits(2000, 10, 4, corners(2000, 4, 10, 0), 0)
    assert drawn.effective_rank.mean().item() == pytest.approx(np.mean(ranks), rel=0.03)
    assert drawn.composition.mean().item() == pytest.approx(np.mean(scores), rel=0.03)
    assert drawn.composition.std().item() == pytest.approx(np.std(scores), rel=0.15)
    assert abs(drawn.real_share.mean().item()) < 0.03


def test_a_random_model_is_at_chance_as_often_as_it_should_be():
    model = make_model(torch.float64, n_heads=8, d_model=32, d_head=4, n_layers=2)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for block in model.blocks:
            for part in (block.attn.qkv, block.attn.out):
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator, dtype=torch.float64))
            block.ln1.weight.fill_(1)
        model.ln_final.weight.fill_(1)
    data = asked(model)
    outside = float((data.verdict != 0).sum() / data.composition.notnull().sum())
    assert 0.02 < outside < 0.09


def test_numbers_of_spectra():
    values = torch.tensor([[2.0, 2, 2, 0], [1, 0, 0, 0]], dtype=torch.float64)
    assert effective_rank(values).tolist() == [3, 1]
    assert real_share(torch.tensor([1 + 1j, 1 - 1j])).item() == pytest.approx(2**-0.5)


# Models of other kinds


@pytest.mark.parametrize(
    "fields", [{"injection": "multiply"}, {"injection": "multiply", "n_layers": 1}, {"n_loops": 1}]
)
def test_only_scores_that_weights_tell_are_given(fields):
    model = make_model(torch.float64, **fields)
    data = asked(model)
    if fields.get("n_layers") == 1:
        assert "composition" not in data
        assert list(figures([data])) == ["weights-spectra"]
        assert "no pair of heads" in findings([data])[0]
    else:
        assert data.lag.values.tolist() == [0]
    assert tables_for([data])[0].row_count == data.sizes["head"]


@pytest.mark.parametrize("kind", ["regression", "tokens", "albert", "ouro"])
def test_datasets_are_shown_and_survive_a_file(kind, tmp_path):
    if kind == "regression":
        data = asked(make_model(torch.float32), layers="last", heads=(1,), vectors=1)
        assert data["head"].values.tolist() == ["head 1.1"]
    elif kind == "tokens":
        one = subject(make_token_model(), TOKEN_CFG)
        data = probe("weights", one, 1, draws=100)
    else:
        data = of_wrapped(kind)
        module = wrapped(kind).module
        attention = (
            module.model.layers[1].self_attn if kind == "ouro"
            else module.albert.encoder.albert_layer_groups[0].albert_layers[0].attention
        )  # fmt: skip
        w_v = attention.qkv.weight[64:] if kind == "ouro" else attention.value.weight
        w_o = (attention.o_proj if kind == "ouro" else attention.dense).weight
        product = (w_v[8:16].T @ w_o[:, 8:16].T).detach()
        name = "head 1.1" if kind == "ouro" else "head 0.1"
        expected = torch.linalg.svdvals(product)[:8]
        np.testing.assert_allclose(data.singular_value.sel(circuit="OV", head=name), expected, rtol=1e-4)
    write_dataset(data, tmp_path / "data.nc")
    data = read_dataset(tmp_path / "data.nc")
    assert figures([data])
    assert tables_for([data])[0].row_count == data.sizes["head"]
    assert findings([data])


def of_wrapped(kind):
    class OfWrapped(OtherSubject):
        def __init__(self):
            super().__init__()
            self.model = wrapped(kind)

        def identity(self):
            return {"name": self.name, "weights": "none", "config": {"model": {}}}

        def loops_of(self, prompts):
            return 3

    return weights.run(OfWrapped(), draw(1), weights.WeightsConfig(draws=100))


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("dory", {}, "more than their projections"),
        ("hrm_text", {}, "more than their projections"),
        ("inkling", {}, "not known as queries"),
        ("ouro", {"fold": True}, "fold needs norms"),
    ],
)
def test_heads_that_weights_do_not_tell_are_refused(kind, options, words):
    model = wrapped(kind)
    assert ("heads" in model.supports) == (kind == "ouro")
    with pytest.raises(LoopprobeError, match=words):
        model.head_weights(**options)


@pytest.mark.parametrize(
    ("options", "words"), [({"layers": 2}, "layer 2"), ({"heads": "nobody"}, "nobody"), ({"draws": 5}, "draws")]
)
def test_bad_options_are_refused(options, words, checkpoint):
    with pytest.raises(LoopprobeError, match=words):
        probe("weights", checkpoint, 1, **options)


def test_the_verb_takes_models_of_every_kind_and_no_prompts(command, tmp_path):
    folder = save(albert(), tmp_path / "albert")
    for name, heads in (("lr-b5-T5", 4), (f"hf:{folder}", 4)):
        code, out, err = command("weights", "--ckpt", name, "--draws", 100, "--out", "o", "--overwrite")
        assert code == 0, err
        assert read_dataset(tmp_path / "o" / "weights.nc").sizes["head"] == heads
        assert (tmp_path / "o" / "weights-spectra.html").exists()
        assert "composition scores are above chance" in out
    code, _, err = command("weights", "--ckpt", "lr-b5-T5", "--prompts", 5)
    assert (code, err.count("\n")) == (2, 1)
    code, _, err = command("weights", "--ckpt", f"hf:{save(wrapped('dory').module, tmp_path / 'dory')}")
    assert code == 2
    assert "heads that are their projections alone" in err.splitlines()[-1]
