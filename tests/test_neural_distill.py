"""Distillation and pruning while training."""

import io

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs PyTorch: pip install "fastvq[torch]"')

from sklearn.datasets import load_digits  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402
from torch import nn  # noqa: E402

from fastvq.neural import (  # noqa: E402
    DistilledClassifier,
    GradualPruning,
    QATSpec,
    Trainer,
    classification_loss,
    distillation_loss,
    feature_loss,
    group_lasso,
    integer_layers,
    l1,
    logit_loss,
    prepare_qat,
    soft_target_loss,
)


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return X, y


def tensors(digits):
    X, y = digits
    return torch.from_numpy(X / 16).float(), torch.from_numpy(y)


# ---- losses --------------------------------------------------------------------------------


def test_soft_targets_are_a_divergence():
    logits, teacher = torch.randn(20, 5, requires_grad=True), torch.randn(20, 5)
    loss = soft_target_loss(logits, (teacher / 3).softmax(1), 3.0)
    p, q = (teacher / 3).softmax(1), (logits / 3).softmax(1)
    torch.testing.assert_close(loss, 9 * (p * (p / q).log()).sum(1).mean())
    assert soft_target_loss(teacher, (teacher / 3).softmax(1), 3.0).abs() < 1e-5
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, 3 * (q - p) / 20)  # the known one


def test_other_losses():
    a, b = torch.randn(6, 3), torch.randn(6, 3)
    assert logit_loss(a, a + 5) < 1e-10 and logit_loss(a, b) > 0.1
    mapping = nn.Linear(3, 4)
    assert feature_loss(a, mapping(a), mapping) == 0
    for loss in (soft_target_loss, logit_loss, feature_loss):
        with pytest.raises(ValueError, match="shape"):
            loss(a, torch.randn(6, 4))


def test_a_student_learns_from_a_module(digits):
    """Labels of 150 rows, the teacher's word on all: better than the labels alone."""
    X, y = tensors(digits)
    teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    Trainer(teacher, classification_loss, max_epochs=20, batch_size=64).fit(X[:1300], y[:1300])

    def student():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))

    options = dict(max_epochs=40, batch_size=64, optimizer=lambda p: torch.optim.Adam(p, 5e-3))
    few = dict(options, max_epochs=200)
    alone = Trainer(student(), classification_loss, **few).fit(X[:150], y[:150])
    taught = Trainer(student(), distillation_loss(teacher, hard=False), **options).fit(X[:1300])
    accuracy = [
        (one.model(X[1300:]).argmax(1) == y[1300:]).float().mean().item() for one in (alone, taught)
    ]
    assert accuracy[1] > accuracy[0] + 0.02
    both = Trainer(student(), distillation_loss(teacher), **options).fit(X[:1300], y[:1300])
    assert both.history_[-1]["accuracy"] > 0.9 and not teacher.training


def test_parameters_of_distillation():
    for options in (dict(temperature=0), dict(alpha=1.5)):
        with pytest.raises(ValueError, match="temperature must be above 0 and alpha at most 1"):
            distillation_loss(nn.Linear(1, 1), **options)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks(
    [DistilledClassifier(LogisticRegression(), hidden=(8,), max_epochs=30, learning_rate=0.02)]
)
def test_estimator_checks(estimator, check):
    check(estimator)


def test_a_forest_teaches_a_perceptron(digits):
    """Unlabelled rows help."""
    X, y = digits
    forest = RandomForestClassifier(100, random_state=0).fit(X[:1000], y[:1000])
    options = dict(prefit=True, hidden=(32,), max_epochs=40, learning_rate=5e-3, random_state=0)
    student = DistilledClassifier(forest, **options).fit(X[:300], y[:300])
    more = DistilledClassifier(forest, **options).fit(X[:300], y[:300], X_unlabelled=X[300:1000])
    assert more.score(X[1000:], y[1000:]) > student.score(X[1000:], y[1000:])
    assert more.score(X[1000:], y[1000:]) > 0.9
    again = DistilledClassifier(forest, **options).fit(X[:300], y[:300])
    assert (again.predict_proba(X) == student.predict_proba(X)).all()


def test_a_teacher_of_other_classes(digits):
    X, y = digits
    forest = RandomForestClassifier(5).fit(X, y % 5)
    with pytest.raises(ValueError, match="teacher knows the classes"):
        DistilledClassifier(forest, prefit=True).fit(X, y)


# ---- pruning -------------------------------------------------------------------------------


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))


def test_the_schedule():
    pruning = GradualPruning(0.8, begin=10, end=110)
    shares = [pruning.sparsity_at(step) for step in (0, 10, 60, 110, 500)]
    np.testing.assert_allclose(shares, [0, 0, 0.8 * (1 - 0.5**3), 0.8, 0.8])


@pytest.mark.parametrize("scope", ["layer", "model", "adaptive"])
def test_pruned_weights_stay_zero(scope, digits):
    X, y = tensors(digits)
    dense = Trainer(network(), classification_loss, max_epochs=25, batch_size=64)
    dense.fit(X[:1300], y[:1300])
    pruning = GradualPruning(0.9, begin=40, end=250, every=10, scope=scope)
    options = dict(max_epochs=25, batch_size=64, after_step=[pruning])
    trainer = Trainer(network(), classification_loss, **options)
    trainer.fit(X[:1300], y[:1300])
    zeros = [int((p == 0).sum()) for p in trainer.model.parameters() if p.ndim > 1]
    assert sum(zeros) == round(0.9 * 7400)
    assert (zeros == [5760, 900]) == (scope == "layer")
    found, wanted = (t.evaluate(X[1300:], y[1300:])["accuracy"] for t in (trainer, dense))
    assert found > wanted - 0.05


def test_small_layers_keep_more():
    """The largest weights of all layers together stay, unless each layer is asked for its share."""
    kept = {}
    for scope in ("model", "layer"):
        net = network()
        with torch.no_grad():
            net[2].weight.mul_(3)  # as the few weights of a last layer are
        pruning = GradualPruning(0.9, end=1, every=1, scope=scope)
        pruning(net)
        kept[scope] = [int(mask.sum()) for mask in pruning.masks.values()]
    assert sum(kept["model"]) == 740 and kept["model"][1] > 4 * 100
    assert kept["layer"] == [640, 100]


def test_a_layers_unit_does_not_matter_adaptively():
    """Masks by what a weight is beside those of its layer that are no smaller, all together."""
    masks = []
    for factor in (1, 1000):
        torch.manual_seed(0)
        net = network()
        with torch.no_grad():
            net[2].weight.mul_(factor)
        weights = [net[0].weight, net[2].weight]
        scores = []
        for weight in weights:
            squares = weight.detach().square().flatten()
            scores.append(torch.stack([s / squares[squares >= s].sum() for s in squares]))
        least = torch.cat(scores).sort(descending=True).values[739]
        pruning = GradualPruning(0.9, end=1, every=1)
        pruning(net)
        masks.append(list(pruning.masks.values()))
        for mask, score in zip(masks[-1], scores, strict=True):
            assert (mask.flatten() != (score >= least * (1 - 1e-4))).sum() <= 2
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_pruning_resumes(digits, tmp_path):
    X, y = tensors(digits)

    def trainer(epochs, name):
        pruning = GradualPruning(0.9, end=30, every=4)
        options = dict(after_step=[pruning], checkpoint=tmp_path / name, batch_size=100)
        return Trainer(network(), classification_loss, max_epochs=epochs, **options)

    straight = trainer(4, "a").fit(X, y)
    trainer(1, "b").fit(X, y)
    resumed = trainer(4, "b").fit(X, y, resume=True)
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pruning_composes_with_grids(digits):
    X, y = tensors(digits)
    quantized = prepare_qat(network(), QATSpec(4, 8))
    pruning = GradualPruning(0.8, end=20, every=5, scope="layer")
    Trainer(quantized, classification_loss, max_epochs=3, after_step=[pruning]).fit(X, y)
    for layer in integer_layers(quantized).values():
        assert (layer.weight == 0).float().mean() >= 0.8


def test_penalties(digits):
    X, y = tensors(digits)

    def loss_with(penalty, weight):
        def loss(model, X, y):
            plain, facts = classification_loss(model, X, y)
            return plain + weight * penalty(model), facts

        return loss

    def trained(loss):
        return Trainer(network(), loss, max_epochs=15, batch_size=64).fit(X, y).model

    plain = trained(classification_loss)
    sparse, grouped = trained(loss_with(l1, 3e-4)), trained(loss_with(group_lasso, 1e-3))

    def small(model):
        return (model[0].weight.abs() < 5e-3).float().mean()

    def small_rows(model):
        return int((model[0].weight.norm(dim=1) < 0.05).sum())

    assert small(sparse) > 3 * small(plain) and small_rows(grouped) > small_rows(plain) + 5
    zero = nn.Linear(3, 2)
    nn.init.zeros_(zero.weight)
    group_lasso(zero).backward()
    assert torch.isfinite(zero.weight.grad).all()


def test_wrong_schedules():
    for options in (dict(sparsity=1.0, end=5), dict(sparsity=0.5, begin=5, end=5)):
        with pytest.raises(ValueError, match="sparsity|end"):
            GradualPruning(**options)
    with pytest.raises(ValueError, match="no weights to prune"):
        GradualPruning(0.5, end=5)(nn.ReLU())


def test_states_go_through_files():
    pruning = GradualPruning(0.5, end=2, every=1)
    net = nn.Linear(4, 4)
    pruning(net), pruning(net)
    file = io.BytesIO()
    torch.save(pruning.state_dict(), file)
    file.seek(0)
    again = GradualPruning(0.5, end=2, every=1)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.steps == 2 and torch.equal(again.masks["weight"], pruning.masks["weight"])
