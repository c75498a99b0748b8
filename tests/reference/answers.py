#!/usr/bin/env python3
"""Judges answers as others do: crates/eval/tests/answers.json, for the tests of crates/eval.

Numbers are judged by math-verify. Letters are judged by two published rules, written down below: simple-evals' patterns
(with those of its multilingual MMLU) and NeMo-Skills' (a box first, then "Answer: X"). Where moi judges otherwise, the row
says why and keeps the reference's verdict beside ours.
    python3 tests/reference/answers.py            writes the file; needs math-verify 0.9.0
    python3 tests/reference/answers.py --check    says whether it is what this script computes
"""

import json
import logging
import pathlib
import re
import sys

FILE = pathlib.Path(__file__).parents[2] / "crates/eval/tests/answers.json"
VERSION = "0.9.0"


def box(*inner):
    return ["\\boxed{%s}" % text for text in inner]


# Gold and answers on which math-verify and moi agree, right or wrong.
NUMBERS = [
    ("1234", box("1{,}234", "1\\!234", "1,234", "1,\\!234", "1234", "01234", "1234.00", "1, 234", "12,34", "1,23,4")),
    ("1234567", box("1{,}234{,}567", "1,234,567", "1234567", "1,234567", "1.234567 \\times 10^6")),
    ("1234.5", box("1,234.5", "1{,}234.5", "1234.50", "1234,5")),
    ("123456", box("123,456", "123{,}456", "123456", "123.456")),
    ("0.5", box("0,5", ".5", "0.5", "0.50", "\\frac12", "\\frac{1}{2}", "1/2", "50\\%", "50%", "2^{-1}", "1\\div 2")),
    ("0.5", box("1 - 1/2", "\\frac{-1}{-2}", "\\frac{.5}{1}", "\\frac{1.5}{3}", "1 \\over 2", "{1 \\over 2}", "5", "0.05")),
    ("-0.5", box("-.5", "-0.5", "-\\frac12", "-\\frac{1}{2}", "\\frac{-1}{2}", "\\frac{1}{-2}", "-1/2", "-\\left(\\frac12\\right)")),
    ("-0.5", box("0.5", "\\frac12", "-\\frac13", "-1\\frac{1}{2}", "+\\frac12")),
    ("5", box("5", " 5 ", "\n5\n", "\\,5\\,", "5\\quad", "05", "5.0", "+5", "--5", "(5)", "[5]", "{5}", "\\{5\\}", "\\left(5\\right)")),
    ("5", box("\\text{5}", "\\mathrm{5}", "\\mathbf{5}", "\\textbf{5}", "\\textit{5}", "\\mathit{5}", "\\mbox{5}", "\\Large 5", "\\bf 5")),
    ("5", box("\\displaystyle 5", "$5$", "\\(5\\)", "\\[5\\]", "\\$5", "$5", "\\$5.00", "\\text{\\$5}", "\"5\"", "'5'")),
    ("5", box("x=5", "x = 5", "x=y=5", "f(2)=5", "a_1=5", "A=5", "|x|=5", "n\\equiv 5", "x\\to 5", "2+3=5", "x=\\frac{10}{2}=5")),
    ("5", box("\\text{Total}=5", "x = 5\\text{ cm}", "\\approx 5", "x\\approx 5", "5:1", "2+3", "10/2", "\\sqrt{25}", "\\binom{5}{1}")),
    ("5", box("\\boxed{5}", "\\fbox{5}", "x = \\boxed{5}", "5\\text{ cm}^2", "5 \\text{cm}^2", "5\\text{ cm}^{2}", "5\\,\\mathrm{m/s}")),
    ("5", box("5\\,\\text{m/s}^2", "5\\text{ km/h}", "5 \\text{ units}", "5\\ \\text{units}", "5\\text{ }", "5\\;\\text{cm}", "5 cm", "5cm")),
    ("5", box("5 apples", "5\\text{ dollars}", "5\\mbox{ cm}", "5\\text{th}", "5th", "5 \\text{ cm.}", "5 \\mathrm{~cm}^{2}", "5 inches")),
    ("5", box("5\\,\\text{m}\\,\\text{s}^{-1}", "5\\ \\mathrm{kg\\cdot m^2}", "5 \\text{ P.M.}", "5 \\text{ (approx)}", "5 square units")),
    ("5", box("\\$5 \\text{ per hour}", "5 hours", "5 ways", "5\\text{ cm}^3\\text{ of water}", "5^\\circ", "5^{\\circ}", "5 degrees")),
    ("5", box("-5", "5x", "5\\pi", "\\pm 5", "x > 5", "x < 5", "x \\le 5", "x \\neq 5", "5, 6", "5,6", "5 or 6", "x=5, y=6", "5 and 6")),
    ("5", box("", "?", "five", "\\text{Five}", "N/A", "5:00", "5!", "2\\sqrt{5}", "\\sqrt{5}", "x^5", "10^5", "5^2", "1/5", "5/1/5", "x:5")),
    ("5", box("4", "6", "55", "15", "5.1", "0.5", "5\\%5", "\\frac{5}{2}", "\\frac{1}{5}", "5\\frac{1}{2}", "\\frac{2}{5}", "5 \\pmod 7")),
    ("5", box("\\text{None}", "5 \\text{ or } 6", "(5, 6)", "[5, 6]", "\\{5, 6\\}", "5 \\times 10", "\\log 5", "5i", "\\infty", "1,2,3")),
    ("0.75", box("\\frac{3}{4}", "\\frac34", "\\frac 3 4", "\\frac3{4}", "\\frac{3}4", "\\dfrac{3}{4}", "\\tfrac34", "\\cfrac{3}{4}", "3/4")),
    ("0.75", box("3 / 4", "\\displaystyle\\frac{3}{4}", "3:4", "75\\%", "+\\frac34", ".75", "\\frac{6}{8}", "4/3", "3", "\\frac{3}{4}\\pi")),
    ("-0.75", box("-\\frac34", "-3/4", "\\frac{-3}{4}", "\\frac{3}{-4}", "-\\dfrac{3}{4}", "- \\frac{3}{4}", "\\frac34", "3/4")),
    ("1.5", box("1\\frac{1}{2}", "1 \\frac{1}{2}", "1\\frac12", "1\\tfrac{1}{2}", "1\\,\\frac{1}{2}", "1 + \\frac{1}{2}", "1 1/2", "1,5")),
    ("1.5", box("\\frac{\\sqrt{9}}{2}", "\\sqrt{\\frac{9}{4}}", "\\frac{3}{2}", "3/2", "-1\\frac{1}{2}", "2\\frac{1}{2}", "\\frac{1}{2}")),
    ("-1.5", box("-1\\frac{1}{2}", "-\\frac32", "1\\frac{1}{2}", "-\\frac{1}{2}")),
    ("1200", box("1.2\\times10^{3}", "1.2 \\times 10^3", "1.2\\cdot 10^{3}", "12 \\times 10^2", "1.2\\times10^{4}", "1.2")),
    ("1000", box("10^{3}", "10^3", "1E3", "1,000", "1{,}000", "10^{2}", "3", "10", "999.9999999")),
    ("3", box("10^{3}", "2\\sqrt{3}", "\\sqrt{3}", "x^3", "\\sqrt[3]{27}", "|-3|", "\\sqrt{9}", "1+2", "(1+2)", "6/2", "\\frac{\\pi}{3}")),
    ("4", box("\\sqrt{16}", "\\sqrt 16", "\\sqrt16", "8^{2/3}", "(-2)^2", "-2^2", "2^2", "16^{1/2}", "\\sqrt[4]{256}", "\\sqrt4")),
    ("-4", box("-2^2", "(-2)^2", "-\\sqrt{16}", "-(4)", "(-4)", "−4")),
    ("1024", box("2^{10}", "2^10", "4^5", "2^{11}", "2*2^{9}")),
    ("512", box("2^{3^2}", "{2^3}^3", "8^3", "2^{9}")),
    ("120", box("5!", "\\binom{10}{3}", "5\\times 4\\times 3\\times 2", "2\\cdot 60", "4!")),
    ("8", box("2\\sqrt{16}", "\\sqrt{64}", "\\sqrt{4}\\sqrt{16}", "2\\sqrt{8}")),
    ("2.25", box("(3/2)^2", "\\left(\\frac{3}{2}\\right)^2", "1.5^2", "\\frac{9}{4}", "2\\frac14")),
    ("0.001", box("10^{-3}", "\\frac{1}{1000}", "0.001", "10^{3}", "\\frac{1}{10^3}")),
    ("10000000000000", box("10^{13}", "10{,}000{,}000{,}000{,}000", "10^{12}")),
    ("50", box("50\\%", "50%", "50 percent", "50\\text{ percent}", "50 \\%", "0.5", "5000\\%", "50")),
    ("0.125", box("12.5\\%", "\\frac{1}{8}", "1/8", "12.5")),
    ("50\\%", box("0.5", "50", "50\\%", "\\frac12", "5")),
    ("5000", box("50\\%", "5{,}000")),
    ("1/3", box("0.333333", "0.3333333333", "\\frac13", "0.3333", "0.333", "33.3333\\%", "\\frac{2}{6}", "\\frac13\\approx 0.33", "0.33")),
    ("0.33", box("1/3=0.33", "\\frac13\\approx 0.33", "0.33", "1/3")),
    ("3.14", box("x\\approx 3.14", "\\pi\\approx 3.14", "\\pi", "3.140")),
    ("1", box("0.999999999", "0.99999", "2^0", "1", "\\frac{7}{7}")),
    ("90", box("90^\\circ", "90^{\\circ}", "90^\\circ\\text{C}", "90^\\circ \\mathrm{C}", "90 degrees", "\\frac{\\pi}{2}")),
    ("101", box("101_2", "101_{2}")),
    ("7", ["The answer is 7.", "The final answer is 7", "the final answer is: $7$", "The final answer to the problem is 7 apples."]),
    ("7", ["Final answer: 7", "Final Answer: **7**", "Answer: 7 apples", "Answer: $7", "ANSWER: 7", "answer: 7\nI used 3 steps"]),
    ("7", ["**Answer**: 7", "**Answer:** $7$ dollars", "Answer: about 7", "Answer: x=7", "Answer:\n7", "Answer:\n\n7\n"]),
    ("7", ["Answer: 7, because 3+4=7 and 2*3=6", "The answer is 3 + 4 = 7", "The answer is 14/2", "The answer is 14/2 = 7"]),
    ("7", ["So we get 7.", "So $x=7$.", "So we get $\\frac{14}{2}$", "So we get $x = \\frac{14}{2} = 7$", "He has 7 apples and no pears."]),
    ("7", ["It costs $7.", "It costs $7.00", "Total: 7", "= 7", "x=7", "x=7.", "**7**", "7.", "7;", "So the answer is therefore 7"]),
    ("7", ["The answer would be 7", "The answer should be 7", "The answer must be 7", "My answer is 7", "Therefore the answer equals 7"]),
    ("7", ["7 is the answer.", "The answer of 3+4 is 7", "The answer to the riddle is 7", "There are 3 cats and 4 dogs, 7 animals"]),
    ("7", ["The number is 7 (seven).", "7 km", "7km", "7%", "Answer: 7 (not 8)", "Answer: 7 or so", "$7$", "\\(7\\)", "\\[x = 7\\]"]),
    ("7", ["$$x = 7$$", "#### 7", "#### 7.", "#### $7", "#### 7 apples", "We have 3. #### 7", "#### Step 1: go\n\\boxed{7}"]),
    ("7", ["Answer: 7\n\nQuestion: what is 3?\nLet me see: 5", "### Step 1\n#### 1. Compute\n\\boxed{7}", "#### Answer: 7"]),
    ("7", ["\\boxed{12}\nThe final answer is 7", "\\boxed{?}\nAnswer: 7", "\\boxed{}\nAnswer: 7", "\\boxed{}\nIt is 7", "It is $7.$"]),
    ("7", ["\\boxed{12}\nAnswer: 7", "\\boxed{12} and then 7", "7\n\\boxed{12}", "The final answer is 7\n\\boxed{12}", "7, no, 8"]),
    ("12", ["\\boxed{12}\nAnswer: 7", "The final answer is 7\n\\boxed{12}", "$\\boxed{12}$.", "\\[\\boxed{12}\\]", "\\boxed{12}. Then 6 and 7."]),
    ("12", ["$x = \\boxed{12}$", "\\boxed{12} cm", "\\boxed{12}\\%", "\\boxed 12", "\\boxed{5}\n\nIt is not right: the last step is wrong. So \\boxed{12}"]),
    ("12", ["\\boxed{11} or \\boxed{12}", "\\boxed{11} and \\boxed{12}", "$\\boxed{11}, \\boxed{12}$", "\\boxed{12", "\\boxed{11}, not 12"]),
    ("6", ["It is $\\boxed{5}$. Or rather $\\boxed{6}$.", "$2\\cdot\\boxed{6}$", "$x = -\\boxed{6}$"]),
    ("29", ["He pays $29.00", "He pays $29", "He pays 29 dollars", "He pays $29.01"]),
    ("72", ["72 clips, altogether", "She sold 72 clips.", "48+24 = 72", "48 in April and 24 in May: 72."]),
    ("70000", ["$70,000.", "His profit is $70,000.", "70000", "70,000 dollars", "$70.000"]),
    ("-3", ["The result is -3", "x = -3", "It is 3", "$-3$", "The answer is -3."]),
    ("18", ["#### 18", "The answer is 18", "#### 19"]),
    ("0.5", ["The answer is 1/2", "The answer is $1/2$", "The answer is \\frac{1}{2}", "It is .5", "It is 0.5", "It is 50%", "It is $\\dfrac{1}{2}$"]),
    ("-0.5", ["The answer is -1/2", "The answer is $-\\frac{1}{2}$", "It is -\\frac{1}{2}", "x = -0.5", "It is 0.5"]),
    ("1234567", ["It is 1,234,567", "It is 1234567", "It is 1 234 567", "$1,234,567", "It is $1{,}234{,}567$", "The answer is $1,234,567$"]),
    ("3", ["The answer is 2\\sqrt{3}", "The answer is $2\\sqrt{3}$", "It is 10^3", "It is $10^3$", "It is 2\\sqrt{3}", "It is $x+3$"]),
    ("3", ["1.3", "13", "-3", "A3", "$x_3$", "Answer: x^3", "The answer is 10^{3}", "Answer: 4 (not 3)", "Answer: 4\nBut 3 was close"]),
    ("3", ["3 or 4", "It is 4/3", "\\sqrt{3}", "\\boxed{5} 3", "thus $x = 2\\sqrt{3}$", "It is 2√3", "no number", ""]),
    ("1000", ["It is 10^3", "It is $10^{3}$", "It is 1,000"]),
]

# Where moi judges otherwise: why, our verdict, and the rows.
NUMBERS_OTHERWISE = [
    (
        "spaces and underscores between groups of three digits separate thousands; the reference adds or drops the groups",
        True,
        [
            ("1234", box("1\\,234", "1\\ 234", "1~234", "1 234", "1\u2009234", "1\u00a0234", "1_234", "1\\;234")),
            ("12345", box("12\\,345", "12 345")),
            ("1234567", ["1_234_567", "It is 1{,}234{,}567", "It is 1.234567 \\times 10^6", "\\$1,234,567.00"]),
        ],
    ),
    (
        "punctuation and spacing around a number are no part of it; the reference cannot read them",
        True,
        [("5", box("5.", "5 .", "5,", "~5~", "5\\\\", "5\\text{, }", "**5**", "`5`", "5~\\text{cm}", "\\approx5.0"))],
    ),
    (
        "a currency sign beside a number is no part of it",
        True,
        [("5", box("€5", "5€", "£5", "\\text{€}5", "5 USD", "USD 5")), ("7", ["It costs \\$7"])],
    ),
    (
        "1e3 is 1000; the reference reads e as Euler's number",
        True,
        [("1000", box("1e3")), ("1200", box("1.2e3")), ("0.001", box("1e-3")), ("1000", ["It is 1e3"])],
    ),
    (
        "a unit is no part of the number, also where the reference reads it as variables",
        True,
        [
            ("5", box("5 m^2", "5 in^2", "5 dollars", "5 people", "5 km/h", "5 years old", "5 (approx)", "\\text{5 apples}")),
            ("5", box("5\\operatorname{cm}", "\\mathbf{5}\\text{ cm}", "5^{\\text{th}}", "5^{th}", "5^\\circ C")),
            ("90", box("90°", "90\\degree")),
        ],
    ),
    (
        "a label before the number, or a font around it, is no part of it",
        True,
        [
            ("5", box("\\text{The answer is }5", "\\text{Answer: }5", "\\mathbf{x=5}", "\\color{red}5", "\\textcolor{red}{5}")),
            ("5", box("\\underline{5}", "\\emph{5}", "\\bm{5}", "\\boldsymbol{5}", "\\mathsf{5}")),
        ],
    ),
    (
        "a percentage is itself as well as its hundredth, also where it is no whole number or is spaced",
        True,
        [
            ("12.5", box("12.5\\%")),
            ("12.5\\%", box("12.5")),
            ("33.3", box("33.3\\%")),
            ("50", box("50\\,\\%")),
            ("0.5", box("50\\text{ percent}", "50\\,\\%")),
        ],
    ),
    ("a space does not take a mixed number apart", True, [("1.5", box("1~\\frac{1}{2}"))]),
    (
        "two quantities are no single number; the reference takes the first",
        False,
        [("5", box("5\\text{ apples and }6\\text{ pears}", "5\\text{ feet } 6\\text{ inches}"))],
    ),
    (
        "only roots that are fractions are computed, and no fraction equals another root",
        False,
        [("1.414214", box("\\sqrt{2}", "\\sqrt 2")), ("2", box("\\sqrt{2}\\sqrt{2}", "\\sqrt{2}^2"))],
    ),
    ("logarithms and rounding are not computed", False, [("5", box("\\log_2 32", "\\lfloor 5.5 \\rfloor"))]),
    (
        "the first #### counts, as in sglang: a model that goes on asks questions of its own",
        True,
        [("18", ["#### 18\n\nQuestion: There are 5", "#### 18\nQ: 1+1?\nA: 2\n#### 2", "####18\n5"])],
    ),
    ("the first #### counts", False, [("5", ["#### 18\n\nQuestion: There are 5", "#### 18\n5"])]),
    (
        "the last box is the answer unless two are joined by a word; the reference joins boxes that are near",
        True,
        [
            ("42", ["first \\boxed{41}, no: \\boxed{42}"]),
            ("6", ["\\boxed{5} is wrong, it should be \\boxed{6}"]),
        ],
    ),
    (
        "a statement behind a box that holds no number is the answer",
        True,
        [("7", ["\\boxed{\\text{see below}}\nAnswer: 7", "\\boxed{2\\sqrt{3}}\nAnswer: 7", "\\boxed{x+1}\n**Answer: 7**"])],
    ),
    (
        "<answer> and boxes outside of formulas mark an answer too",
        True,
        [
            ("7", ["<answer>7</answer>", "<answer>7</answer> 8", "<answer>$7$</answer> 8"]),
            ("5", ["\\boxed {5}", "\\boxed5", "\\fbox{5}"]),
        ],
    ),
    (
        "the last number may have any sign, bracket or quote before it",
        True,
        [
            ("7", ["(7)", "[7]", "\"7\"", "It is +7", "So $7$ and not $x$"]),
            ("-3", ["x = −3", "The answer is −3"]),
            ("-0.5", ["It is -.5", "It is −0.5"]),
            ("0.5", ["It is \\frac12"]),
        ],
    ),
    ("answers are also stated in other languages", True, [("7", ["答案：7", "答案是7"])]),
    (
        "thoughts are no part of an answer",
        True,
        [
            ("7", ["<think>\\boxed{9}</think>It is 7.", "[THINK]\\boxed{9}[/THINK]It is 7.", "<thought>\\boxed{9}</thought>It is 7."]),
            ("7", ["<seed:think>\\boxed{9}</seed:think>It is 7.", "<reasoning>\\boxed{9}</reasoning>It is 7."]),
            ("7", ["<|START_THINKING|>\\boxed{9}<|END_THINKING|>It is 7.", "<thinking>\\boxed{9}</thinking>It is 7."]),
        ],
    ),
]

CITIES = ["London", "Paris", "Rome", "Berlin"]

# Answers to which one of the two published rules gives the same letter as moi, or both give none.
LETTERS = [
    ("B", box("B", "\\text{B}", "(B)", "\\textbf{B}", "\\mathrm{B}", "\\mathbf{B}", "\\textbf{(B)}", "B)", "B.", " B ", "\\boxed{B}")),
    ("B", box("B) Paris", "B. Paris", "B: Paris", "\\text{B. Paris}", "\\text{(B) Paris}", "\\text{B) Paris}", "\\textbf{(B) }Paris")),
    ("B", box("Option B", "\\text{Option B}", "\\text{B}\\ \\text{Paris}", "\\textbf{(B)}\\ 12", "\\text{(B)}", "(B) Paris")),
    ("B", ["$\\boxed{B}$", "$$\\boxed{B}$$", "\\[\\boxed{B}\\]", "\\boxed{A}\nWait, no.\n\\boxed{B}", "So \\boxed{B}, not A."]),
    ("B", ["Answer: B", "Answer: **B**", "**Answer: B**", "**Answer:** B", "**Answer**: B", "ANSWER: B", "answer: b", "Answer:B"]),
    ("B", ["Answer : B", "Answer:\nB", "Answer: B) Paris", "Answer: B. Paris", "Answer: B, as Paris is it"]),
    ("B", ["Answer: $B$", "Answer: B.", "Answer: B!", "Answer: *B*", "Final answer: B", "Correct answer: B", "My answer: B"]),
    ("B", ["Final Answer: **B**", "### Answer: B", "Answer: A\nWait.\nAnswer: B", "Option A is wrong.\nAnswer: B", "Answer: \\boxed{B}"]),
    ("B", ["Answer: $\\boxed{B}$", "Answer: $\\text{B}$", "Answer: \\(B\\)", "final answer is $\\boxed{B}$", "The final answer is $\\boxed{\\text{B}}$."]),
    ("B", ["答案：B", "答案: B", "정답: B", "답변: B", "답: B", "Antwort: B", "Respuesta: B", "Risposta: B", "Réponse : B", "Resposta: B"]),
    ("B", ["Jawaban: B", "Jibu: B", "Idahun: B", "Àdáhùn: B", "回答：B", "答え: B", "答え：B", "答复：B", "答曰：B", "答：B", "解答: B"]),
    ("B", ["उत्तर: B", "উত্তর: B", "উত্তর: ব", "উত্তরঃ ব", "الإجابة: ب", "الجواب: ب", "إجابة: ب", "الإجابة الصحيحة هي: ب", "الإجابة هي: B"]),
    ("B", ["Answer: Ｂ", "答案：Ｂ", "الإجابة النهائية: ب", "الإجابة الصحيحة: B", "الجواب النهائي: B"]),
    ("A", ["উত্তর: অ", "الإجابة: أ", "Answer: A because it is", "Answer: A", "\\boxed{A}"]),
    ("C", ["উত্তর: ড", "الإجابة: ج", "Answer: C", "\\boxed{C}"]),
    ("D", ["উত্তর: ঢ", "الإجابة: د", "Answer: D", "\\boxed{D}", "\\boxed{\\langle H\\rangle \\ll 1}\n\n**Answer: D**"]),
    (None, ["", "A good question. I think so.", "both", "\\boxed{12}", "\\boxed{?}", "Answer: none of them", "The answer is a prime number"]),
    (None, ["The answer is a city.", "The answer is not clear", "I think", "answer: it is", "unclear", "\\boxed{}"]),
]

# Where neither of the two has moi's letter.
LETTERS_OTHERWISE = [
    (
        "the explicit statement counts, not a letter of a formula in a box (NVIDIA-NeMo/Skills#1511)",
        [
            ("D", ["\\boxed{\\langle H\\rangle \\ll \\Delta E}\n\n**Answer: D**", "\\boxed{E = mc^2}\nThe answer is D"]),
            (None, box("E = mc^2", "AB", "A, B", "A and B", "\\frac{A}{B}", "\\langle H\\rangle", "A + B")),
        ],
    ),
    (
        "statements have other words than these two rules know",
        [
            ("B", ["The answer is B.", "The answer is (B), as A is wrong.", "The correct option is B", "The answer is option B", "Answer is B"]),
            ("B", ["Answer B", "Answer - B", "answer = B", "The correct answer is B", "The correct answer is: B", "The right answer is B"]),
            ("B", ["The best answer is B", "The best choice is B", "So the answer must be B", "So the answer should be B.", "the answer is (b)"]),
            ("B", ["Therefore, the answer is B because Paris is it", "The answer to the question is B", "The answer is clearly B"]),
            ("B", ["Thus (B) is correct", "B is correct", "B is the correct answer", "Option B is correct", "Option B is the right choice."]),
            ("B", ["I choose B", "I would go with B.", "My final choice is B", "The correct choice is (B).", "The correct letter is B"]),
            ("B", ["Answer: (B) Paris", "Answer: [B]", "Answer: <B>", "Answer: \"B\"", "Answer: 'B'", "Answer: “B”", "Answer: `B`"]),
            ("B", ["Answer: Option B", "Answer: option (B)", "Answer: choice B", "Answer: \\textbf{B}", "Answer: \\text{B}", "答案是B"]),
            ("B", ["La respuesta correcta es B", "The answer is **b**", "answer is b.", "so the correct option is (B) Paris", "Ответ: B"]),
            ("B", ["### Answer\nB", "Answer:\n\n**B**", "Answer: __B__", "Answer：B", "The answer is therefore B", "Let's see: A) London is not it.\nThe answer is B"]),
        ],
    ),
    (
        "a small letter in a box is the choice, and a box may name the choice's text or stand without braces",
        [("B", box("b", "(b)", "\\text{b) Paris}", "Paris", "\\text{Paris}", "\\text{paris}") + ["\\fbox{B}", "\\boxed B"])],
    ),
    (
        "<answer> marks an answer",
        [("B", ["<answer>B</answer>", "<answer>B) Paris</answer>", "<answer>(B)</answer>", "<answer>\nB\n</answer>"])],
    ),
    (
        "the last explicit statement counts, be it a box or not",
        [("B", ["\\boxed{A}\nThe final answer is B", "\\boxed{A}\nSo the correct choice is B"])],
    ),
    (
        "a letter that stands alone counts where nothing is stated",
        [
            ("B", ["B) Paris", "(B)", "**B**", "**B.** Paris", "**B**. Paris", "**B) Paris**", "Option B", "Choice B", "option b", "- B", "B"]),
            ("B", ["b", "B.", "B)", "`B`", "\"B\"", "*B*", "(b)", "[B]", "> B", "A is tempting.\nB", "Not (A) but (B)", "Hence, option B."]),
            ("B", ["A) London\nB) Paris\nC) Rome\nD) Berlin\n\nB) Paris", "B. Paris", "It is this:\n\n**(B)** Paris"]),
            (None, ["A) London\nB) Paris\nC) Rome\nD) Berlin", "Option A is wrong, so it must be another", "A nice city"]),
        ],
    ),
    (
        "a word is no letter",
        [(None, ["Answer: I do not know", "Answer: a city", "The answer is A nice city", "Answer: both", "Answer: because", "Answer: don't know"])],
    ),
    (
        "thoughts are no part of an answer",
        [("B", ["[THINK]\\boxed{A}[/THINK]Answer: B", "<think>Answer: A</think>B", "<reasoning>Answer: A</reasoning>\nThe answer is B"])],
    ),
]

# simple-evals, common.py: what is taken away before its patterns are searched for, the patterns and the letters.
REMOVED = ["**", "$\\boxed{", "}$", "\\$", "$\\text{", "$", "\\mathrm{", "\\{", "\\text", "\\(", "\\mathbf{", "{", "\\boxed"]
STATEMENTS = (
    r"Answer\s*:|উত্তর\s*:|उत्तर\s*:|উত্তরঃ|Antwort\s*:|답변\s*:|정답\s*:|답\s*:|答案\s*：|答案\s*:|答\s*：|答\s*:|答复\s*：|答曰\s*："
    r"|الإجابة:|الجواب:|إجابة:|الإجابة النهائية:|الإجابة الصحيحة:|الإجابة الصحيحة هي:|الإجابة هي:|الجواب النهائي:|Respuesta\s*:"
    r"|Risposta\s*:|答え\s*:|答え\s*：|回答\s*:|回答\s*：|解答\s*:|Jawaban\s*:|Réponse\s*:|Resposta\s*:|Jibu\s*:|Idahun\s*:"
    r"|Ìdáhùn\s*:|Idáhùn\s*:|Àmọ̀nà\s*:|Àdáhùn\s*:|Ànúgọ\s*:|Àṣàyàn\s*:"
)
FOREIGN = dict(zip("أبجدঅবডঢＡＢＣＤ", "ABCDABCDABCD"))


def simple_evals(text):
    """The letter behind the first statement."""
    for removed in REMOVED:
        text = text.replace(removed, "")
    found = re.search(r"(?i)(?:" + STATEMENTS + r")[ \t]*([A-D]|[أ-د]|[অবডঢＡＢＣＤ])", text)
    return found and FOREIGN.get(found[1], found[1].upper())


def nemo_skills(text):
    """The letter in the last box, else the last "Answer: X"."""
    at = text.rfind("\\boxed{")
    if at >= 0:
        start, depth = at + len("\\boxed{"), 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                inner = text[start:end]
                letters = re.findall(r"\b[A-J]\b(?!.*\b[A-J]\b)", inner, re.DOTALL)
                return letters[-1] if len(inner) != 1 and letters else inner
    found = re.findall(r"(?i)[\*\_]{0,2}Answer[\*\_]{0,2}\s*:[\s\*\_]{0,2}\s*([A-Z])(?![a-zA-Z0-9])", text)
    return found[-1].upper() if found else None


def is_letter(found):
    return found if found and re.fullmatch("[A-Z]", found) else None


def math_verify_judges(gold, text):
    from math_verify import parse, verify

    return bool(verify(parse(f"${gold}$"), parse(text)))


def numbers(wrong):
    rows = []
    for gold, texts in NUMBERS:
        for text in texts:
            rows.append({"gold": gold, "text": text, "correct": math_verify_judges(gold, text)})
    for why, correct, golds in NUMBERS_OTHERWISE:
        for gold, texts in golds:
            for text in texts:
                reference = math_verify_judges(gold, text)
                if reference == correct:
                    wrong.append(f"math-verify judges {gold}: {text!r} as moi does")
                rows.append({"gold": gold, "text": text, "correct": correct, "reference": reference, "why": why})
    return rows


def letters(wrong):
    rows = []
    for letter, texts in LETTERS:
        for text in texts:
            rules = {is_letter(simple_evals(text)), is_letter(nemo_skills(text))}
            if letter not in rules or (letter is None and rules != {None}):
                wrong.append(f"neither rule gives {letter} for {text!r}: {rules}")
            rows.append({"choices": CITIES, "text": text, "found": letter})
    for why, groups in LETTERS_OTHERWISE:
        for letter, texts in groups:
            for text in texts:
                reference = [is_letter(simple_evals(text)), is_letter(nemo_skills(text))]
                rows.append({"choices": CITIES, "text": text, "found": letter, "reference": reference, "why": why})
    return rows


def computed():
    wrong = []
    lists = [",\n".join(json.dumps(row) for row in rows) for rows in (numbers(wrong), letters(wrong))]
    if wrong:
        sys.exit("\n".join(["rows in the wrong list:", *wrong]))
    head = f'"about": "tests/reference/answers.py, math-verify {VERSION}"'
    return f'{{{head},\n"numbers": [\n{lists[0]}\n],\n"letters": [\n{lists[1]}\n]}}\n'


def main():
    logging.disable(logging.CRITICAL)
    try:
        import importlib.metadata

        version = importlib.metadata.version("math-verify")
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"math-verify is not installed: pip install math-verify=={VERSION} antlr4-python3-runtime==4.13.2")
    if version != VERSION:
        sys.exit(f"math-verify is {version}, the file was made with {VERSION}")
    text = computed()
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text, encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != text:
        sys.exit(f"{FILE} is not what this script computes")


if __name__ == "__main__":
    main()
