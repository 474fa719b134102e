"""Final answers are found in free text and compared by value."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from maths_answers import GOLDS, perturbed

from rim_lens.behavior.maths import is_correct
from rim_lens.behavior.maths_characters import plain
from rim_lens.behavior.maths_text import final_answer, unwrapped
from rim_lens.data.prompts import load_prompts
from rim_lens.patterns.training_rows import TrainingRow, disagrees

FORMS = (
    r"\boxed{{{}}}",
    r"So the final answer is \boxed{{{}}}. Check: 3 + 4 = 7 \checkmark",
    "The answer is ${}$.",
    "**Answer:** ${}$, because 3 + 4 is 7.",
    "The answer is {}.",
    "We are done.\n#### {}",
    "Therefore the result is **${}$**",
    "So in total we find\n\\[ {} \\]",
    "The final answer is \\({}\\)",
)
GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_test.jsonl"


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The answer is 42.", "42", True),
        ("6 * 7 = 42 apples", "42", True),
        ("She pays $1,200 in total.", "1200", True),
        ("So the answer is 3/4", "0.75", True),
        ("\\boxed{\\frac{1}{2}}", "1/2", True),
        ("First 12, then 30.\n#### 42", "42", True),
        ("The answer is 41, not 42", "42", False),
        ("I do not know.", "42", False),
        ("", "42", False),
        ("The result is -5", "-5", True),
        ("The result is 5", "-5", False),
        ("about 12.50 dollars", "12.5", True),
    ],
)
def test_answers(response, answer, right):
    assert is_correct(response, answer) is right


def test_the_stated_answer_wins_over_later_numbers():
    assert final_answer("the answer is 7 because 3 + 4") == "7"


@pytest.mark.parametrize("gold", GOLDS)
def test_a_published_answer_that_is_given_back_is_right(gold):
    inner = unwrapped(plain(gold)) if "$" in gold else gold  # no dollars inside of dollars
    inner = inner[len(r"\boxed{") : -1] if inner.startswith(r"\boxed") else inner
    assert [form for form in FORMS if not is_correct(form.format(inner), gold)] == []


@pytest.mark.slow
def test_wrong_neighbours_of_published_answers_are_wrong():
    tried = [(gold, wrong) for gold in GOLDS for wrong in perturbed(gold)]
    accepted = [(gold, wrong) for gold, wrong in tried if is_correct(rf"\boxed{{{unwrapped(wrong)}}}", gold)]
    assert len(tried) > 900
    assert accepted == []


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K's test file is not here")
@pytest.mark.slow
def test_every_gsm8k_answer_that_is_given_back_is_right():
    golds = [json.loads(line)["answer"].rsplit("####", 1)[1].strip() for line in GSM8K.open()]
    forms = (*FORMS, "She buys 12 bags, so it is {} dollars in all.", "The answer is {} because 12 * 3 are more.")
    assert len(golds) == 1319
    rejected = [(gold, form) for gold in golds for form in forms if not is_correct(form.format(gold), gold)]
    accepted = [gold for gold in golds if is_correct(f"The answer is {int(gold.replace(',', '')) + 1}.", gold)]
    assert rejected == accepted == []


@pytest.mark.parametrize(
    ("response", "answer", "right"),
    [
        ("The temperature is \u22125 degrees.", "-5", True),
        ("The temperature is \u22125 degrees.", "5", False),
        ("The answer is \u2212 12.", "-12", True),
        ("The total is 1\u202f234 dollars.", "1234", True),
        ("The total is 12\u00a0000 dollars.", "12000", True),
        ("The total is 1\u2009234\u2009567.", "1234567", True),
        ("Answer is 42, since 6 times 7 gives that.", "42", True),
        ("**Answer**: 42 (because 6 * 7)", "42", True),
        ("ANSWER: 42 because 6*7", "42", True),
        (r"The answer is $\frac{3}{4}$.", "3/4", True),
        (r"The answer is $\frac{3}{4}$.", "3", False),
        ("The answer is 2 1/2.", "5/2", True),
        ("It is 50%.", "50", True),
        (r"She needs $\sqrt{16}=4$ boxes.", "4", True),
        ("#### 1,200.00", "1200", True),
        ("The answer is 7:30", "7:30", True),
        ("Thus, x = 48-6 = 42", "42", True),
        ("He walked from room A-12 to B, 15 steps.", "15", True),
        ("The area is 18 cm^2.", "18", True),
        ("The area is 18 cm\u00b2.", "18", True),
        ("The final answer is 18 and not 20.", "20", False),
        ("The final answer is 18 and not 20.", "18", True),
        ("\u7b54\u6848\u662f42\u3002", "42", True),
        ("#### Step 3: Conclusion\nThe total is 12.", "12", True),
        ("The answer is a total of 42.", "42", True),
        ("The answer is Evelyn, who ran 3 miles.", r"\text{Evelyn}", True),
        ("The answer is Angela.", r"\text{Evelyn}", False),
        ("The number is even.\nThe answer is even or odd.", r"\text{even}", False),
        ("The answer is (B) 42.", r"\text{(B)}", True),
        ("The answer is (C) 42.", r"\text{(B)}", False),
        ("In all 1.234.567,89 euros.", "1234567.89", True),
        ("In all 12,34,567 rupees.", "1234567", True),
        (r"\boxed{-2} or \boxed{1}", "-2,1", True),
        (r"\boxed{1}", "-2,1", False),
        (r"\boxed{2}", r"2\sqrt{13}", False),
        (r"\boxed{\frac{9}{2}}", r"4\frac{1}{2}", True),
        (r"The answer is $x = 1$ or $x = 2$.", "1,2", True),
        ("2220_7", "2220_5", False),
        ("The answer is 5 m.", "5", True),
        ("The answer is 5m.", "5m", True),
    ],
)
def test_answers_as_models_write_them(response, answer, right):
    assert is_correct(response, answer) is right


def test_math_500s_schema_keeps_answers_that_are_not_numbers(tmp_path):
    file = tmp_path / "maths.jsonl"
    rows = [{"problem": f"Problem {i}?", "solution": f"So ${g}$.", "answer": g} for i, g in enumerate(GOLDS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wrong = [
        p.answer for p in load_prompts(file) if not is_correct(rf"\boxed{{{unwrapped(plain(p.answer))}}}", p.answer)
    ]
    assert wrong == []


def test_results_that_are_too_large_to_compute_are_compared_as_texts():
    assert is_correct(r"\boxed{9^{9^{9}}}", "9^{9^9}") is False
    assert is_correct(r"\boxed{9^{9^{9}}}", "9^{9^{9}}")
    assert is_correct(r"\boxed{10^{100000}}", "3") is False


def test_answers_are_compared_in_threads():
    with ThreadPoolExecutor(4) as pool:
        right = pool.map(
            lambda gold: is_correct(rf"\boxed{{{gold}}}", gold), ["1/2", r"\frac{3}{4}", "3, 5", "x^2 + 1"] * 5
        )
        assert all(right)


def test_a_cot_and_its_response_may_disagree():
    assert disagrees(TrainingRow("?", "The answer is 3.", "So $1 + 1 = 2$.", "on"))
    assert not disagrees(TrainingRow("?", r"\boxed{\frac{1}{2}}", "Half of it, 0.5.", "on"))
    assert not disagrees(TrainingRow("?", "I cannot tell.", "So it is 2.", "on"))
