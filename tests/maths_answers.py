r"""Reference answers as MATH-500, MATH-401, AMC, AIME and OlympiadBench publish theirs, and wrong neighbours."""

import re

GOLDS = r"""
\left( 3, \frac{\pi}{2} \right)
p - q
\frac{14}{3}
9
\text{Evelyn}
42
27
90^\circ
3\sqrt{13}
4
2220_5
\frac{3}{56}
284
5
\sqrt{51}
6 - 5i
-50
\pi
28
3
6+9i
13535
x=5
10
1,-2
144
78
-2 + 7i
225
52_8
11\sqrt2
720
\frac{243}{625}
-125
3, 5, 7
23
\frac{13}{15}
\frac{21}{4}
80
x \in [-2,7]
\text{(C)}
187.5
\frac{9}{7}
[-2, 1]
\frac 34
\frac{1}{3}
2 \sqrt{7}
(6,31,-1)
\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}
4210_{5}
11,\! 111,\! 111,\! 100
5.4 \text{ cents}
10\%
\$32,\!348
70 \sqrt{2}
1 \pm \sqrt{19}
-2,1
\text{east}
(-\infty, -1) \cup (-1, 3) \cup (3, \infty)
\frac{\sqrt{3}}{3}
x^3+3x-6
(3,4]
8 \text{ sides}
15\mbox{ cm}^2
864 \mbox{ inches}^2
y = -2x + 3
\{1\pm\sqrt{5},-2\}
\text{even}
3R^2
0.35625
6r^2-4r-24
(x+2)(x-7)
-\frac{2}{3}
(0,9) \cup (9,36)
1 \frac{4}{5}
5\frac{1}{2}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
16.25
.0000672
3.14
1.25 \times 10^{5}
2^{10}
7:30
\text{Tuesday}
\text{Yes}
\text{C}
A
\frac{3\sqrt{3}}{4}
\sqrt[3]{2}
\log_2 3
\tan 20^\circ
\sin^2 x
e^{2}
\ln 2
-1 + 2i
i
\dfrac{4}{9}
\tfrac12
\frac43
2k+1
a^2+b^2
\frac{p+q}{2}
n(n+1)
\left[\frac{1}{2}, 3\right)
\left(-\infty,\frac{5}{2}\right]
(2,12)
(-3, 0, 4)
3 : 4
2:3
12{,}500
1,250,000
6\frac{2}{3}
36\pi
\frac{\pi}{6}
4\sqrt{3}+2\pi
-\sqrt{2}
10\sqrt{5}
25\text{ degrees}
12\text{ square units}
5000 \text{ square feet}
60 \text{ mph}
22\text{ hours}
\$18.90
\$0.75
36\%
12.5\%
1,2,3
\frac{1}{2}, -3
-1, 0, 1
0, \frac{\pi}{2}, \pi
x=1,2
x = 3, y = -2
(1,2),(3,4)
y=x^2-1
x^2+y^2=25
x>3
x \le -2
-1 < x < 4
x < -2 \text{ or } x > 5
\infty
-\infty
\emptyset
\mathbb{R}
17^\circ
\frac{1}{1+x^2}
x^2-4x+7
2x^2+3x-5
-x^4+2x^3+5x
(x-3)^2+(y+1)^2=16
z^3-1
\sqrt{x-1}
|x-2|
\frac{x+1}{x-2}
\frac{a}{b+c}
540
025
073
204
902
27.0
-8.0
116
0.9093
-3.2
1/2
-7/3
12345678
2.5\cdot 10^{-3}
\binom{10}{3}
5!
\frac{5!}{2}
\frac{2n}{n+1}
2^{n}-1
2^{2024}
3^{100}+1
\cos 40^\circ
\frac{\sqrt{6}-\sqrt{2}}{4}
\sqrt{2}+\sqrt{3}
1+\sqrt[4]{2}
4x+3y-7=0
2,-\frac{1}{3}
\{1,3,5\}
\{2,3\}
\left\{-2, \frac{1}{2}\right\}
[4,\infty)
\text{6 and 8}
3 \text{ and } 4
\text{Monday}
\text{parallelogram}
\text{ellipse}
\text{odd}
\text{June 20}
\text{Briana}
14916.5
2516_8
1011_2
1A3_{16}
-4.5
\$5{,}000
30 \text{ miles}
2.4\text{ m}
4\text{ cm}
100\text{ cm}^3
18 \sqrt{3} \text{ cm}^2
\frac{3}{8} \text{ inches}
6\text{ L}
$\frac{1}{2}$
$2$,$3$
$-5$ and $3$
$k \geq 3$
$\frac{n(n-1)}{2}$
$(1,-1)$, $(2,0)$
\boxed{12}
""".strip().splitlines()


def perturbed(gold: str) -> list[str]:
    """Wrong answers next to a right one: another digit, another sign, one number alone. Units have no say in it."""
    body = re.sub(r"(?:\\mbox|\\text)\{[^{}]*\}(?:\^\d)?|\^\\circ|\\%", "", gold).strip("$ ")
    body = re.sub(r"^\\boxed\{(.*)\}$", r"\1", body).replace("\\$", "")
    found = set()
    for digit in re.finditer(r"\d", body):
        found.add(f"{body[: digit.start()]}{(int(digit[0]) + 1) % 10}{body[digit.end() :]}")
    for sign in re.finditer(r"(?<![\w})] )(?<![\w})])-(?=[1-9\\a-z.])", body):
        found.add(body[: sign.start()] + body[sign.end() :])
    for sign in re.finditer(r"(?<=[\w}])( ?)([-+])(?= ?[\w\\])", body):
        found.add(body[: sign.start(2)] + ("-" if sign[2] == "+" else "+") + body[sign.end(2) :])
    if re.fullmatch(r"\d+(?:\.\d+)?|\\d?frac.*|\d*\\sqrt.*", body):
        found.add("-" + body)
    without_base = re.sub(r"_\{?\d+\}?$", "", body)
    alone = (
        set() if re.fullmatch(r"(?:[a-z] ?=)?[-\d.,:\\! {}]*", without_base) else set(re.findall(r"\d+", without_base))
    )
    return sorted(found | alone - {body})
