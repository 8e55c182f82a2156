"""Answers made to hang, crash or mislead a grader, always the same 100; part `hostile` of answers.py grades them."""

from collections.abc import Iterator

GOLDS = ("5", r"\frac{1}{2}", "x+1", "(1,2)", r"\sqrt{2}", r"6\text{ cm}", "204_5", "[0,1)", r"\{1,2\}", "x < 5")
MATRIX = r"\begin{pmatrix}%s\end{pmatrix}"
Row = tuple[str, str, str]  # name, gold, completion


def hostile() -> list[dict]:
    """Returns rows {"id", "gold", "pred", "expected"} for `grading.hangs`. `expected` is False, since no answer is right."""
    rows = [*powers(), *large_numbers(), *bounds(), *nested(), *long_ones(), *unusual_letters(), *shapes()]
    return [{"id": name, "gold": gold, "pred": text, "expected": False} for name, gold, text in rows]


def boxed(text: str) -> str:
    return f"\\boxed{{{text}}}"


def wrapped(before: str, inner: str, after: str, times: int) -> str:
    return before * times + inner + after * times


def powers() -> Iterator[Row]:
    towers = [
        wrapped("7^{", "7", "}", 5), wrapped("(", "3", ")^{9999}", 9), wrapped("2**", "2", "", 40), "(10^{10^{7}})^{10^{7}}",
        r"(\frac{3}{7})^{88888888}", r"2^{-77777777}", "99999^{99999}", "(2^{99999})^{99999}", r"(\sqrt{2})^{3^{3^{3^3}}}",
        r"\frac{8^{8^{8}}+1}{8^{8^{8}}-1}", "1.0000001^{4000000000}", r"(1+i)^{123456789}", r"e^{e^{e^{e^{e^{79}}}}}",
        r"(x+1)^{98765432}-(x+1)^{98765431}", r"\left(2^{3^{4^{5^{6}}}}\right) \text{ cm}",
    ]  # fmt: skip
    for place, tower in enumerate(towers):
        yield f"power {place}", GOLDS[place % len(GOLDS)], boxed(tower)


def large_numbers() -> Iterator[Row]:
    numbers = [
        "123456789!", "(7!)!!", wrapped("(", "5", ")!", 30), "99999999!!", r"\frac{500000!}{499999!}",
        r"\binom{300000000}{150000000}",
        r"{123456 \choose 61728}", r"\binom{\binom{90}{45}}{3}", "_{7654321}P_{1234567}",
        r"\gcd(10^{9999999}, 6^{9999999})", r"\text{lcm}(" + ",".join(map(str, range(1, 900))) + ")", r"31^{31^{31}} \pmod{97}",
        r"\log_{10} (17^{17^{17}})", r"\lceil 10^{4444444} / 3 \rceil", "-4.5E-777777777", "0." + "0" * 9000 + "1",
        "8" * 7001 + "/" + "3" * 7001, r"\frac{" + "6" * 5000 + "}{" + "7" * 5000 + "}",
        "1" + ",000" * 3000, "7" * 1000 + "_" + "9" * 1000, "0x" + "f" * 8000, "1/" * 700 + "2",
    ]  # fmt: skip
    for place, number in enumerate(numbers):
        yield f"number {place}", GOLDS[place % 3], boxed(number)


def bounds() -> Iterator[Row]:
    ways = [
        r"\sum_{j=1}^{10^{15}} \frac{j^j}{j!}", r"\sum_{i=0}^{N}\sum_{j=0}^{N}\sum_{k=0}^{N} \binom{N}{i+j+k}",
        r"\prod_{p=2}^{7777777} \left(1-\frac{1}{p^2}\right)", r"\int_{-\infty}^{\infty} e^{-x^{6}+\cos(x^{5})}\,dx",
        r"\int_0^{10^9} \int_0^x \int_0^y \tan(\sin(z^{z}))\,dz\,dy\,dx",
        r"\int_{a}^{b} \frac{dx}{\sqrt{x^{7}+x^{5}+x+1}}", r"\lim_{n \to \infty} \left(\frac{n!}{n^n}\right)^{1/n^{n}}",
        r"\sum_{n=1}^{\infty} \frac{(-1)^{n!}}{n^{\sin n}}", r"\frac{d^{500}}{dx^{500}} \left(x^{500} \sin^{500} x\right)",
        r"\prod_{k=1}^{\infty} \sum_{j=1}^{k^{k}} \zeta(j)",
    ]  # fmt: skip
    for place, text in enumerate(ways):
        yield f"bounds {place}", GOLDS[place % 3], boxed(text)


def nested() -> Iterator[Row]:
    ways = [
        (r"\fbox{", "}", 700), (r"\frac{\pi}{1+", "}", 90), (r"\sqrt[3]{2+", "}", 120), (r"\left[", r"\right]", 800),
        (r"\{", r"\}", 900), (r"\text{\textbf{", "}}", 600), (r"\left(\left\{", r"\right\}\right)", 300), ("-(-", ")", 1500),
        ("(1,", ")", 400), (r"\overline{", "}", 900), (r"|", "|", 2001), (r"x_{", "}", 700), (r"\log(", ")", 350),
        (r"\dfrac{1}{", r"}^{2}", 60),  ("{(", "}", 1500),
    ]  # fmt: skip
    for place, (before, after, times) in enumerate(ways):
        yield f"nested {place}", GOLDS[place % len(GOLDS)], boxed(wrapped(before, "7", after, times))


def long_ones() -> Iterator[Row]:
    ways = [
        "," * 9000, "7," * 5000 + "7", "7" + r"\text{ cm}" * 2000, "7 " + "meters per " * 900 + "second", "7 = " * 3000 + "8",
        "+".join(f"x^{{{k}}}" for k in range(2, 700)), "*".join(f"(x-{k})" for k in range(2, 200)), "7<" * 2500 + "8",
        r"(0,1)" + r"\cup(0,1)" * 1200, "(" + ",".join(["7"] * 4000) + ")",
        r"\{" + ",".join(f"{k}.5" for k in range(2000)) + r"\}",
        r"\text{" + "or more " * 1500 + "}7", "7" + "!" * 4000, "7" + "^2" * 3000, "-" * 9001 + "7", r"\neg" * 3000 + " 7",
        r"7\," * 6000, "7 or " * 2500 + "8",
    ]  # fmt: skip
    for place, text in enumerate(ways):
        yield f"long {place}", GOLDS[place % len(GOLDS)], boxed(text)


def unusual_letters() -> Iterator[Row]:
    ways = [
        "\u0667\u0668", "\u2460", "\U0001d7db" * 900, "\u200b" * 5000 + "7", "\u202e7\u202c", "7\ufe0f\u20e3", "\u00b2" * 2000,
        "7\x00\x01\x02", "e\u0301" * 3000, "\u221a" * 3000 + "7", "\u4e03", "\u215b" * 1000,
    ]  # fmt: skip
    for place, text in enumerate(ways):
        yield f"letters {place}", GOLDS[place % 3], boxed(text)


def shapes() -> Iterator[Row]:
    wide = MATRIX % r"\\".join("&".join(f"x_{{{i}}}^{{{j}}}" for j in range(25)) for i in range(25))
    tall = MATRIX % r"\\".join(str(k) for k in range(3000))
    yield "matrix wide", MATRIX % r"1\\2", boxed(wide)
    yield "matrix tall", MATRIX % r"1\\2", boxed(tall)
    yield "matrix nested", MATRIX % r"1\\2", boxed(wrapped(r"\begin{pmatrix}", "7", r"\end{pmatrix}", 120))
    yield "matrix inverse", MATRIX % r"1\\2", boxed(f"{wide}^{{-1}}")
    many = ",".join(f"x_{{{k}}}={k}" for k in range(300))
    yield "names", many, boxed(many.replace("=7,", "=8,"))
    yield "tuples", "(1,2)", boxed(",".join(f"({k},{k}!)" for k in range(400)))
    unions = r"\cup".join(f"({k},{k + 1}]" for k in range(400))
    yield "unions", unions, boxed(unions.replace("(7,8]", "(7,8)"))
    roots = "+".join(rf"\sqrt{{{k}}}" for k in range(2, 60))
    yield "roots", roots, boxed(roots.replace(r"\sqrt{7}", r"\sqrt[3]{7}"))
