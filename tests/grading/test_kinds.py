"""Pairs of a correct answer and another answer, of the kinds by which graders fail: one pair in a line, joined by <<."""

import pytest

import igpo_jax
from igpo_jax.grading.answers import extract

WRONG = r"""
7 << 7 elevenths
7 << 7 lakh
7 << 7 or more
7 << twice 7
7 << 7\text{ elevenths}
7 << \text{twice }7
10 << 10 doubled
10 << 10 false
10 << 10 squared
10 << 10 dozen
10 << 10 halves
10 << 10 and a half
10 << 10 minus one
10 << 10 over two
10 << 10 or less
10 << 10k
10 << 10 in binary
10 << 10!
10 << 10 million
5 << \text{at least} 5
5 << less than 5
5 << 5\text{k}
5 << \ge 5
5 << more than 5
5 << not 5
5 << minus 5
5 << twice 5
5 << >5
5 << 5m
101 << 101 in binary
9 << 9\ldots
9 << 9\text{th root}
6 \text{ cm} << 6 m
6 \text{ cm} << 6 \text{ m}
90^\circ << 90\text{ radians}
\$40 << 40 \text{ cents}
5 \text{ km/h} << 5\text{ m/s}
5\text{ hours} << 5\text{ minutes}
12\sqrt{13}\text{ feet} << 12\sqrt{13}\text{ inches}
4\text{ square feet} << 4\text{ feet}
f(x)=3 << g(x)=3
[0,1] << [0,1)
\sum_{k}pt << \sum_{k}Pt
\prod_{i=1}^{n} cm << \prod_{i=1}^{n} mc
\int cm << \int 100m
[-1,3] << [-1,3)
204_5 << 204_4
1,2,3 << 1,2
8:34 << 8:35
1:2 << 2:1
5 << \sqrt{26} = 5
5 << 2\pi = 5
5 << 3! = 5
\sqrt{17} << 5 = \sqrt{17}
3\pi << 2\pi = 3\pi
x^2+1 << x^2-1 = x^2+1
(1,2) << (2,1) = (1,2)
[0,1) << [0,1] = [0,1)
52_8 << 53_8 = 52_8
\begin{pmatrix}1\\2\end{pmatrix} << \begin{pmatrix}1\\3\end{pmatrix} = \begin{pmatrix}1\\2\end{pmatrix}
6-5i << 6+5i = 6-5i
\{1,2\} << \{1,3\}=\{1,2\}
5 << (1,2) = 5
1:2 << 1:3 = 1:2
\sqrt{17} << \sqrt{17} \approx 5
3\pi << 3\pi \approx 10
5 \text{ cm} << 5 \text{ m} = 5 \text{ cm}
f(x) << f'(x)
f'(x) << f''(x)
2x+1 << 2x'+1
x^2 << x'^2
AB << A'B'
x << x'
5\text{ feet} << 5''
5 << 5'
5 << 5 minus-ones
5 << 5 one-halves
5 << 5 half-dozens
5 << 5 quintillions
5 << 5 halfs
5 << 5 fives
5 << 5 opposites
5 << 5 negatives
5 << 5 reciprocals
5 << 5 times x
5 << 5 apples x
5 << 5 dollars short
5 << 5 miles per hour slower
5 << 5 fails
5 << 5 exceeds the answer
5 << 5 needs halving
5 << 5_{max}
5 << 5_{ab}
(-\infty,2)\cup(3,\infty) << x < 2 \text{ and } x > 3
(1,2) << y = 1, x = 2
(1,2) << (y,x) = (1,2)
f^{-1}(x) << \frac{1}{f(x)}
f(4-x) << 4f - fx
LQSX << SQLX
MAKE << KAME
\pi << \Pi
5 << \boxed{-\boxed{5}}
5 << \boxed{\frac{1}{\boxed{5}}}
5 << \boxed{\boxed{5}!}
5 << \text{not }\boxed{5}
\frac{1}{2a}(\exp{a*t} - \exp{-a*t}) << \frac{e^{at}+e^{-at}}{2a}
5 << 5 = 6
3 << 2=3
5 << 5 \approx 6
\pi r^2 h << \pi R^2 h
\frac{m}{m+M} << \frac{M}{m+M}
a^2+b^2 << a^2+B^2
-\tau\ln\Delta << -\tau\ln\delta
5 << \csc 0
\sqrt{2} << \cot 0
\sqrt{2} << (-1)!
x+1 << x+1 \approx 7
\sqrt{17} << \sqrt{17} \approx x
5 << 5 \approx x
\tan x << \tan x^\circ
\pi << \pi^\circ
5 << 5 sixes
5 << 5 googols
5 << 5 non-apples
(-4,-\frac{1}{2}) << -4,-\frac{1}{2}]
\frac12 << (\frac12
6-5i << 6+5i
x+y+z = 0 << 0
2x+z=1 << 1
-5 << \phantom{-}5
5 << 2x = 5
k = 15 << x+k = 15
20 << \$20 at best
20 << \$20 in hex
18 << 18\text{ ways} per mille
5 << 5-\{0\}
x+6 << x+6 \mod 7
s^2 \le 8r^2 << s^2 \le 8r^2 \approx 1000
\frac{3}{4} << \frac{3}{4}...
\frac{3}{4} << \bar{\frac{3}{4}}
\frac{3}{4} << \frac{3}{4}_2
\frac{3}{4} << 1000 \mid \frac{3}{4}
\frac{3}{4} << \sqrt\frac{3}{4}
1+5i << \max(1+5i,10^9)
5 << negative 5
413_6 << 413_7
413_6 << 413
20\text{ degrees Celsius} << 20\text{ degrees Fahrenheit}
"""
RIGHT = r"""
12000 << 12 000
6\text{ m} << 600 \text{ cm}
\$0.40 << 40 \text{ cents}
5 << = 5
5 << 5\
(1,2) << \bigl(1,2\bigr)
90^\circ << 90{}^\circ
90^\circ << 90^o
204_5 << (204)_5
x^2 << x**2
5 << \boldsymbol{5}
-5+4i << -5+4\cdot i
5 << {{5}}
5 << The answer is 5
5 << \text{Area} = 5
C << C.
F << Option F
2+m << m+2
2+t << t+2
1/3 << 0.\overline3
\emptyset << \varnothing
5 << {\bf 5}
5 << \large 5
x+1 << $1 + x$
\int_0^1 x\,dx << \int_{0}^{1} x dx
73 << **73**
10 << 10 men
18 << 18 eggs
10 << 10\text{ red marbles}
12 << 12 slices of pizza
24 << 2 dozen
4 << \text{four}
5 << \{5\}
x^2+y^2=13 << y^2+x^2=13
5x-7y+11z+4=0 << 5x+11z-7y+4=0
5x-7y+11z+4=0 << -5x+7y-11z-4=0
\frac{x^2}{16}-\frac{y^2}{9}=1 << \frac{x^2}{4^2} - \frac{y^2}{3^2}=1
44\% << 44 \text{ percent}
120 << \dbinom{10}{3}
120 << {10 \choose 3}
\sqrt{17} << √17
\begin{pmatrix}1\\2\end{pmatrix} << \begin{array}{c}1\\2\end{array}
(-\infty,\infty) << \mathbb{R}
5 \text{ cm} << 5{\rm cm}
5 << \$5 per hour
5 << \$5 each
3:1 << 3{:}1
21 << twenty-one
30 << V_{\text{cone}} = 30
30 << [ABC] = 30
30 << \therefore x = 30
\text{east} << the east
\text{ellipse} << an ellipse
\text{east} << "east"
5 << 5 friends
12 << 12 cards
3 << 3 tests
5 << 5 \text{ positive integers}
5 << x=\frac{10}{2}=5
\frac{1}{3} << \frac13 \approx 0.333
5 \text{ cm} << 50 \text{ mm} = 5 \text{ cm}
1 << \sin\left(\frac{\pi}{2}\right) = 1
(1,2) << x=1, y=2
(3,2) << (p,q)=(3,2)
2 << \sqrt4 = 2
0.5 << 50\% = 0.5
5 << 5 months
y=2x+1 << y=1+2x
5 << 5\text{ ways}
10 << 10 \text{ hours per week}
4\pi << 4\pi \approx 12.57
30 << 5 \times 6 = 30 \text{ apples}
30 << 5 \times \$6 = \$30
30 << x = 5 \cdot 6 = 30 \text{ cm}
3\sqrt{2} << \sqrt{18} = 3\sqrt{2} \text{ cm}
2x+1 << x+x+1 = 2x+1
x^2+3x+2 << (x+1)(x+2) = x^2+3x+2
x^2+3x+2 << f(x) = (x+1)(x+2) = x^2+3x+2
(3,\frac{\pi}{2}) << (r,\theta) = (3,\frac{\pi}{2})
(1,2) << (m,b) = (1,2)
(1,2) << m = 1, b = 2
-128-128\sqrt{3} i << -128-128i\sqrt{3}
\frac15+\frac35 i << \frac{1+3i}{5}
\frac{i}{5} << 0.2i
\frac{1-i}{2} << \frac{1}{1+i}
\frac{e^{2it}}{2+2i} << \frac{1}{2+2i}e^{2it}
36\pi << \pi(6)^2
36\pi << 4\pi(3)^2
5 << m+n = 2+3 = 5
5 << a+b = 5
1 << 1 \text{ way}
1 << 1 student
(-\infty, 2) \cup (3, \infty) << (-\infty, 2) U (3, \infty)
\sin x << \operatorname{sin} x
\sin x << sin(x)
\ln 2 << ln(2)
\log_2 3 << \log_2(3)
\log_2 3 << \log_{2}{3}
5 << \log_2 32 = 5
21 << twenty one
5 << \phantom{-}5
30 << \underline{30}
52_8 << 52_8
\pi R^2 << R^2 \pi
\frac{m}{m+M} << \frac{m}{M+m}
\sqrt{17} << sqrt(17)
ce^{-2x} << Ce^{-2x}
\begin{pmatrix}1\\-2\end{pmatrix} << \begin{pmatrix}1\\[6pt]-2\end{pmatrix}
36\pi << 36\pi\text{ m}^3
24 << 24 \text{ ft/sec}
5 << 5\text{ sec}
\frac{x-3}{2} << f^{-1}(x) = \frac{x-3}{2}
413_6 << 413 \text{ (base 6)}
413_6 << 413_{\text{base }6}
413_6 << {413}_6
413_6 << 413_{six}
-5 << negative 5
18 << 9 * 2 = 18 dollars
10 << 10 hours per week
\text{A5}_{11} << A5_{11}
-221_3 << -221_{3}
0.0011_2 << 0.0011_{2}
5 << 5 teeth
20\text{ degrees Celsius} << 20\text{ degrees celsius}
"""
# A completion that concludes 73 (a line break is written as a tilde).
CONCLUDED = r"""
**Answer: 73**
**Answer:** 73
**Final Answer:** 73
**The answer is 73.**
**Answer:**~73
**Final Answer:** $73$
### Answer: 73
$$\boxed{73}$$
\[ \boxed{73} \]
The final answer is $\boxed{73}$. I hope it is correct.
#### 73
####73
#### $73.00
#### 73 dollars
So she makes $73 every day.
Answer: 73 (seventy-three)
#### 73 (since 70+3)
<answer>Sarah has 73 apples.</answer>
<answer>Total: 73</answer>
<answer>~\boxed{73}~</
<answer>73~</answ
<answer>73</reasoning>
<answer>~\boxed{73~</answer>
<answer>boxed{73}</answer>
<answer>**73**</answer>
\boxed{73}~<answer>~\boxed{...}~</answer>
\boxed{73} \boxed{}
\boxed{73}, \boxed{73}
<answer>~73~<answer>
#### Final Answer~~73
#### Step 1: Add the eggs~70+3=73~#### Answer~She has 73.
The answer is:~\[~73~\]
#### 70+3 = 73
<think>maybe \boxed{4}</think> The answer is 73.
<think>\boxed{42}</think><answer>73</answer>
The total is 73, because there are 73 eggs.
#### $73 per day
#### $73/day
#### $<<70+3=73>>73
<answer>70 + 3 = 73 dollars</answer>
The answer is $73 every day for 9 eggs.
The answer is 73, which is 9 times 2.
The answer is 73 dollars for 9 eggs.
The answer is 73 students out of 90.
The answer is 73 times a day.
The answer is 73^\circ as the 9 angles show.
The answer is 73 miles in 2 hours.
The answer is 73 per day for 3 days.
The answer is 73: she sells 70 eggs, then 3.
The answer is 73 - she sells 70 eggs, then 3.
The answer is $73$ for each of the 9 eggs.
The answer is 73.~~This was solved in 2 ways.
"""
# A completion that does not conclude 73
NOT_CONCLUDED = r"""
<answer>at least 73</answer>
<answer>it is not 73 apples</answer>
#### 73 elevenths
<answer>73 or 74</answer>
\boxed{73} and finally \boxed{74
#### at least 73
The answer is therefore $\sqrt{73}$.
<answer>all x with $x > 73$</answer>
<answer>I cannot solve problem 73</answer>
#### 73*10 = 730
#### 73 million
<answer>[73, \infty)</answer>
The model AZ73K
\boxed{73, 74}
#### 73, 74
The answer is negative 73.
The answer is at least 73.
The answer is 73 or 74.
The answer is 73 times 2
The answer is 73 times 2.
The answer is 73 per 2
The answer is 73 to 80
The answer is 73 out of 80
The answer is 73 out of 80 students
The answer is 73 dollars to 80 dollars.
The answer is 73 of 80
The answer is 73 from 80
The answer is 73 by 80
The answer is 73 in 80
The answer is 73 through 80.
The answer is 73 up to 80
The answer is 73 for every 2
The answer is 73 choose 2
The answer is 73, times 2
The answer is $73 times $2
The answer is $73$ times $2$
The answer is \(73\) to \(80\)
The answer is 2 times $73$
The answer is 2 times 73
The answer is 65 to 73
The answer is $65$ to $73$
The answer is 73%80
The answer is 73^2 eggs
The answer is 73 × 2 eggs
The answer is 73-2 eggs
The answer is 73 : 2
The answer is 2 : 73
<answer>73 out of 73</answer>
<answer>2 times $73$</answer>
#### 73 times 2
The answer is 9 dollars for 73 eggs.
"""


def pairs(text: str) -> list[list[str]]:
    return [line.split(" << ") for line in text.strip().split("\n")]


def graded(gold: str, answer: str) -> bool:
    return igpo_jax.grade(gold, f"\\boxed{{{answer}}}", "box")


@pytest.mark.parametrize("gold, answer", pairs(WRONG))
def test_a_wrong_answer_is_refused(gold, answer):
    assert not graded(gold, answer)


@pytest.mark.parametrize("gold, answer", pairs(RIGHT))
def test_a_right_answer_is_accepted(gold, answer):
    assert graded(gold, answer)


@pytest.mark.parametrize("text", CONCLUDED.strip().split("\n"))
@pytest.mark.parametrize("rule", ["any", "number"])
def test_what_a_completion_concludes(text, rule):
    text = text.replace("~", "\n")
    assert igpo_jax.grade("73", text, rule), extract(text, rule)


@pytest.mark.parametrize("text", NOT_CONCLUDED.strip().split("\n"))
@pytest.mark.parametrize("rule", ["any", "number"])
def test_what_a_completion_does_not_conclude(text, rule):
    text = text.replace("~", "\n")
    assert not igpo_jax.grade("73", text, rule), extract(text, rule)
