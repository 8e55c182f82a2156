"""Gradients of every objective that `ObjectiveConfig` accepts, compared with formulas that are written here again, for all
completions of two tokens over a vocabulary of three, and all views of every estimator.

The policy is a table of logits for every network input. A row of the enumeration is a group of two completions with their
views. Rows have probabilities: those of the completions under the old policy, as if its tokens were independent, times those of
the views. The table in docs/objectives.md is read and compared with the code."""

import functools
import itertools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from igpo_jax.diffusion.sampler import HINT
from igpo_jax.rl.likelihood import ESTIMATORS, GroupBatch, views_of
from igpo_jax.rl.objective import MAX_K3_GAP, ObjectiveConfig, kl_estimate, policy_terms

V, L, G, K = 3, 2, 2, 2  # vocabulary, tokens, completions of a group, views
EOS = 0
COMPLETIONS = list(itertools.product(range(V), repeat=L))
REWARD = dict(zip(COMPLETIONS, np.random.default_rng(3).normal(size=len(COMPLETIONS)), strict=True))
ALL, FIRST, SECOND, NONE = (1, 1), (1, 0), (0, 1), (0, 0)
ROWS = len(COMPLETIONS) ** G * 9**G  # of the estimator with the most views; others are filled up with rows of probability 0
KINDS = ("k1", "k2", "k3", "k3_corrected")
BETA, HINT_WEIGHT = 0.3, 0.7
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs/objectives.md"


# Views of the estimators: lists of (probability, [(is the prompt masked, masked tokens, weights), ...])


def masked_views():
    level = np.arange(30, 127) / 128
    for mask in (ALL, FIRST, SECOND, NONE):
        yield np.mean(level ** sum(mask) * (1 - level) ** (L - sum(mask))), [(0, mask, mask)]


def view_of(mask, views):
    """Returns a view that weights its masked tokens by L / (K m)."""
    return 0, mask, tuple(L / (views * sum(mask)) * np.array(mask))


def elbo_views(number):
    """m is 1 or 2, each with probability 1/2; both masks of one token are equally likely."""
    one = [(1 / 2, ALL), (1 / 4, FIRST), (1 / 4, SECOND)]
    for chosen in itertools.product(one, repeat=number):
        yield np.prod([p for p, _ in chosen]), [view_of(mask, number) for _, mask in chosen]


def trace_views(unmask_step, loss_mask):
    """Two views: the steps up to the last one in the loss are divided into two parts."""
    steps = 1 + max([step for step, counts in zip(unmask_step, loss_mask, strict=True) if counts and step != HINT], default=0)
    part = [min(step * K // steps, K - 1) for step in unmask_step]
    generated = [step != HINT for step in unmask_step]
    return [
        (0, tuple(int(g and p >= j) for g, p in zip(generated, part, strict=True)),
         tuple(float(g and p == j) for g, p in zip(generated, part, strict=True)))
        for j in range(K)
    ]  # fmt: skip


UNMASK_STEPS = [(0, 1), (1, 0), (0, 0), (HINT, 0)]
VIEWS = {
    "mean_field": [(1.0, [(0, ALL, ALL)])],
    "prompt_masked": [(0.85, [(0, ALL, ALL)]), (0.15, [(1, ALL, ALL)])],
    "masked": list(masked_views()),
    "elbo": list(elbo_views(2)),
    # Evenly spaced values of m, from a random offset: 1 and 2.
    "quadrature": [(1 / 2, [view_of(mask, 2), view_of(ALL, 2)]) for mask in (FIRST, SECOND)],
    "coupled": [
        (1 / 4, [view_of(FIRST, 2), view_of(SECOND, 2)]),
        (1 / 4, [view_of(SECOND, 2), view_of(FIRST, 2)]),
        (1 / 2, [view_of(ALL, 2), view_of(ALL, 2)]),
    ],
}
SAMPLES = {"elbo": 2, "quadrature": 2, "coupled": 2, "trace": 2}


def up_to_eos(completion):
    ends = [i for i, token in enumerate(completion) if token == EOS]
    return tuple(int(i <= min(ends, default=L)) for i in range(L))


def batch_of(rows, group, unmask_step):
    """Returns a batch of problems with one prompt token. Its completions have no EOS."""
    return GroupBatch(
        prompt=np.zeros((rows, 1), np.int32),
        prompt_mask=np.ones((rows, 1), bool),
        problem_id=np.arange(rows, dtype=np.uint32),
        completions=np.ones((rows, group, L), np.int32),
        unmask_step=np.broadcast_to(np.array(unmask_step, np.int32), (rows, group, L)),
        loss_mask=np.ones((rows, group, L), bool),
        advantages=np.zeros((rows, group), np.float32),
    )


@pytest.mark.slow
@pytest.mark.parametrize("estimator", VIEWS)
def test_estimators_draw_the_enumerated_views_with_their_probabilities(estimator):
    number = 4096
    cfg = ObjectiveConfig(estimator, SAMPLES.get(estimator, 1), inner_steps=1)
    views = jax.tree.map(lambda x: np.asarray(x[0]), views_of(jax.random.key(0), batch_of(number, 1, (0, 0)), cfg))
    found = []
    for row in range(number):
        parts = zip(views.prompt_masked[row % len(views.prompt_masked)], views.masked[row], views.weight[row], strict=True)
        found.append([(int(p[0, 0]), tuple(m[0].astype(int)), tuple(w[0].tolist())) for p, m, w in parts])
    expected = VIEWS[estimator]
    for probability, outcome in expected:
        count = sum(np.allclose(flat(outcome), flat(each)) for each in found)
        assert abs(count - number * probability) < 5 * np.sqrt(number * probability * (1 - probability)) + 1e-6
    assert sum(probability for probability, _ in expected) == pytest.approx(1)


def flat(views):
    return [float(x) for prompt, mask, weight in views for x in (prompt, *mask, *weight)]


@pytest.mark.parametrize("unmask_step", UNMASK_STEPS)
def test_traces_have_the_enumerated_views(unmask_step):
    views = views_of(jax.random.key(0), batch_of(1, 1, unmask_step), ObjectiveConfig("trace", K, inner_steps=1))
    expected = trace_views(unmask_step, ALL)
    np.testing.assert_array_equal(np.asarray(views.masked)[0, 0, :, 0], [mask for _, mask, _ in expected])
    np.testing.assert_array_equal(np.asarray(views.weight)[0, 0, :, 0], [weight for _, _, weight in expected])


# The enumeration


def policies():
    """Returns tables of logits of the new, old and reference policy, [inputs, L, V]. Some ratios are outside of the clipping
    range, and some gaps to the reference are beyond the bound of k3."""
    draw = np.random.default_rng(0)
    shape = (2 * (V + 1) ** L, L, V)
    new = draw.normal(size=shape)
    return tuple(jnp.asarray(x, jnp.float32) for x in (new, new + draw.normal(0, 0.3, shape), new + draw.normal(0, 2.5, shape)))


def input_number(completion, view):
    """Returns the row of the table for the network input of a view."""
    prompt, mask, _ = view
    digits = [V if hidden else token for hidden, token in zip(mask, completion, strict=True)]
    return prompt * (V + 1) ** L + sum(digit * (V + 1) ** i for i, digit in enumerate(digits))


@functools.cache
def enumeration(estimator):
    """Returns arrays with a row for every group of completions and every combination of their views: probability [R], network
    input [R, K, G], token [R, G, L], weight [R, K, G, L], advantage [R, G], loss mask and hint [R, G, L]."""
    _, old, _ = policies()
    marginal = np.asarray(jax.nn.softmax(old[input_number((0, 0), (0, ALL, ALL))]), np.float64)
    rows = []
    for group in itertools.product(COMPLETIONS, repeat=G):
        chance = np.prod([marginal[i, token] for completion in group for i, token in enumerate(completion)])
        rewards = np.array([REWARD[completion] for completion in group])
        for probability, views in group_views(estimator, group):
            ends = np.array([up_to_eos(completion) for completion in group], bool)
            hint = np.array([[token == 2 and i == 0 for i, token in enumerate(completion)] for completion in group])
            if estimator == "trace":
                hint = np.array([[step == HINT for step in unmask_step] for unmask_step, _ in views])
                views, scored = [each for _, each in views], ~hint
            else:
                scored = np.array([each[0][1] for each in views], bool) if estimator == "masked" else np.ones((G, L), bool)
            padded = [each + [(0, NONE, NONE)] * (K - len(each)) for each in views]
            rows.append((
                chance * probability,
                [[input_number(completion, each[k]) for completion, each in zip(group, padded, strict=True)] for k in range(K)],
                group,
                [[each[k][2] for each in padded] for k in range(K)],
                rewards - rewards.mean(),
                # The filter is tested elsewhere: here it drops the hints of completions with an even sum.
                ends & scored & ~(hint & (np.sum(group, axis=1) % 2 == 0)[:, None]),
                hint & ends & scored,
            ))  # fmt: skip
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    assert columns[0].sum() == pytest.approx(1)
    return [np.concatenate([x, np.zeros((ROWS - len(x), *x.shape[1:]), x.dtype)]) for x in columns]


def group_views(estimator, group):
    """Yields (probability, views of each completion). All completions of a prompt share the views of prompt_masked."""
    if estimator == "prompt_masked":
        yield from ((probability, [views] * G) for probability, views in VIEWS[estimator])
    elif estimator == "trace":
        for steps in itertools.product(UNMASK_STEPS, repeat=G):
            both = zip(steps, group, strict=True)
            yield len(UNMASK_STEPS) ** -G, [(step, trace_views(step, up_to_eos(completion))) for step, completion in both]
    else:
        for chosen in itertools.product(VIEWS[estimator], repeat=G):
            yield np.prod([p for p, _ in chosen]), [views for _, views in chosen]


def log_probs_of(logits, estimator):
    """Returns the log-probabilities of the enumerated completions in their views, [R, K, G, L]."""
    _, inputs, tokens, *_ = enumeration(estimator)
    table = jax.nn.log_softmax(logits)[inputs]  # [R, K, G, L, V]
    return jnp.take_along_axis(table, jnp.asarray(tokens)[:, None, ..., None], axis=-1)[..., 0]


# The formulas of docs/method.md section 10, differentiated by hand with respect to the log-probabilities of the new policy


def kl_slope(kind, new, old, reference):
    gap = reference - new
    match kind:
        case "k2":
            return -gap
        case "k3":
            return 1 - np.exp(np.minimum(gap, MAX_K3_GAP))
        case "k3_corrected":
            return -np.exp(new - old) * gap


def score_slope(new, weight, advantage, cfg):
    """Returns the derivative of the scores, [R, K, G, L]."""
    if not cfg.upper_weight:
        return weight
    powers = weight * np.exp(cfg.upper_power * new)
    upper = powers / np.maximum(powers.sum(axis=1, keepdims=True), 1e-300)
    share = np.where(advantage < 0, cfg.upper_weight, 0)[:, None, :, None]
    return (1 - share) * weight + share * upper


def scores(log_probs, weight, advantage, cfg):
    lower = (weight * log_probs).sum(axis=1)
    if not cfg.upper_weight:
        return lower
    total = (weight * np.exp(cfg.upper_power * log_probs)).sum(axis=1)
    upper = np.where(total > 0, np.log(np.where(total > 0, total, 1)) / cfg.upper_power, 0)
    share = np.where(advantage < 0, cfg.upper_weight, 0)[..., None]
    return (1 - share) * lower + share * upper


def unclipped(ratio, advantage, cfg):
    """Marks the ratios through which the gradient passes."""
    return ~((advantage > 0) & (ratio > 1 + cfg.clip_high) | (advantage < 0) & (ratio < 1 - cfg.clip_low))


def expected_slopes(new, old, reference, rest, cfg):
    """Returns the derivative of the sum over the group of all losses, float64 [R, K, G, L]."""
    weight, advantage, loss_mask, hint = rest
    number = np.maximum(loss_mask.sum(axis=-1), 1)[..., None]  # [R, G, 1]
    divisor = L if cfg.normalization == "canvas" else number
    counts = (loss_mask / divisor)[:, None]  # [R, 1, G, L]
    slopes = BETA * weight * kl_slope(cfg.kl, new, old, reference) * counts
    by_score = score_slope(new, weight, advantage, cfg)
    if cfg.loss == "wd1":
        softmax = [np.exp(sign * advantage) / np.exp(sign * advantage).sum(axis=-1, keepdims=True) for sign in (1, -1)]
        slopes -= (G * (softmax[0] - softmax[1]))[:, None, :, None] * by_score * loss_mask[:, None]
    elif cfg.ratio == "token":
        ratio, each = np.exp(new - old), advantage[:, None, :, None]
        slopes -= weight * ratio * each * unclipped(ratio, each, cfg) * counts
    elif cfg.reference_code:
        ratio = np.exp((new - old).sum(axis=(1, 3)) / L)  # the filled-up views have equal log-probabilities
        passed = advantage * ratio * unclipped(ratio, advantage, cfg) * loss_mask.any(axis=-1)
        slopes -= passed[:, None, :, None] / L
    else:
        change = scores(new, weight, advantage, cfg) - scores(old, weight, advantage, cfg)
        ratio = np.exp((change * loss_mask).sum(axis=-1) / number[..., 0])
        passed = advantage * ratio * unclipped(ratio, advantage, cfg)
        slopes -= passed[:, None, :, None] * by_score * counts
    if cfg.hint_supervision:
        supervised = hint & (advantage > 0)[..., None]
        slopes -= HINT_WEIGHT * (supervised / np.maximum(supervised.sum(axis=-1, keepdims=True), 1))[:, None] * by_score
    if cfg.reference_code:
        tokens = loss_mask.sum(axis=-1)
        slopes *= (tokens / np.maximum(tokens.mean(axis=-1, keepdims=True), 1))[:, None, :, None]
    return slopes


ESTIMATES = [(name, {}) for name in ESTIMATORS] + [
    (name, dict(upper_weight=0.6, upper_power=1.5)) for name in ("elbo", "quadrature", "coupled")
]
OPTIONS = {
    "loss": ("clipped", "wd1"),
    "ratio": ("sequence", "token"),
    "kl": KINDS,
    "normalization": ("completion", "canvas"),
    "hint_supervision": (0.0, HINT_WEIGHT),
    "reference_code": (False, True),
}


def refused(estimator, upper, loss, ratio, kl, normalization, hint_supervision, reference_code):
    """Tells whether docs/method.md section 10 excludes a combination."""
    plain = loss == "clipped" and kl == "k3" and normalization == "completion" and not hint_supervision
    return (
        kl == "k1"
        or (ratio == "token" and (loss == "wd1" or bool(upper)))
        or (ratio == "sequence" and normalization == "canvas")
        or (reference_code and not (plain and estimator in ("mean_field", "masked")))
    )


@pytest.mark.parametrize(
    "estimator, upper",
    [pytest.param(*case, marks=[pytest.mark.slow] * (case not in ESTIMATES[::9])) for case in ESTIMATES],
    ids=lambda x: x if isinstance(x, str) else "upper" if x else "",
)
def test_gradients_are_those_of_the_documented_surrogate(estimator, upper):
    probability, *_, weight, advantage, loss_mask, hint = enumeration(estimator)
    tables = policies()
    (new, pull_back), old, reference = (
        jax.vjp(functools.partial(log_probs_of, estimator=estimator), tables[0]),
        *(log_probs_of(table, estimator) for table in tables[1:]),
    )
    old, reference = (jnp.where(weight.any(axis=(2, 3))[..., None, None], x, new) for x in (old, reference))  # filled-up views
    wide = [np.asarray(x, np.float64) for x in (new, old, reference)]
    accepted = 0
    for values in itertools.product(*OPTIONS.values()):
        chosen = dict(zip(OPTIONS, values, strict=True)) | upper
        make = functools.partial(
            ObjectiveConfig, estimator, SAMPLES.get(estimator, 1), **chosen, kl_coefficient=BETA, clip_high=0.25, clip_low=0.1
        )
        if refused(estimator, upper, *values):
            with pytest.raises(ValueError, match="objective"):
                make()
            continue
        cfg, accepted = make(), accepted + 1

        def loss(new, cfg=cfg):
            rest = jnp.asarray(weight, jnp.float32), jnp.asarray(advantage, jnp.float32), loss_mask, cfg, hint
            return policy_terms(new, old, reference, *rest)[0].sum()

        found, expected = np.asarray(jax.grad(loss)(new)), expected_slopes(*wide, (weight, advantage, loss_mask, hint), cfg)
        assert_close(found, expected, str(chosen))
        shares = [jnp.asarray(x * probability[:, None, None, None] / G, jnp.float32) for x in (found, expected)]
        assert_close(*(np.asarray(pull_back(share)[0]) for share in shares), str(chosen))
    assert accepted > 0


def assert_close(found, expected, message):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max() * 1e-2, err_msg=message)


# Estimates of the KL


TOKENS = 5


def kl_policies():
    """Returns (logits of the new policy, log-probabilities of another old policy and of the reference)."""
    draw = np.random.default_rng(5)
    new, old, reference = (jnp.asarray(draw.normal(size=TOKENS), jnp.float32) for _ in range(3))
    return new, jax.nn.log_softmax(old), jax.nn.log_softmax(reference)


def gradient_of(function, logits):
    return np.asarray(jax.grad(lambda logits: function(jax.nn.log_softmax(logits)))(logits))


def mean_gradient(kind, logits, old, reference):
    """Returns the gradient of the estimate, averaged over all samples of the old policy."""
    return gradient_of(lambda new: jnp.sum(jnp.exp(old) * kl_estimate(new, old, reference, kind)), logits)


def exactness(kind):
    """Compares the mean gradient with that of KL(new || reference), if the old policy is the new one and if it is another."""
    logits, other, reference = kl_policies()
    exact = gradient_of(lambda new: jnp.sum(jnp.exp(new) * (new - reference)), logits)
    same = [
        np.allclose(mean_gradient(kind, logits, old, reference), exact, rtol=1e-4, atol=1e-6)
        for old in (jax.nn.log_softmax(logits), other)
    ]
    return {(True, True): "exact", (True, False): "exact on-policy", (False, False): "surrogate"}[tuple(same)]


def test_gradients_of_kl_estimates():
    assert {kind: exactness(kind) for kind in KINDS} == {
        "k1": "surrogate", "k2": "exact on-policy", "k3": "surrogate", "k3_corrected": "exact",
    }  # fmt: skip
    logits, _, reference = kl_policies()
    on_policy = jax.nn.log_softmax(logits)
    np.testing.assert_allclose(mean_gradient("k1", logits, on_policy, reference), 0, atol=1e-6)
    other_direction = gradient_of(lambda new: jnp.sum(jnp.exp(reference) * (reference - new)), logits)
    np.testing.assert_allclose(mean_gradient("k3", logits, on_policy, reference), other_direction, rtol=1e-4)


def test_values_of_kl_estimates():
    logits, other, reference = kl_policies()
    new = jax.nn.log_softmax(logits)
    exact = float(jnp.sum(jnp.exp(new) * (new - reference)))
    for kind, old in (("k1", new), ("k3", new), ("k3_corrected", new), ("k3_corrected", other)):
        assert float(jnp.sum(jnp.exp(old) * kl_estimate(new, old, reference, kind))) == pytest.approx(exact, rel=1e-4)
    near = jax.nn.log_softmax(new + 0.01 * reference)
    exact = float(jnp.sum(jnp.exp(new) * (new - near)))
    assert float(jnp.sum(jnp.exp(new) * kl_estimate(new, new, near, "k2"))) == pytest.approx(exact, rel=0.05)
    for kind in KINDS:
        assert (kl_estimate(new, new, new, kind) == 0).all()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_gradients_pull_towards_the_reference_and_are_bounded(kind):
    gap = jnp.array([-1e4, -80.0, -5.0, -1e-3, 1e-3, 4.99, 5.01, 20.0, 80.0, 1e4])
    slope = np.asarray(jax.grad(lambda new: kl_estimate(new, jnp.zeros_like(gap), gap, kind).sum())(jnp.zeros_like(gap)))
    assert np.isfinite(slope).all() and (np.sign(slope) == -np.sign(gap)).all()
    assert np.isfinite(kl_estimate(jnp.zeros_like(gap), jnp.zeros_like(gap), gap, kind)).all()
    if kind == "k3":
        assert np.abs(slope).max() <= np.exp(5)
        values = kl_estimate(jnp.zeros(2), jnp.zeros(2), jnp.array([4.999, 5.001]), kind)
        assert values[1] - values[0] == pytest.approx(0.002 * (np.exp(5) - 1), rel=1e-2)
    else:
        np.testing.assert_allclose(slope, -gap, rtol=1e-5)


def test_a_large_ratio_of_the_corrected_estimate_is_bounded():
    new = jnp.array([-30.0, 30.0, 1e4, -1e4])
    slope = jax.grad(lambda new: kl_estimate(new, jnp.zeros(4), jnp.ones(4), "k3_corrected").sum())(new)
    np.testing.assert_allclose(slope, -np.exp([-20.0, 20, 20, -20]) * (1 - np.asarray(new)), rtol=1e-4)


# The table of docs/objectives.md


def table_rows():
    """Yields (estimator, upper_weight > 0, ratio, {kind: cell}) of the table of ratios and KL estimates."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    header = next(i for i, row in enumerate(cells) if "`k3_corrected`" in row)
    columns = {re.sub("`", "", name): i for i, name in enumerate(cells[header])}
    for row in cells[header + 2 :]:
        if len(row) != len(cells[header]):
            break
        for estimator in re.findall(r"`(\w+)`", row[columns["estimator"]]):
            upper, ratio = row[columns["upper_weight"]] != "0", row[columns["ratio"]].strip("`")
            yield estimator, upper, ratio, {kind: row[columns[kind]] for kind in KINDS}


def test_the_table_of_the_documentation_is_what_the_code_does():
    found, kinds = list(table_rows()), {kind: exactness(kind) for kind in KINDS}
    known = {(name, bool(upper)) for name, upper in ESTIMATES}
    assert {row[:3] for row in found} == {(*estimate, ratio) for estimate in known for ratio in OPTIONS["ratio"]}
    assert len(found) == 2 * len(known)
    for estimator, upper, ratio, cells in found:
        for kind, cell in cells.items():
            how = dict(samples=SAMPLES.get(estimator, 1), ratio=ratio, kl=kind, upper_weight=0.5 if upper else 0.0)
            try:
                ObjectiveConfig(estimator, **how)
            except ValueError:
                assert cell == "refused", (estimator, upper, ratio, kind)
            else:
                assert cell == kinds[kind], (estimator, upper, ratio, kind)
