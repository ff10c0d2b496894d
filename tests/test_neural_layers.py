"""Layers that quantize: their gradients beside plain autograd, how codebooks learn, layouts."""

import copy
import io
import itertools
import math
import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from torch.nn import functional as F  # noqa: E402

from fastvq import kernels, reference  # noqa: E402
from fastvq.neural import (  # noqa: E402
    Codebook,
    FiniteScalarQuantize,
    Frozen,
    NotFiniteError,
    ProductResidualVectorQuantize,
    ProductVectorQuantize,
    ResidualVectorQuantize,
    VectorQuantize,
)
from fastvq.neural.layers import AtPositions  # noqa: E402

LAYERS = {
    "vector": lambda **options: VectorQuantize(6, 10, **options),
    "product": lambda **options: ProductVectorQuantize(6, 3, 10, **options),
    "residual": lambda **options: ResidualVectorQuantize(6, 2, 10, **options),
    "searched": lambda **options: ResidualVectorQuantize(6, 2, 10, beam_width=3, **options),
    "product residual": lambda **options: ProductResidualVectorQuantize(6, 3, 2, 10, **options),
    "finite": lambda **options: FiniteScalarQuantize(6, (4, 5, 3, 2, 2, 3), **options),
}
LEARNING = ["vector", "product", "residual", "searched", "product residual"]


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=LAYERS)
def layer(request):
    return LAYERS[request.param]()


# ---- gradients, beside what autograd makes of the definitions ------------------------------


def plain_rotation(x, q):
    """λ R x with R as a matrix a row, both constants: (3) and (4) of Fifty et al."""
    unit_x, unit_q = F.normalize(x, dim=1).detach(), F.normalize(q, dim=1).detach()
    r = F.normalize(unit_x + unit_q, dim=1)
    outer = torch.einsum
    R = torch.eye(x.shape[1], dtype=x.dtype) - 2 * outer("ni,nj->nij", r, r)
    R = R + 2 * outer("ni,nj->nij", unit_q, unit_x)
    scale = (q.norm(dim=1) / x.norm(dim=1)).detach()
    return scale[:, None] * torch.einsum("nij,nj->ni", R, x)


def plain_straight_through(x, q):
    return x + (q - x).detach()


def plain_step(x, codebook, *, update, gradient, metric, commitment=0.25):
    """What a layer computes, in a few lines of autograd."""
    if metric == "cosine":
        x, codebook = F.normalize(x, dim=1), F.normalize(codebook, dim=1)
    codes = torch.cdist(x, codebook).argmin(1)
    q = F.embedding(codes, codebook)
    loss = commitment * F.mse_loss(x, q.detach())
    if update == "gradient":
        loss = loss + F.mse_loss(q, x.detach())
    estimate = {"rotation": plain_rotation, "straight-through": plain_straight_through}[gradient]
    return estimate(x, q.detach()), codes, loss


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("gradient", ["straight-through", "rotation"])
@pytest.mark.parametrize("update", ["average", "gradient"])
def test_a_step_is_the_plain_one(update, gradient, metric):
    start = torch.randn(10, 6, dtype=torch.float64)
    layer = VectorQuantize(6, 10, update=update, gradient=gradient, metric=metric, init=start)
    x = torch.randn(200, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(200, 6, dtype=torch.float64)
    start = layer.codebook.codebook.detach().clone().requires_grad_()

    out = layer(x)
    ((out.values * weight).sum() + out.loss).backward()
    ours = x.grad.clone()
    x.grad = None
    values, codes, loss = plain_step(x, start, update=update, gradient=gradient, metric=metric)
    ((values * weight).sum() + loss).backward()

    assert (out.codes == codes).all()
    torch.testing.assert_close(out.values, values)
    torch.testing.assert_close(out.loss, loss)
    torch.testing.assert_close(ours, x.grad)
    if update == "gradient":
        torch.testing.assert_close(layer.codebook.codebook.grad, start.grad)


def test_values_are_the_codewords_to_the_last_bit():
    for gradient in ("straight-through", "rotation"):
        layer = VectorQuantize(6, 10, gradient=gradient).eval()
        out = layer(1e3 * torch.randn(500, 6))
        assert (out.values == layer.codebook.codewords[out.codes]).all()


def test_rotation_of_rows_without_a_direction_is_straight_through():
    layer = VectorQuantize(3, 2, gradient="rotation", init=torch.tensor([[0.0] * 3, [2.0] * 3]))
    x = torch.zeros(2, 3, requires_grad=True)
    layer.eval()(x).values.sum().backward()
    assert (x.grad == 1).all()


def test_rotation_to_the_opposite_is_finite():
    layer = VectorQuantize(2, 1, gradient="rotation", init=torch.tensor([[-2.0, 0.0]])).eval()
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    layer(x).values.sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_gradient_of_a_sum_of_stages_arrives_once():
    layer = ResidualVectorQuantize(6, 4, 10)
    x = torch.randn(50, 6, requires_grad=True)
    layer.eval()(x).values.sum().backward()
    assert (x.grad == 1).all()


def test_codes_do_not_depend_on_the_batch():
    layer = VectorQuantize(6, 10)
    x = torch.randn(300, 6)
    layer(x)
    codes = layer.eval().encode(x)
    assert all((layer.encode(x[i : i + 7]) == codes[i : i + 7]).all() for i in range(0, 300, 7))
    book = layer.codebook.codewords.numpy()
    assert (codes.numpy() == reference.assign(x.numpy(), book)).all()


# ---- how codebooks learn -------------------------------------------------------------------


def test_moving_averages():
    start = torch.randn(4, 3)
    book = Codebook(4, 3, init=start, decay=0.9, dead_below=0)
    counts, totals = torch.full((4,), 50 / 4), start * 50 / 4
    for _ in range(3):
        x = torch.randn(50, 3)
        before = book.codewords.clone()
        _, chosen, codes, _ = book(x)
        assert (chosen == before[torch.from_numpy(codes).long()]).all()  # as it was
        hot = F.one_hot(torch.from_numpy(codes).long(), 4).float()
        counts = 0.9 * counts + 0.1 * hot.sum(0)
        totals = 0.9 * totals + 0.1 * hot.T @ x
        torch.testing.assert_close(book.codewords, totals / counts[:, None])
        torch.testing.assert_close(book.counts, counts)


@pytest.mark.parametrize("update", ["average", "gradient"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_starts_with_k_means(update, metric):
    """The first batch of three blobs is quantized with its own k-means."""
    centres = torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, -5.0]])
    x = centres.repeat(100, 1) + 0.1 * torch.randn(300, 2)
    layer = VectorQuantize(2, 3, update=update, metric=metric, decay=0.0)
    out = layer(x)
    assert (out.perplexity - 3).abs() < 1e-5 and out.dead_share == 0
    wanted = F.normalize(centres, dim=1) if metric == "cosine" else centres
    assert torch.cdist(wanted, layer.codebook.codewords.detach()).min(1).values.max() < 0.1


def test_k_means_waits_for_enough_rows():
    """Small first batches: started again as rows double, and not once there are enough."""
    book = Codebook(16, 4, start_rows=200, decay=0.999)
    seen = []
    for _ in range(30):
        before = book.codewords.clone()
        x = torch.randn(10, 4)
        book(x)
        moved = (book.codewords - before).abs().amax(1)
        seen.append(bool((moved > 0.2).sum() > 8))
    assert np.flatnonzero(seen).tolist() == [0, 1, 3, 7, 15, 19]


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_dead_codewords_come_back(update):
    """Codewords far from all rows are moved among them, and stay in use."""
    start = torch.cat([torch.randn(8, 4), 100 + torch.randn(24, 4)])
    layer = VectorQuantize(4, 32, init=start, update=update, decay=0.8)
    assert math.isnan(layer.codebook.dead_share)
    x = torch.randn(1000, 4)
    first = layer(x)
    assert first.perplexity < 9
    for _ in range(40):
        last = layer(x)
    assert last.perplexity > 16 and last.dead_share == 0 and last.loss < first.loss / 2


def test_dead_codewords_stay_where_that_is_wanted():
    start = torch.cat([torch.randn(8, 4), 100 + torch.randn(24, 4)])
    layer = VectorQuantize(4, 32, init=start, decay=0.5, dead_below=0)
    for _ in range(40):
        layer(torch.randn(100, 4))
    assert (layer.codebook.codewords[8:] == start[8:]).all()
    assert torch.isfinite(layer.codebook.codewords).all()


def test_fewer_rows_than_codewords():
    layer = VectorQuantize(4, 64)
    for _ in range(10):
        out = layer(torch.randn(5, 4))
    assert torch.isfinite(layer.codebook.codewords).all() and out.codes.max() < 64


@pytest.mark.parametrize("kind", LEARNING)
def test_nothing_is_learnt_in_evaluation(kind):
    layer = LAYERS[kind]()
    x = torch.randn(100, 6)
    layer(x)
    before = copy.deepcopy(layer.state_dict())
    random = torch.get_rng_state()
    layer.eval()(x)
    layer.train().encode(x)
    assert layer.training and (torch.get_rng_state() == random).all()
    for name, value in layer.state_dict().items():
        if torch.is_tensor(value):
            assert (value == before[name]).all()


@pytest.mark.parametrize("kind", LEARNING)
def test_an_optimizer_moves_a_codebook(kind):
    layer = LAYERS[kind](update="gradient", init="random", dead_below=0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    x = torch.randn(300, 6)
    losses = []
    for _ in range(40):
        out = layer(x)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    assert losses[-1] < 0.8 * losses[0]
    # What is prepared for the kernels follows the optimizer: a copy prepares its own.
    assert torch.equal(layer.eval()(x).codes, copy.deepcopy(layer)(x).codes)
    if kind in ("vector", "product", "residual"):
        book = (layer.codebook if kind == "vector" else layer.codebooks[0]).codewords.detach()
        nearest = reference.assign(x[:, : book.shape[1]].numpy(), book.numpy())
        assert (layer(x).codes.reshape(300, -1)[:, 0].numpy() == nearest).all()


@pytest.mark.parametrize("kind", LEARNING)
def test_a_seed_repeats_and_states_resume(kind):
    """Through a file, in the middle of the start; and at any number of threads."""

    def run(layer, n):
        for _ in range(n):
            out = layer(torch.randn(40, 6))
        return out

    torch.manual_seed(1)
    straight = LAYERS[kind](quantizer_dropout=0.5) if kind == "residual" else LAYERS[kind]()
    wanted = run(straight, 9)

    torch.manual_seed(1)
    torch.set_num_threads(2)
    broken = LAYERS[kind](quantizer_dropout=0.5) if kind == "residual" else LAYERS[kind]()
    run(broken, 2)
    file = io.BytesIO()
    torch.save({"layer": broken.state_dict(), "random": torch.get_rng_state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = LAYERS[kind](quantizer_dropout=0.5) if kind == "residual" else LAYERS[kind]()
    other.load_state_dict(saved["layer"])
    torch.set_rng_state(saved["random"])
    found = run(other, 7)
    assert all((a == b).all() for a, b in zip(wanted[:4], found[:4], strict=True))
    for name, value in straight.state_dict().items():
        if torch.is_tensor(value):
            assert (value == other.state_dict()[name]).all(), name


def test_copies_and_pickles(layer):
    layer(torch.randn(100, 6))
    x = torch.randn(20, 6)
    codes = layer.eval().encode(x)
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert (again.encode(x) == codes).all()


# ---- stages, products, grids ---------------------------------------------------------------


def test_products_are_their_parts():
    layer = ProductVectorQuantize(6, 3, 10)
    x = torch.randn(200, 6)
    out = layer.eval()(x)
    for m, book in enumerate(layer.codebooks):
        part = VectorQuantize(2, 10, init=book.codewords).eval()(x[:, 2 * m : 2 * m + 2])
        assert (part.codes == out.codes[:, m]).all()
        assert (part.values == out.values[:, 2 * m : 2 * m + 2]).all()


def test_stages_refine():
    layer = ResidualVectorQuantize(6, 3, 10)
    x = torch.randn(500, 6)
    codes = layer(x).codes
    layer.eval()
    errors = []
    for used in range(4):
        prefix = codes.clone()
        prefix[:, used:] = -1
        errors.append((layer.decode(prefix) - x).square().sum().item())
    assert all(a > b for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("update", ["average", "gradient"])
def test_a_beam_finds_better_sums(update):
    """Codes are those of the kernels' search; codewords move to lower the error of the sums."""
    x = torch.randn(2000, 6)
    books = {}
    for beam_width in (1, 4):
        torch.manual_seed(0)
        layer = ResidualVectorQuantize.fitted(x, 3, 16, beam_width=beam_width, update=update)
        first = layer.eval()(x)
        if beam_width > 1:
            stages = kernels.Stages([book.codewords.detach().numpy() for book in layer.codebooks])
            wanted = kernels.beam_search(x.numpy(), stages, beam_width=beam_width)[:, 0]
            assert (first.codes.numpy() == wanted).all()
        assert torch.equal(layer.decode(first.codes), first.values)
        rate = torch.optim.SGD(layer.parameters(), lr=0.5) if update == "gradient" else None
        layer.train()
        for _ in range(100):
            loss = layer(x).loss
            if rate is not None:
                rate.zero_grad(), loss.backward(), rate.step()
        last = layer.eval()(x).values
        books[beam_width] = (first.values - x).square().sum(), (last - x).square().sum()
    assert books[4][0] < 0.95 * books[1][0]
    assert books[4][1] < books[4][0]


def test_stages_of_any_size_start_from_rows():
    x = torch.randn(500, 6)
    layer = ResidualVectorQuantize.fitted(x, 2, 10, beam_width=2)
    error = (layer.eval()(x).values - x).square().sum()
    assert error < 0.5 * (x - x.mean(0)).square().sum()


def test_one_layer_for_all_positions():
    x = torch.randn(300, 12)
    for inner in (VectorQuantize(4, 9, init=torch.randn(9, 4)), ResidualVectorQuantize(4, 2, 8)):
        layer = AtPositions(inner, 3)
        layer(x)
        found, each = layer.eval()(x), inner.eval()(x.reshape(900, 4))
        assert torch.equal(found.values, each.values.reshape(300, 12))
        assert torch.equal(found.codes.flatten(), each.codes.flatten())
        assert torch.equal(layer.encode(x), found.codes)
        assert torch.equal(layer.decode(found.codes), found.values)
        assert torch.equal(Frozen(layer)(x).values, found.values)
        mask = torch.rand(300, 3) < 0.7
        masked = layer(x, mask)
        assert torch.equal(masked.codes.reshape(300, 3, -1) >= 0, mask[..., None].expand(
            -1, -1, found.codes.shape[1] // 3
        ))  # fmt: skip
        left = torch.where(mask[..., None], found.values.reshape(300, 3, 4), x.reshape(300, 3, 4))
        assert torch.equal(masked.values, left.flatten(1))


def test_quantizer_dropout():
    layer = ResidualVectorQuantize(6, 4, 10, quantizer_dropout=1.0)
    x = torch.randn(100, 6)
    used = [int((layer(x).codes[0] >= 0).sum()) for _ in range(60)]
    assert set(used) == {1, 2, 3, 4}
    out = layer(x)
    assert (layer.decode(out.codes) - out.values).abs().max() < 10  # codes of -1 are understood
    assert (layer.eval()(x).codes >= 0).all()


@pytest.mark.parametrize("levels", [(2,), (3, 4), (8, 5, 5, 5), (7, 2, 6)])
def test_every_level_of_a_grid_is_reached(levels):
    layer = FiniteScalarQuantize(len(levels), levels)
    x = 1.5 * torch.randn(100_000, len(levels))
    out = layer(x)
    assert out.codes.min() == 0 and out.codes.max() == np.prod(levels) - 1
    assert len(out.codes.unique()) == np.prod(levels)
    every = layer.decode(torch.arange(int(np.prod(levels))))
    for column, level in zip(every.T, levels, strict=True):
        assert len(column.unique()) == level and column.abs().max() == 1
    assert (layer.decode(out.codes) == out.values).all()
    assert out.loss == 0 and 1 < out.perplexity <= np.prod(levels)


def test_a_grid_passes_the_gradient_of_its_bound():
    layer = FiniteScalarQuantize(2, (5, 5))
    x = torch.randn(30, 2, dtype=torch.float64, requires_grad=True)
    layer(x).values.sum().backward()
    half = 4 * (1 + 1e-3) / 2
    torch.testing.assert_close(x.grad, (half / 2) * (1 - torch.tanh(x.detach()) ** 2))


# ---- layouts, masks, errors ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 4, 6), (0, 6)])
def test_any_leading_shape(layer, shape):
    layer.eval()
    x = torch.randn(shape)
    out = layer(x)
    codes = out.codes.reshape(-1, len(layer._ranges))
    assert out.values.shape == shape and len(codes) == x.numel() // 6
    assert (layer(x.reshape(-1, 6)).values == out.values.reshape(-1, 6)).all()
    assert (layer.decode(out.codes) == out.values).all()
    assert torch.isfinite(out.loss)


@pytest.mark.parametrize("kind", LAYERS)
def test_channels_first(kind):
    first, last = LAYERS[kind](channels="first").eval(), LAYERS[kind]().eval()
    last.load_state_dict(first.state_dict())
    x = torch.randn(3, 6, 4, 5)
    out, wanted = first(x), last(x.movedim(1, -1))
    assert (out.values == wanted.values.movedim(-1, 1)).all() and (out.codes == wanted.codes).all()
    assert (first.decode(out.codes) == out.values).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_masked_positions_are_as_if_absent(kind):
    with_mask, without = LAYERS[kind](), LAYERS[kind]()
    x, mask = torch.randn(8, 30, 6), torch.rand(8, 30) < 0.7
    state = torch.get_rng_state()
    out = with_mask(x, mask=mask)
    torch.set_rng_state(state)
    without.load_state_dict(without.state_dict())
    wanted = without(x[mask])
    assert (out.values[mask] == wanted.values).all() and (out.codes[mask] == wanted.codes).all()
    assert (out.values[~mask] == x[~mask]).all() and (out.codes[~mask] == -1).all()
    assert out.loss == wanted.loss and (out.perplexity == wanted.perplexity).all()


def test_nothing_but_masked():
    out = VectorQuantize(6, 10)(torch.randn(4, 6), mask=torch.zeros(4, dtype=torch.bool))
    assert out.loss == 0 and (out.codes == -1).all()


@pytest.mark.parametrize("kind", LEARNING)
def test_projected_codes(kind):
    layer = LAYERS[kind](code_features=3)
    x = torch.randn(50, 6, requires_grad=True)
    out = layer(x)
    assert out.values.shape == (50, 6)
    (out.values.sum() + out.loss).backward()
    assert x.grad.abs().sum() > 0 and layer.project_in.weight.grad.abs().sum() > 0
    layer.eval()
    torch.testing.assert_close(layer.decode(layer.encode(x)), layer(x).values)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    layer = VectorQuantize(6, 10, channels="first")
    x = torch.randn(20, 6, 3).to(dtype).requires_grad_()
    out = layer(x)
    assert out.values.dtype == dtype and torch.isfinite(layer.codebook.codewords).all()
    out.values.sum().backward()
    assert x.grad.dtype == dtype


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorQuantize(6, 0), "n_codewords"),
        (lambda: VectorQuantize(6, 10, decay=1.0), "decay"),
        (lambda: VectorQuantize(6, 10, update="never"), "update"),
        (lambda: VectorQuantize(6, 10, gradient="none"), "gradient"),
        (lambda: VectorQuantize(6, 10, metric="manhattan"), "metric"),
        (lambda: VectorQuantize(6, 10, channels="middle"), "channels"),
        (lambda: VectorQuantize(6, 10, init="zeros"), "init"),
        (lambda: VectorQuantize(6, 10, init=torch.zeros(3, 3)), "init.*10, 6"),
        (lambda: ProductVectorQuantize(6, 4, 10), "n_subspaces must divide"),
        (lambda: ProductVectorQuantize(6, 3, 10, init=torch.zeros(2, 10, 2)), "init.*3"),
        (lambda: ResidualVectorQuantize(6, 2, 10, quantizer_dropout=2), "quantizer_dropout"),
        (lambda: FiniteScalarQuantize(6, (1, 2)), "levels"),
        (lambda: FiniteScalarQuantize(6, ()), "levels"),
    ],
)
def test_parameters_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_input_is_checked(layer):
    with pytest.raises(ValueError, match=r"x must have the shape \(\.\.\., 6\), got \(3, 5\)"):
        layer(torch.randn(3, 5))
    with pytest.raises(TypeError, match="floating point"):
        layer(torch.zeros(3, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"mask must have the shape \(3,\)"):
        layer(torch.randn(3, 6), mask=torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask"):
        layer(torch.randn(3, 6), mask=torch.ones(3))
    with pytest.raises(ValueError, match="codes must be from 0"):
        layer.decode(torch.full_like(layer.encode(torch.randn(3, 6)), 10**6))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("training", [False, True])
def test_what_is_not_finite_is_named(layer, value, training):
    x = torch.randn(40, 6)
    x[3, 1] = value
    with pytest.raises(NotFiniteError, match="NaN|infinity"):
        layer.train(training)(x)


def test_a_codebook_that_is_not_finite_is_named():
    layer = VectorQuantize(6, 10, update="gradient", init="random")
    with torch.no_grad():
        layer.codebook.codebook[2] = math.nan
    with pytest.raises(NotFiniteError, match="codebook"):
        layer(torch.randn(5, 6))


def test_without_torch(run_python):
    code = "import sys; sys.modules['torch'] = None\nimport fastvq.neural"
    result = run_python(code, check=False)
    assert 'pip install "fastvq[torch]"' in result.stderr


def test_frozen_layers_do_not_learn():
    layer = Frozen(VectorQuantize(4, 8, init=torch.randn(8, 4)))
    before = layer.quantizer.codebook.codewords.clone()
    x = torch.randn(50, 4, requires_grad=True)
    out = layer.train()(x)
    out.values.sum().backward()
    assert torch.equal(layer.quantizer.codebook.codewords, before) and x.grad.any()
    assert torch.equal(layer.decode(layer.encode(x)), out.values)


def test_product_codebooks_fitted_to_rows():
    x = torch.randn(400, 6)
    layer = ProductVectorQuantize.fitted(x, 3, 16, gradient="rotation")
    assert layer.gradient == "rotation"
    fitted = (layer.eval()(x).values - x).square().mean()
    drawn = ProductVectorQuantize(6, 3, 16, init=x[:16].reshape(16, 3, 2).swapaxes(0, 1))
    assert fitted < 0.9 * (drawn.eval()(x).values - x).square().mean()
