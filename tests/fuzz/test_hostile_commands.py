"""Short tests/campaigns/fuzz_commands.py: commands on hostile folders, and proof that its checks find faults."""


import pytest

from hostile_files import MODULE, PRECIOUS, SCRIPT
from parsers import write_run


@pytest.fixture
def fuzz_commands(campaign):
    return campaign("fuzz_commands")


@pytest.mark.slow
def test_commands_on_hostile_files_end_well_and_touch_nothing_else(fuzz_commands, tmp_path, capsys):
    for name in ("run", "run2"):
        (tmp_path / "shared" / name).mkdir(parents=True)
        write_run(tmp_path / "shared" / name)
    commands = "--commands=report,inspect_data jsonl.jsonl.gz,inspect_data openr1"
    faulty = fuzz_commands.main([commands, "--cases=30", "--minutes=5", f"--folder={tmp_path}"])
    assert not faulty, capsys.readouterr().out


def test_a_case_is_reproduced_by_its_number(fuzz_commands, tmp_path):
    (tmp_path / "shared" / "run").mkdir(parents=True)
    write_run(tmp_path / "shared" / "run")
    commands = {"report RUN": fuzz_commands.commands_of()["report RUN"]}
    for number in range(20):
        roots = [tmp_path / f"{number}-{i}" for i in range(2)]
        (one, _), (other, _) = (fuzz_commands.plan_case(number, 0, commands, tmp_path / "shared", root) for root in roots)
        assert one.kinds == other.kinds
        assert str(one.changes).replace(roots[0].name, "") == str(other.changes).replace(roots[1].name, "")


def test_the_checks_find_faults(fuzz_commands, tmp_path):
    command = fuzz_commands.Command("convert", ())
    box = fuzz_commands.prepare_sandbox(tmp_path)
    before = fuzz_commands.snapshot(tmp_path)
    (tmp_path / "outside/precious.txt").write_text("changed")
    (tmp_path / "outside/new").symlink_to("x")
    (box / "out").mkdir()
    (box / "out/notes.txt").write_text(f"a copy: {PRECIOUS}")
    (box / "out/page.html").write_text(
        f"<p>&lt;img onerror={SCRIPT}&gt;</p><img src=x onerror={SCRIPT}><script>{SCRIPT}</script>"
    )
    exec(compile(MODULE, box / "evil.py", "exec"), {"__file__": str(box / "evil.py")})
    changed = ["ran code of box/ran", "wrote outside/new", "changed outside/precious.txt"]
    assert fuzz_commands.faults_of_files(before, fuzz_commands.snapshot(tmp_path), command) == changed
    assert fuzz_commands.faults_of_outputs(box, command, 0) == [
        "copied a precious file to out/notes.txt",
        "<img onerror> injected into out/page.html",
        "<script> injected into out/page.html",
    ]
    for printed, status, expected in (
        ("error: no file", 1, []),
        ("done", 0, []),
        ("error: two\nlines", 1, ["no error in one line, but 'lines'"]),
        ("Segmentation fault", -11, ["status -11"]),
        ("error: \x1b[2J", 1, ["control characters in an error"]),
        ('Traceback (most recent call last):\n  File "/x/igpo_jax/a.py", line 3\nKeyError: 1', 1,
         ["traceback: KeyError at igpo_jax/a.py:3"]),
    ):  # fmt: skip
        case = fuzz_commands.Case(0, "", [], [], [], status=status)
        assert fuzz_commands.faults_of_end(case, printed, command) == expected
