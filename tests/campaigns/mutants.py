"""Mutation tests: makes small errors, one at a time, in diffusion/, rl/ and the grading of answers; the tests must fail.

    python tests/campaigns/mutants.py [--jobs=2] [--output=benchmarks/results/mutants.md] [NUMBER ...]

Every mutant replaces one piece of text in a copy of the project and runs the tests of its part until one fails. Mutants that
no test detects are printed at the end; explain each in EQUIVALENT or add a test.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 900  # for the tests of a mutant; a hang counts as detected

SAMPLER = "tests/diffusion/test_unmasking.py tests/diffusion/test_sampler.py tests/diffusion/test_fast_samplers.py tests/rl/test_rollout.py"
HINTS = "tests/rl/test_hints.py tests/rl/test_hint_policies.py tests/rl/test_rollout.py"
NOISE = "tests/diffusion/test_corruption.py"
LIKELIHOOD = "tests/rl/test_likelihood.py tests/rl/test_estimators.py"
OBJECTIVE = "tests/rl/test_objective.py tests/rl/test_estimators.py tests/rl/test_update.py"
EXACT = "tests/rl/test_exact_gradients.py tests/rl/test_view_weights.py"
ROLLOUT = "tests/rl/test_rollout.py tests/rl/test_whole_step.py"
GRADING = "tests/grading/test_exact.py tests/grading/test_answers.py tests/grading/test_kinds.py tests/tasks/test_math.py"


@dataclasses.dataclass(frozen=True)
class Mutant:
    file: str  # relative to igpo_jax/
    before: str
    after: str
    tests: str


MUTANTS = (
    Mutant("diffusion/unmasking.py", "masks // steps + (step < masks % steps)", "masks // steps + (step <= masks % steps)", SAMPLER),
    Mutant("diffusion/unmasking.py", "masked & (ranked < count[:, None])", "masked & (ranked <= count[:, None])", SAMPLER),
    Mutant("diffusion/unmasking.py", "drawable + decode.temperature * gumbel", "drawable + gumbel", SAMPLER),
    Mutant("diffusion/unmasking.py", 'drawn if decode.remasking == "low_confidence" else', 'drawn if decode.remasking != "low_confidence" else', SAMPLER),
    Mutant("diffusion/unmasking.py", "confidence > math.log(decode.threshold)", "confidence > decode.threshold", SAMPLER),
    Mutant("diffusion/unmasking.py", "(rank + 2) * -jnp.expm1(confidence)", "(rank + 1) * -jnp.expm1(confidence)", SAMPLER),
    Mutant("diffusion/unmasking.py", "due = -(-masked.sum(axis=1) // (decode.steps_per_block - step))", "due = masked.sum(axis=1) // (decode.steps_per_block - step)", SAMPLER),
    Mutant("diffusion/unmasking.py", "jnp.argsort(jnp.argsort(-values, axis=-1, stable=True), axis=-1)", "jnp.argsort(-values, axis=-1, stable=True)", SAMPLER),
    Mutant("diffusion/unmasking.py", "ends |= drawn == token", "ends |= drawn != token", SAMPLER),
    Mutant("diffusion/unmasking.py", "mean_logit - log_total", "log_total - mean_logit", SAMPLER),
    Mutant("diffusion/denoise.py", "unconditional + (self.decode.cfg_scale + 1) * (conditional - unconditional)", "unconditional + self.decode.cfg_scale * (conditional - unconditional)", SAMPLER),
    Mutant("diffusion/denoise.py", "logits.at[..., self.cfg.mask_id].set(-jnp.inf)", "logits", SAMPLER),
    Mutant("diffusion/denoise.py", "ended = self.state.ended | jnp.all(", "ended = self.state.ended | jnp.any(", SAMPLER),
    Mutant("diffusion/sampler.py", "jnp.argsort(state.ended, stable=True)[:size]", "jnp.argsort(~state.ended, stable=True)[:size]", SAMPLER),
    Mutant("diffusion/sampler.py", "unmask_step.at[state.slot].set(state.unmask_step)", "unmask_step", SAMPLER),
    Mutant("diffusion/denoise.py", "jnp.where(canvas != mask_id, mask_id, tokens)", "tokens", SAMPLER),
    Mutant("diffusion/sampler.py", "return jax.vmap(jax.random.fold_in)(by_problem, completion)", "return by_problem", SAMPLER),
    Mutant("diffusion/sampler.py", "fold(jax.random.fold_in(key, attempt), problem_id)", "fold(key, problem_id)", SAMPLER),
    Mutant("diffusion/corruption.py", "return Corruption(jax.random.uniform(mask_key, (rows, length)) < p[:, None], 1 / p)", "return Corruption(jax.random.uniform(mask_key, (rows, length)) < p[:, None], p)", NOISE),
    Mutant("diffusion/corruption.py", "k = 1 + jnp.floor(", "k = jnp.floor(", NOISE),
    Mutant("diffusion/corruption.py", "return Corruption(rank < k[:, None], length / k)", "return Corruption(rank < k[:, None], 1 / k)", NOISE),
    Mutant("diffusion/corruption.py", "axis=-1, where=corruption.masked)", "axis=-1)", NOISE),
    Mutant("diffusion/corruption.py", "jnp.where(corruption.masked, cfg.mask_id, completion)", "jnp.where(corruption.masked, completion, completion)", NOISE),
    Mutant("rl/hints.py", "jnp.where(size >= chunk_min, size, 0)", "size", HINTS),
    Mutant("rl/hints.py", "minval=chunk_min, maxval=chunk_max + 1", "minval=chunk_min, maxval=chunk_max", HINTS),
    Mutant("rl/hints.py", "inside.any(axis=1) & jnp.take_along_axis(hintable, source, axis=1)", "inside.any(axis=1)", HINTS),
    Mutant("rl/hints.py", "jnp.where(ratio > 0, 1, 0)", "0", HINTS),
    Mutant("rl/hints.py", "if not cfg.exclude_answer:", "if cfg.exclude_answer:", HINTS),
    Mutant("rl/hints.py", "jax.vmap(jax.random.uniform)(ratio_keys) * width + least", "jax.vmap(jax.random.uniform)(ratio_keys) * width", HINTS),
    Mutant("stages/hint_state.py", "cfg.curriculum * (0.5 - correct)", "cfg.curriculum * (correct - 0.5)", HINTS),
    Mutant("rl/hints.py", "math.floor(cfg.replace_fraction * group_size + 1e-9)", "math.ceil(cfg.replace_fraction * group_size)", HINTS),
    Mutant("rl/hints.py", "longest = jnp.cumprod(may_show, axis=1).sum(axis=1)", "longest = may_show.sum(axis=1)", HINTS),
    Mutant("stages/hint_state.py", "else len(tokens) * 3 // 4)", "else len(tokens))", HINTS),
    Mutant("rl/likelihood.py", "jnp.where(views.masked, cfg.mask_id, batch.completions[:, None, :r])", "batch.completions[:, None, :r]", LIKELIHOOD),
    Mutant("rl/likelihood.py", "masked * (length / (number.shape[1] * number))[..., None]", "masked * (length / number)[..., None]", LIKELIHOOD),
    Mutant("rl/likelihood.py", "other = jnp.where(number == length, length, length - number)", "other = length - number", LIKELIHOOD),
    Mutant("rl/likelihood.py", "share = jnp.where(advantages < 0,", "share = jnp.where(advantages > 0,", LIKELIHOOD),
    Mutant("rl/objective.py", "kept = jnp.maximum(int(keep > 0), jnp.floor(", "kept = jnp.maximum(0, jnp.floor(", LIKELIHOOD),
    Mutant("rl/objective.py", "-jnp.where(candidates, entropy, -jnp.inf)", "jnp.where(candidates, entropy, jnp.inf)", LIKELIHOOD),
    Mutant("rl/objective.py", "counts & (~batch.hint | kept)", "counts", LIKELIHOOD),
    Mutant("rl/objective.py", "under(reference)[0]", "old", LIKELIHOOD + " tests/rl/test_update.py"),
    Mutant("rl/likelihood.py", "here & (part >= number)", "here & (part > number)", LIKELIHOOD),
    Mutant("rl/objective.py", "np.where(differs, rewards - group_mean(rewards), 0)", "np.where(differs, rewards - rewards.mean(), 0)", OBJECTIVE),
    Mutant("rl/objective.py", "np.where(graded, values, 0).sum", "values.sum", OBJECTIVE),
    Mutant("rl/objective.py", "group_weights(advantages, ~has_no_verdict)", "group_weights(advantages, advantages == advantages)", OBJECTIVE),
    Mutant("rl/objective.py", "jnp.minimum(ratio * advantage, clipped * advantage)", "clipped * advantage", OBJECTIVE),
    Mutant("rl/objective.py", "1 - cfg.clip_low, 1 + cfg.clip_high", "1 - cfg.clip_low, 1 + cfg.clip_low", OBJECTIVE),
    Mutant("rl/objective.py", "cfg.kl_coefficient * kl - surrogate", "cfg.kl_coefficient * kl + surrogate", OBJECTIVE),
    Mutant("rl/objective.py", "differs = graded & ~equal_rewards(rewards, graded)[:, None]", "differs = graded", OBJECTIVE),
    Mutant("rl/objective.py", "return gap**2 / 2", "return gap**2", EXACT),
    Mutant("rl/objective.py", "jnp.exp(near) - near - 1 + beyond", "jnp.exp(near) - near - 1", EXACT),
    Mutant("rl/objective.py", "ratio = bounded_exp(jax.lax.stop_gradient(new) - old)", "ratio = bounded_exp(new - old)", EXACT),
    Mutant("rl/objective.py", "jnp.sum(weight * kl_estimate(new, old, reference, cfg.kl), axis=-3)", "jnp.sum(kl_estimate(weight * new, weight * old, weight * reference, cfg.kl), axis=-3)", EXACT),
    Mutant("rl/objective.py", "jnp.where(weight > 0, new - old, 0.0), weight", "jnp.where(weight > 0, weight * (new - old), 0.0), weight", EXACT),
    Mutant("rl/objective.py", "(group_weights(advantages, ~has_no_verdict) * tokens)[..., None] * score", "group_weights(advantages, ~has_no_verdict)[..., None] * score", EXACT),
    Mutant("rl/objective.py", "token_mean(jnp.sum(new - old, axis=-3), jnp.ones_like(loss_mask))", "token_mean(jnp.sum(new - old, axis=-3), loss_mask)", EXACT),
    Mutant("rl/objective.py", "jax.lax.psum(jnp.sum(x), BATCH) / rows", "jax.lax.psum(jnp.sum(x), BATCH)", OBJECTIVE),
    Mutant("rl/objective.py", "return (plus - minus) * advantages.shape[-1]", "return plus - minus", OBJECTIVE),
    Mutant("rl/rollout.py", "np.flatnonzero(first.grades.all_wrong & ~no_hint_available)", "np.flatnonzero(~first.grades.all_correct & ~no_hint_available)", ROLLOUT),
    Mutant("rl/rollout.py", "[:: 1 if from_front else -1]", "[:: 1]", ROLLOUT),
    Mutant("rl/rollout.py", "order[np.argsort(first.grades.graded[group, order], kind=\"stable\")]", "order", ROLLOUT),
    Mutant("rl/rollout.py", "loss_mask=until_end & graded[..., None]", "loss_mask=until_end", ROLLOUT),
    Mutant("tasks/grades.py", "np.logical_and(self.graded.any(axis=1), ~self.correct.any(axis=1))", "~self.correct.any(axis=1)", "tests/tasks/test_grades.py"),
    Mutant("tasks/grades.py", "(self.correct | ~self.graded).all(axis=1)", "self.correct.all(axis=1)", "tests/tasks/test_grades.py"),
    Mutant("rl/rollout.py", "return (ended == 0) | ((ended == 1) & (tokens == eos_id))", "return ended == 0", ROLLOUT),
    Mutant("rl/rollout.py", "draw.permutation(np.flatnonzero(row))[:most]", "np.flatnonzero(row)", ROLLOUT),
    Mutant("rl/dynamic_sampling.py", "each.correct.any(axis=1) & ~each.all_correct", "each.correct.any(axis=1)", "tests/tasks/test_grades.py"),
    Mutant("rl/rollout.py", "grades), np.argsort(order))", "grades), order)", ROLLOUT),
    Mutant("rl/update.py", "logprobs = jax.tree.map(lambda x: x[inner_step % x.shape[0]], logprobs)", "logprobs = jax.tree.map(lambda x: x[0], logprobs)", OBJECTIVE + " tests/rl/test_whole_step.py"),
    Mutant("grading/exact.py", "value += self.product() if self.take() == \"+\" else -self.product()", "value += self.product() if self.take() else 0", GRADING),
    Mutant("grading/exact.py", "require(\",\" not in mantissa or THOUSANDS.fullmatch(mantissa) is not None,", "require(True,", GRADING),
    Mutant("grading/exact.py", "require(root * root == value,", "require(True,", GRADING),
    Mutant("grading/exact.py", "require(self.depth <= MAX_DEPTH,", "require(True,", GRADING),
    Mutant("grading/equality.py", "first.value == second.value / 100 if answer.kind == \"percent\" else first.value / 100 == second.value", "False", GRADING),
    Mutant("grading/equality.py", "abs(missing) <= last / 2 or 0 < missing < last", "abs(missing) <= last", GRADING),
    Mutant("grading/equality.py", "if gold.unit[0] != answer.unit[0]:", "if False:", GRADING),
    Mutant("grading/equality.py", "gold.name and answer.name and is_renamed", "False", GRADING),
    Mutant("grading/equality.py", "if not _is_consistent(gold) or not _is_consistent(answer):", "if False:", GRADING),
    Mutant("grading/answers.py", "if match.start() < end:", "if False:", GRADING),
    Mutant("grading/answers.py", "first = line or (concluded", "first = (concluded", GRADING),
    Mutant("tasks/math.py", "return float(grade(problem.answer, text, \"reference_code\" if reference_code else answer))", "return 1.0", GRADING),
    Mutant("tasks/math.py", "spans += [(begin + first, begin + last)", "spans += [(first, last)", GRADING),
    Mutant("tasks/math.py", "spans.append((text.rfind(\"\\n\", 0, first) + 1,", "spans.append((first,", GRADING),
)  # fmt: skip

# Mutants that no test can detect, and why: {text before: reason}.
EQUIVALENT: dict[str, str] = {}


def copy_of_project(folder: pathlib.Path) -> pathlib.Path:
    for name in ("igpo_jax", "tests", "configs", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run_mutant(mutant: Mutant, compiled: str) -> tuple[str, float]:
    """Returns the test that failed ("" if none did) and the seconds. compiled: compilation cache shared by all mutants.

    Raises:
        ValueError: the text to replace does not occur exactly once.
    """
    with tempfile.TemporaryDirectory() as temporary:
        project = copy_of_project(pathlib.Path(temporary) / "project")
        path = project / "igpo_jax" / mutant.file
        text = path.read_text()
        if text.count(mutant.before) != 1:
            raise ValueError(f"{mutant.file} has {text.count(mutant.before)} times, not once: {mutant.before!r}")
        path.write_text(text.replace(mutant.before, mutant.after))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--durations=0", "--tb=no"]
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": compiled}
        begin = time.monotonic()
        try:
            done = subprocess.run(
                [*command, *mutant.tests.split()],
                cwd=project,
                env=env,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"more than {SECONDS} s", time.monotonic() - begin
        seconds = time.monotonic() - begin
        if done.returncode == 0:
            return "", seconds
        noticed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return (noticed[0].split(" - ")[0] if noticed else f"exit code {done.returncode}"), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of the mutants; all by default")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    numbers = options.numbers or range(len(MUTANTS))
    with tempfile.TemporaryDirectory() as compiled, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        running = {pool.submit(run_mutant, MUTANTS[number], compiled): number for number in numbers}
        outcomes = {}
        for done in concurrent.futures.as_completed(running):
            number = running[done]
            outcomes[number] = done.result()
            noticed, seconds = outcomes[number]
            print(f"{len(outcomes)}/{len(running)} mutant {number}, {seconds:.0f} s: {noticed or 'SURVIVED'}", flush=True)
    text = table(outcomes)
    print(text)
    if options.output:
        options.output.write_text(text)


def table(outcomes: dict[int, tuple[str, float]]) -> str:
    def cell(code: str) -> str:
        return f"`` {' '.join(code.split())} ``".replace("|", "\\|")

    killed = sum(bool(noticed) for noticed, _ in outcomes.values())
    lines = [
        f"{killed} of {len(outcomes)} mutants are noticed ({killed / len(outcomes):.0%}). "
        f"{time.strftime('%Y-%m-%d')}, Python {platform.python_version()}, {platform.processor() or platform.machine()}.",
        "",
        "| | file | instead of | stands | noticed by |",
        "|---|---|---|---|---|",
    ]
    for number, (noticed, _) in sorted(outcomes.items()):
        mutant = MUTANTS[number]
        reason = EQUIVALENT.get(mutant.before, "**no test**")
        by = noticed.removeprefix("FAILED ").removeprefix("ERROR ") or reason
        lines.append(f"| {number} | {mutant.file} | {cell(mutant.before)} | {cell(mutant.after)} | {by} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
