import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loopprobe.config.schema import TaskConfig
from loopprobe.errors import LoopprobeError
from loopprobe.reference.baselines import BASELINES, check_baselines
from loopprobe.reference.baselines.closed import averaging, least_squares, nearest_neighbours, ridge
from loopprobe.reference.baselines.optimal import gaussian_process, optimum, sparse_bayes
from loopprobe.tasks import Prompts, held_out, sample

LINEAR, NOISY = TaskConfig(), TaskConfig(name="noisy_linear_regression", noise_std=0.5)


def one_by_one(prompts, solve):
    out = torch.zeros_like(prompts.ys, dtype=torch.float64)
    for i, (xs, ys) in enumerate(zip(prompts.xs.double(), prompts.ys.double(), strict=True)):
        for k in range(1, len(ys)):
            out[i, k] = xs[k] @ solve(xs[:k], ys[:k])
    return out


def test_least_squares_is_that_of_lapack_on_every_prefix():
    prompts = held_out(LINEAR, 5, 8, 4)
    expected = one_by_one(prompts, lambda x, y: torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0])
    torch.testing.assert_close(least_squares(prompts), expected, atol=1e-10, rtol=0)


def test_least_squares_of_repeated_inputs_has_least_norm():
    prompts = held_out(LINEAR, 3, 6, 4)
    xs = prompts.xs.clone()
    xs[:, 1:5] = xs[:, :1]
    ys = prompts.ys.clone()
    ys[:, :5] = ys[:, :1]
    x, y = xs[:, 0].double(), ys[:, 0].double()
    expected = y * (xs[:, 5].double() * x).sum(-1) / x.square().sum(-1)
    torch.testing.assert_close(least_squares(Prompts(xs, ys))[:, 5], expected)


def test_least_squares_takes_prefixes_of_any_rank():
    prompts = held_out(LINEAR, 6, 12, 4)
    xs = prompts.xs.clone()
    xs[0, :, 2:] = 0  # a dimension that only some prompts fill
    xs[1, 3] = xs[1, 1]
    xs[2, 5:] = xs[2, :1]
    xs[3, :9, 3] = xs[3, :9, 0]
    changed = Prompts(xs, prompts.ys)
    expected = one_by_one(changed, lambda x, y: torch.linalg.lstsq(x, y[:, None], driver="gelsd").solution[:, 0])
    torch.testing.assert_close(least_squares(changed), expected, atol=1e-8, rtol=1e-8)
    padded = Prompts(torch.nn.functional.pad(xs, (0, 3)), prompts.ys)
    torch.testing.assert_close(least_squares(padded), expected, atol=1e-8, rtol=1e-8)
    assert (least_squares(Prompts(torch.zeros_like(xs), prompts.ys)) == 0).all()
    short = Prompts(xs[:, :3], prompts.ys[:, :3])
    torch.testing.assert_close(least_squares(short), expected[:, :3], atol=1e-8, rtol=1e-8)


def test_least_squares_is_exact_with_enough_examples():
    prompts = held_out(LINEAR, 64, 31, 10)
    error = (least_squares(prompts) - prompts.ys).square() / 10
    assert error[:, 10].median() < 1e-8
    assert error[:, 30].max() < 1e-10
    assert error[:, 5].mean().item() == pytest.approx(0.5, abs=0.15)  # (d - k) / d


def test_ridge_is_its_closed_form():
    prompts = held_out(NOISY, 5, 8, 4)
    eye = torch.eye(4, dtype=torch.float64)
    expected = one_by_one(prompts, lambda x, y: torch.linalg.inv(x.T @ x + 0.25 * eye) @ x.T @ y)
    torch.testing.assert_close(ridge(prompts, 0.25), expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(ridge(prompts, 1e-10)[:, 5:], least_squares(prompts)[:, 5:], atol=1e-5, rtol=1e-5)


def test_ridge_at_the_known_noise_is_optimal():
    prompts = held_out(NOISY, 4000, 8, 4)

    def error(predictions):
        return (predictions - prompts.ys).square()[:, -1].mean().item()

    best = error(ridge(prompts, 0.25))
    assert best < min(error(ridge(prompts, strength)) for strength in (0.01, 0.05, 1.5, 4))
    assert best < error(least_squares(prompts))


def test_the_optimum_knows_the_noise():
    prompts = held_out(NOISY, 3, 6, 4)
    assert optimum(prompts, LINEAR)[0] == "least squares"
    name, predictions = optimum(prompts, NOISY)
    assert name == "ridge (0.5²)"
    assert torch.equal(predictions, ridge(prompts, 0.25))


def test_all_prefixes_of_a_batch_are_solved_together(monkeypatch):
    """Sixteen times the prompts, and prompts three times as long, take no more operations: there is no loop."""
    calls = []

    class Counter(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    def operations(*shape):
        prompts = held_out(LINEAR, *shape)
        calls.clear()
        with Counter():
            least_squares(prompts)
        return len(calls)

    assert operations(128, 12, 4) == operations(8, 36, 4) == operations(8, 12, 4) > 10


def test_averaging_and_neighbours_are_those_of_a_loop():
    prompts = held_out(LINEAR, 5, 8, 4)
    expected = one_by_one(prompts, lambda x, y: x.T @ y / len(y))
    torch.testing.assert_close(averaging(prompts), expected)
    nearest = nearest_neighbours(prompts)
    for i, (xs, ys) in enumerate(zip(prompts.xs.double(), prompts.ys.double(), strict=True)):
        for k in range(1, 8):
            order = (xs[:k] - xs[k]).norm(dim=-1).argsort()[:3]
            assert nearest[i, k].item() == pytest.approx(ys[:k][order].mean().item())


SPARSE = TaskConfig(name="sparse_linear_regression", sparsity=2)


def test_sparse_bayes_is_optimal_and_exact_once_the_support_is_known():
    prompts = held_out(SPARSE, 2000, 12, 6)
    errors = prompts.errors(sparse_bayes(prompts, 2))
    assert errors[:, 4:].mean(0).max() < 1e-3  # two numbers and a support from four labels
    for other in (least_squares(prompts), ridge(prompts, 0.3), nearest_neighbours(prompts)):
        assert (prompts.errors(other) - errors)[:, 1:4].mean() > 0.05
    mean = sparse_bayes(prompts, 2)[:, 2]
    product = (prompts.ys[:, 2] - mean) * mean  # of a posterior mean it is zero on average
    assert product.mean().abs() < 4 * product.std() / 2000**0.5


@pytest.mark.parametrize(
    "task",
    [
        TaskConfig(),
        TaskConfig(name="decision_tree", depth=2),
        TaskConfig(name="relu_network", hidden=30),
        TaskConfig(labels="sign"),
        TaskConfig(name="decision_tree", depth=3, labels="sign"),
    ],
    ids=lambda task: task.short,
)
def test_the_covariance_is_that_of_the_labels(task):
    one = sample(TaskConfig(), 1, 5, 3, torch.Generator().manual_seed(1)).xs
    from loopprobe.tasks.prompts import normal

    n = 40_000
    numbers = normal((n, task.rules.numbers(3)), torch.Generator().manual_seed(2))
    ys, _ = task.rules.label(one.double().expand(n, -1, -1), numbers, 3)
    ys = ys.sign() if task.labels == "sign" else ys
    empirical = ys.T @ ys / n
    error = (ys[:, :, None] * ys[:, None]).std(0) / n**0.5
    assert ((task.rules.covariance(one)[0] - empirical).abs() < 5 * error + 1e-9).all()


def test_the_gaussian_process_of_linear_labels_is_ridge():
    prompts = held_out(LINEAR, 20, 8, 4)
    kernel = LINEAR.rules.covariance(prompts.xs)
    mean = gaussian_process(prompts, kernel + 0.3 * torch.eye(8, dtype=torch.float64), jitter=0)
    torch.testing.assert_close(mean, ridge(prompts, 0.3))


def test_the_optimum_beats_what_does_not_know_the_task():
    for task, name in [
        (SPARSE, "sparse Bayes"),
        (TaskConfig(name="decision_tree", depth=2), "Gaussian process"),
        (TaskConfig(name="relu_network"), "Gaussian process"),
        (TaskConfig(labels="sign"), "Gaussian process"),
    ]:
        prompts = held_out(task, 1000, 20, 4)
        found, best = optimum(prompts, task)
        assert found == name
        for other in (ridge(prompts, 1.0), nearest_neighbours(prompts), averaging(prompts)):
            assert (prompts.errors(other) - prompts.errors(best))[:, -1].mean() > 0.005


def test_fitted_baselines_are_scikit_learns_on_every_prefix():
    from sklearn.linear_model import Lasso
    from sklearn.tree import DecisionTreeRegressor

    prompts = held_out(LINEAR, 3, 8, 4)
    makers = {
        "lasso": lambda: Lasso(alpha=0.01, fit_intercept=False),
        "tree": lambda: DecisionTreeRegressor(random_state=0),
    }
    for name, make in makers.items():
        predictions = BASELINES[name].predict(prompts, lambda steps: steps)
        for i in range(3):
            for k in (1, 4, 7):
                x, y = prompts.xs[i].double().numpy(), prompts.ys[i].double().numpy()
                assert predictions[i, k].item() == pytest.approx(make().fit(x[:k], y[:k]).predict(x[k : k + 1]).item())
        assert (predictions[:, 0] == 0).all()


def test_a_small_network_sees_no_label_from_its_own_on():
    prompts = held_out(LINEAR, 2, 6, 3)
    predict = BASELINES["network"].predict
    first = predict(prompts, lambda steps: steps)
    ys = prompts.ys.clone()
    ys[:, 3:] = 7
    second = predict(Prompts(prompts.xs, ys), lambda steps: steps)
    torch.testing.assert_close(first[:, :4], second[:, :4])
    assert (first - second)[:, 4:].abs().min() > 1e-3
    many = held_out(LINEAR, 16, 30, 2)
    assert many.errors(predict(many, lambda steps: steps))[:, -1].mean() < 0.1


def test_an_unknown_baseline_is_named():
    with pytest.raises(LoopprobeError, match=r"'forest'.*least_squares, ridge, lasso"):
        check_baselines(["ridge", "forest"])
