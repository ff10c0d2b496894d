"""Autoencoders: as scikit-learn's transformers, as densities, as codes."""

import copy
import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from sklearn.datasets import load_digits  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from fastvq.neural import VQVAE, AutoencoderCompressor, VariationalAutoencoder  # noqa: E402
from fastvq.neural.networks import (  # noqa: E402
    CodePrior,
    VariationalNetwork,
    convolutional_codes,
    dense_codes,
    principal_directions,
    rectangles,
)

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
QUICK = dict(hidden=(16,), max_epochs=2, batch_size=64, random_state=0, n_threads=1)
KINDS = {
    "auto": lambda **options: AutoencoderCompressor(4, **{**QUICK, **options}),
    "vae": lambda **options: VariationalAutoencoder(4, **{**QUICK, **options}),
    "vq": lambda **options: VQVAE(
        8, code_features=3, n_positions=5, prior_epochs=1, **{**QUICK, **options}
    ),
}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    return (load_digits().data / 16).astype(np.float32)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [
        AutoencoderCompressor(2, hidden=(4,), max_epochs=1),
        VariationalAutoencoder(2, hidden=(4,), max_epochs=1, likelihood="gaussian"),
        VQVAE(4, code_features=2, n_positions=2, hidden=(4,), max_epochs=1, prior="positions"),
    ]
)
def test_estimator_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("architecture", ["dense", "convolutional"])
def test_there_and_back(kind, architecture, digits):
    estimator = KINDS[kind](architecture=architecture, hidden=(8, 12)).fit(digits)
    latents = estimator.transform(digits)
    back = estimator.inverse_transform(latents)
    assert len(latents) == len(digits) and back.shape == digits.shape and back.dtype == np.float32
    assert latents.dtype == (np.uint8 if kind == "vq" else np.float32)
    assert estimator.get_feature_names_out()[0] == f"{type(estimator).__name__.lower()}0"
    assert len(estimator.get_feature_names_out()) == latents.shape[1]
    # The halves as modules give the same.
    with torch.no_grad():
        x = torch.from_numpy(digits[:9])
        inner = estimator.encoder_(x)
        if kind == "vq":
            inner = estimator.network_.quantizer(inner).values
        elif kind == "vae":
            inner = inner[:, :4]
        np.testing.assert_allclose(estimator.decoder_(inner), back[:9], atol=1e-5)


def test_a_seed_repeats(kind, digits):
    torch.manual_seed(1)
    first = KINDS[kind]().fit(digits)
    torch.manual_seed(2)
    again = KINDS[kind]().fit(digits)
    for name, value in first.network_.state_dict().items():
        if torch.is_tensor(value):
            assert torch.equal(value, again.network_.state_dict()[name])
    other = KINDS[kind](random_state=1).fit(digits)
    assert (other.reconstruct(digits) != first.reconstruct(digits)).any()


def test_pickles(kind, digits):
    estimator = KINDS[kind]().fit(digits)
    again = pickle.loads(pickle.dumps(estimator))
    assert (again.transform(digits) == estimator.transform(digits)).all()
    assert again.score(digits) == estimator.score(digits)


@pytest.mark.parametrize("form", ["uint8", "float16", "float64", "fortran", "reversed", "memmap"])
def test_input_in_any_form(form, digits, tmp_path):
    whole = np.round(digits * 16)
    X = whole.astype(form) if form in ("uint8", "float16", "float64") else whole
    if form == "fortran":
        X = np.asfortranarray(X)
    elif form == "reversed":
        X = np.ascontiguousarray(X[::-1])[::-1]
    elif form == "memmap":
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    wanted = KINDS["auto"]().fit(whole)
    found = KINDS["auto"]().fit(X)
    np.testing.assert_allclose(found.transform(X), wanted.transform(whole), rtol=1e-4, atol=1e-4)


def test_trains_as_long_as_it_should(kind, digits):
    estimator = KINDS[kind](max_epochs=3).fit(digits)
    assert len(estimator.history_) == 3
    long = KINDS[kind](max_epochs=15, learning_rate=5e-3).fit(digits)
    assert long.score(digits) > estimator.score(digits)


def test_nothing_changes_where_a_fit_fails(kind, digits):
    estimator = KINDS[kind]().fit(digits)
    before = dict(vars(estimator))
    with pytest.raises(ValueError, match="NaN"):
        estimator.fit(np.where(digits == digits[3, 10], np.nan, digits))
    assert vars(estimator) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(architecture="wide"), "architecture"),
        (dict(architecture="convolutional", image_shape=(3, 5)), "image_shape must multiply"),
        (dict(learning_rate=0.0), "learning_rate"),
        (dict(max_epochs=0), "max_epochs"),
        (dict(hidden=(0,)), "hidden"),
    ],
)
def test_parameters_are_checked(kind, options, message, digits):
    with pytest.raises(ValueError, match=message):
        KINDS[kind](**options).fit(digits)


def test_input_is_checked(kind, digits):
    with pytest.raises(NotFittedError):
        KINDS[kind]().transform(digits)
    estimator = KINDS[kind]().fit(digits)
    with pytest.raises(ValueError, match="64 features"):
        estimator.transform(digits[:, :10])
    with pytest.raises(ValueError, match="column|shape"):
        estimator.inverse_transform(np.zeros((2, 3), int if kind == "vq" else float))
    with pytest.raises(ValueError, match="NaN"):
        estimator.transform(np.full((2, 64), np.nan))


# ---- the density ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vae(digits):
    options = dict(hidden=(64,), max_epochs=25, learning_rate=5e-3, batch_size=64)
    return VariationalAutoencoder(8, random_state=0, n_threads=1, **options).fit(digits[:1500])


def test_the_bound_on_a_density_that_is_known():
    """A linear decoder and a Gaussian: the density is N(0, WWᵀ + σ²), and so is the posterior."""
    torch.manual_seed(0)
    W, variance = torch.randn(5, 2, dtype=torch.float64), 0.3
    encoder, decoder = torch.nn.Linear(5, 4).double(), torch.nn.Linear(2, 5, bias=False).double()
    from fastvq.neural.networks import Scaling

    class Double(Scaling):
        def forward(self, x):
            return (x - self.offset) / self.scale

    network = VariationalNetwork(encoder, decoder, Double(0.5, 2.0).double(), "gaussian").double()
    precision = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + W.T @ W / variance)
    # The exact posterior has a full covariance; turn W so that it is diagonal.
    turn = torch.linalg.eigh(precision)[1]
    W = W @ turn
    spread = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + W.T @ W / variance).diagonal()
    with torch.no_grad():
        decoder.weight.copy_(W)
        network.log_variance.fill_(np.log(variance))
        encoder.weight[:2] = spread[:, None] * W.T / variance
        encoder.weight[2:] = 0
        encoder.bias[:2] = 0
        encoder.bias[2:] = spread.log()
        x = torch.randn(50, 5, dtype=torch.float64)
        covariance = 4.0 * (W @ W.T + variance * torch.eye(5, dtype=torch.float64))
        exact = torch.distributions.MultivariateNormal(torch.full((5,), 0.5).double(), covariance)
        # With the exact posterior every importance weight is p(x), and the bound is tight.
        torch.testing.assert_close(network.importance(x), exact.log_prob(x))
        likelihood, kl = (torch.stack([network.bound(x)[i] for _ in range(4000)]) for i in (0, 1))
        bound = (likelihood - kl).mean(0)
        torch.testing.assert_close(bound, exact.log_prob(x), atol=0.15, rtol=0)


def test_the_loss_is_that_of_plain_autograd(digits):
    estimator = KINDS["vae"](beta=0.7).fit(digits)
    network, x = estimator.network_, torch.from_numpy(digits[:40])
    state = torch.get_rng_state()
    loss, facts = network.loss(x)
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    torch.set_rng_state(state)
    mean, log_variance = network.encoder(x).chunk(2, 1)
    posterior = torch.distributions.Normal(mean, (log_variance / 2).exp())
    z = mean + posterior.scale * torch.randn_like(mean)
    likelihood = torch.distributions.Bernoulli(logits=network.decoder(z), validate_args=False)
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(1)
    wanted = (0.7 * kl - likelihood.log_prob(x).sum(1)).mean()
    torch.testing.assert_close(loss, wanted)
    assert facts["kl"] == pytest.approx(kl.mean().item())
    for a, b in zip(gradients, torch.autograd.grad(wanted, network.parameters()), strict=True):
        torch.testing.assert_close(a, b)


def test_bounds(vae, digits):
    test = digits[1500:]
    elbo, tighter = vae.score(test, n_samples=10), vae.log_likelihood(test, n_samples=50)
    assert elbo < tighter.mean() < 0 and tighter.shape == (len(test),)
    assert elbo == vae.score(test, n_samples=10)
    p = digits[:1500].mean(0).clip(1e-3, 1 - 1e-3)
    independent = (test * np.log(p) + (1 - test) * np.log(1 - p)).sum(1).mean()
    assert elbo > independent


def test_samples(vae, digits):
    X = vae.sample(200, random_state=1)
    assert X.shape == (200, 64) and X.min() >= 0 and X.max() <= 1
    assert (vae.sample(200, random_state=1) == X).all()
    assert (vae.sample(200, random_state=2) != X).any()
    assert np.abs(X.mean(0) - digits.mean(0)).max() < 0.25
    assert vae.score(X) > vae.score(np.random.default_rng(0).permuted(X, axis=0))


def test_missing_pixels(vae, digits):
    """The lower half of images that it has not seen: better than the mean and than PCA."""
    test = digits[1500:]
    holes = test.copy()
    holes[:, 32:] = np.nan
    filled = vae.impute(holes)
    assert (filled[:, :32] == test[:, :32]).all()

    def error(guess):
        return float(((guess - test)[:, 32:] ** 2).mean())

    train = digits[:1500]
    assert error(filled) < 0.85 * error(np.broadcast_to(train.mean(0), test.shape))
    for n_components in (4, 8):  # as many as the network has, or fewer
        assert error(filled) < error(completed_by_pca(PCA(n_components).fit(train), holes))


def completed_by_pca(pca, holes):
    """What is missing below, given what is seen above, by the Gaussian that PCA stands for."""
    covariance, mean, seen = pca.get_covariance(), pca.mean_, slice(0, 32)
    slope = np.linalg.solve(covariance[seen, seen], covariance[seen, 32:])
    guess = holes.copy()
    guess[:, 32:] = mean[32:] + (holes[:, seen] - mean[seen]) @ slope
    return guess.clip(0, 1)


def test_nothing_missing_is_left_alone(vae, digits):
    assert (vae.impute(digits[:5]) == digits[:5]).all()


def test_bernoulli_wants_the_unit_interval(digits):
    with pytest.raises(ValueError, match="from 0 to 1 .* got values from 0 to 16"):
        VariationalAutoencoder().fit(digits * 16)


def test_gaussian_densities_are_in_the_units_of_the_rows(digits):
    options = dict(likelihood="gaussian", max_epochs=5)
    small, large = KINDS["vae"](**options).fit(digits), KINDS["vae"](**options).fit(10 * digits)
    difference = small.score(digits) - large.score(10 * digits)
    assert difference == pytest.approx(64 * np.log(10), abs=0.5)


# ---- codes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["autoregressive", "positions"])
def vq(request, digits):
    return VQVAE(
        32, code_features=8, n_positions=6, hidden=(64,), max_epochs=25, learning_rate=5e-3,
        batch_size=64, prior=request.param, random_state=0, n_threads=1,
    ).fit(digits[:1500])  # fmt: skip


def test_codes(vq, digits):
    codes = vq.transform(digits)
    assert codes.shape == (len(digits), 6) and codes.max() < 32 and vq.code_size_ == 4
    assert vq.dead_share_ == 0 and 16 < vq.perplexity_ <= 32
    assert vq.distortion(digits[1500:]) < 0.6 * digits.var(0).sum()
    with pytest.raises(ValueError, match="codes must be from 0 to 31"):
        vq.inverse_transform(codes + 32)


def test_bits_are_those_of_the_prior(vq, digits):
    bits, codes = vq.bits(digits[1500:]), vq.transform(digits[1500:])
    if vq.prior == "positions":
        p = np.exp(vq.prior_.numpy())
        np.testing.assert_allclose(p.sum(1), 1)
        each = -np.log2(p[np.arange(6), codes]).sum(1)
    else:
        with torch.no_grad():
            nats = vq.prior_.nats(torch.from_numpy(codes.astype(np.int64)))
        each = nats.sum(1).numpy() / np.log(2)
    assert bits == pytest.approx(each.mean(), rel=1e-5) and 5 < bits < 6 * 5


def test_a_prior_knows_what_ties_codes_together(digits):
    """Squares side by side: given those before, a code takes fewer bits than by its position."""
    bits = {}
    for prior in ("autoregressive", "positions"):
        vq = VQVAE(
            16, n_positions=4, code_features=8, image_shape=(8, 8), hidden=(64,), max_epochs=3,
            batch_size=64, learning_rate=5e-3, prior=prior, prior_epochs=10, random_state=0,
            n_threads=1,
        ).fit(digits[:1500])  # fmt: skip
        bits[prior] = vq.bits(digits[1500:])
    assert bits["autoregressive"] < bits["positions"] - 0.5 < 15.5, bits


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_stages", [1, 2])
def test_stages_and_shared_codebooks(shared, n_stages, digits):
    """Codes of a position follow each other; sums restore more; a file keeps decoder and codes."""
    options = dict(code_features=8, hidden=(32,), image_shape=(8, 8), prior="positions")
    options = {**QUICK, **options, "max_epochs": 4}
    vq = VQVAE(16, n_positions=4, n_stages=n_stages, shared=shared, **options).fit(digits)
    codes = vq.transform(digits)
    assert codes.shape == (len(digits), 4 * n_stages) and vq.n_codes_ == 4 * n_stages
    assert vq.code_size_ == 2 * n_stages and vq.dead_share_ < 0.1 and vq.perplexity_ > 4
    assert vq.distortion(digits) < (0.8, 0.5)[n_stages - 1] * digits.var(0).sum()
    assert vq.sample(3).shape == (3, 64)
    layer = vq.network_.quantizer
    if shared:
        inner = layer.quantizer
        books = [inner.codebook] if n_stages == 1 else inner.codebooks
        last = sum(books[s].codewords[codes[:, -n_stages + s].astype(int)] for s in range(n_stages))
        torch.testing.assert_close(layer.decode(torch.from_numpy(codes.astype(int)))[:, -8:], last)


def test_stages_are_euclidean(digits):
    with pytest.raises(ValueError, match="metric must be 'euclidean' with n_stages > 1"):
        KINDS["vq"](n_stages=2, metric="cosine").fit(digits)


def test_drawn_codes_have_the_probabilities_that_are_stated(vq):
    """Mean −log p of draws is the entropy; of the autoregressive prior, step by step."""
    if vq.prior == "positions":
        pytest.skip("nothing is computed step by step")
    torch.manual_seed(0)
    prior = vq.prior_
    with torch.no_grad():
        drawn = prior.draw(2000)
        logits = prior(drawn)
        # A position's logits do not depend on codes from there on.
        changed = drawn.clone()
        changed[:, 3:] = 0
        torch.testing.assert_close(prior(changed)[:, :4], logits[:, :4])
        entropy = -(logits.softmax(2) * logits.log_softmax(2)).sum(2).sum(1).mean()
        assert abs(prior.nats(drawn).sum(1).mean() - entropy) < 0.3


def test_a_prior_of_a_single_code():
    prior = CodePrior(5, 1)
    prior.biases.data[0, 0, 3] = 30.0
    assert (prior.draw(20) == 3).all()
    assert prior.nats(torch.tensor([[3], [2]]))[:, 0].tolist() == pytest.approx([0, 30], abs=0.1)


def test_vq_samples(vq, digits):
    X = vq.sample(300, random_state=0)
    assert X.shape == (300, 64) and (vq.sample(300, random_state=0) == X).all()
    assert np.abs(X.mean(0) - digits.mean(0)).max() < 0.2


def test_gradient_of_a_codebook_and_cosine(digits):
    for options in (dict(update="gradient"), dict(metric="cosine"), dict(gradient="ste")):
        estimator = KINDS["vq"](**options).fit(digits)
        assert np.isfinite(estimator.distortion(digits))
        assert copy.deepcopy(estimator).bits(digits) == estimator.bits(digits)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 7)])
def test_convolutional_codes_start_as_squares(shape):
    """Before training, what comes back is what of each square its slowest cosines keep."""
    x = torch.randn(5, int(np.prod(shape)))
    whole = 16 * shape[0]
    for features in (whole, 5):
        encoder, decoder, n_positions = convolutional_codes(shape, (4, 6), features)
        latents = encoder(x)
        assert latents.shape == (5, n_positions * features)
        back = decoder(latents)
        assert back.shape == x.shape and (back - x).norm() < x.norm()
        if features == whole:
            torch.testing.assert_close(back, x, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("features", [16, 7, 40])
@pytest.mark.parametrize("kind", ["directions", "rectangles"])
def test_dense_codes_start_as_an_orthonormal_map(kind, features, digits):
    rows = torch.from_numpy(digits)
    if kind == "directions":
        matrix, mean = principal_directions(rows, 4, features)
    else:
        matrix, mean = rectangles((1, 8, 8), 4, features, rows.mean(0))
    product = matrix @ matrix.T
    used = product.diagonal() > 0.5
    torch.testing.assert_close(
        product[used][:, used], torch.eye(int(used.sum())), atol=1e-5, rtol=0
    )
    assert used.sum() == min(64, 4 * features) and not matrix[~used].any()
    encoder, decoder = dense_codes((matrix, mean), (12, 9))
    back = decoder(encoder(rows))
    if features >= 16:
        torch.testing.assert_close(back, rows, atol=1e-4, rtol=1e-4)
    assert (back - rows).norm() < (rows - rows.mean(0)).norm()


def test_rectangles_must_fill_the_picture(digits):
    with pytest.raises(ValueError, match="n_positions must cut 8 × 8 pixels"):
        KINDS["vq"](image_shape=(8, 8)).fit(digits)


def test_a_frozen_codebook_stays(digits):
    """Encoder and codebooks are those of the start; joint training does better."""
    options = dict(hidden=(64,), max_epochs=12, image_shape=(8, 8))
    scores = {}
    for codebook in ("joint", "frozen"):
        vq = VQVAE(16, n_positions=16, code_features=4, codebook=codebook, prior="positions",
                   **{**QUICK, **options}).fit(digits[:1300])  # fmt: skip
        scores[codebook] = vq.score(digits[1300:])
        moved = vq.network_.encoder[0].other[-1].weight.any()
        assert bool(moved) == (codebook == "joint")
    assert scores["joint"] > scores["frozen"], scores


def test_empty_parts_are_alike_where_codebooks_are_shared(digits):
    """The mean picture is not taken off: what is the same in two places is one vector."""
    rows = torch.from_numpy(digits)
    for features in (16, 5):
        matrix, mean = rectangles((1, 8, 8), 4, features, rows.mean(0))
        encoder, decoder = dense_codes((matrix, mean), (4,))
        same = encoder(torch.zeros(1, 64)).reshape(4, features)
        assert (same - same[0]).abs().max() < 1e-5
        # What the cosines lose of the mean comes back.
        lost = (decoder(encoder(rows)) - rows).mean(0)
        assert lost.abs().max() < 1e-5


@pytest.mark.parametrize("codebook", ["joint", "frozen"])
def test_sums_of_shared_codewords_frozen_too(codebook, digits):
    options = {**QUICK, "hidden": (32,), "image_shape": (8, 8), "prior": "positions"}
    vq = VQVAE(16, n_positions=4, n_stages=2, code_features=16, shared=True, codebook=codebook,
               **options).fit(digits)  # fmt: skip
    assert vq.distortion(digits) < 0.4 * digits.var(0).sum()


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="apt install dataset-fashion-mnist")
def test_fashion_mnist_convolutional():
    """Odd sizes on the way down (28, 14, 7, 4) come back; the few codes beat as many of k-means."""
    with gzip.open(FASHION_MNIST) as file:
        images = np.frombuffer(file.read(16 + 784 * 3000), np.uint8, offset=16)
    images = images.reshape(-1, 784) / np.float32(255)
    vq = VQVAE(
        64, code_features=8, architecture="convolutional", hidden=(8, 16, 16), max_epochs=4,
        batch_size=64, learning_rate=4e-3, prior="positions", random_state=0, n_threads=1,
    ).fit(images)  # fmt: skip
    assert vq.n_codes_ == 16 and vq.transform(images).shape == (3000, 16)
    assert vq.distortion(images) < 0.4 * images.var(0).sum()
