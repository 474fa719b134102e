"""Requests that wait at the same time are answered together, each gets its own answer, and none waits for ever."""

import threading

import anyio

from rim_lens.evals.batching import Batcher


class Recorded:
    """Answers with the question's double, keeps the groups, and raises what it is told to."""

    def __init__(self, wrong=None):
        self.groups, self.wrong = [], wrong

    def __call__(self, questions):
        self.groups.append(list(questions))
        if self.wrong == "all":
            raise ValueError("no answer to any")
        return [ValueError("no answer") if question == self.wrong else 2 * question for question in questions]


async def all_at_once(batcher, questions):
    """Answers, or the errors in their place, to questions that are asked together."""
    said = {}

    async def ask(question):
        try:
            said[question] = await batcher(question)
        except ValueError as error:
            said[question] = str(error)

    async with anyio.create_task_group() as group:
        for question in questions:
            group.start_soon(ask, question)
    return said


def test_questions_are_answered_in_groups_of_one_kind_and_at_most_the_size():
    answer = Recorded()
    said = anyio.run(all_at_once, Batcher(answer, lambda question: question % 2, 3), range(10))
    assert said == {question: 2 * question for question in range(10)}
    assert sorted(map(len, answer.groups)) == [2, 2, 3, 3]
    assert all(len({question % 2 for question in group}) == 1 for group in answer.groups)


def test_an_error_reaches_whoever_asked_that_question():
    batcher = Batcher(Recorded(wrong=3), lambda question: 0, 8)
    assert anyio.run(all_at_once, batcher, [1, 3, 5]) == {1: 2, 3: "no answer", 5: 10}
    lost = Batcher(Recorded(wrong="all"), lambda question: 0, 8)
    assert set(anyio.run(all_at_once, lost, [1, 3]).values()) == {"no answer to any"}


def test_one_batcher_serves_one_event_loop_after_another():
    answer = Recorded()
    batcher = Batcher(answer, lambda question: 0, 8)
    for _ in range(2):
        assert anyio.run(all_at_once, batcher, [1, 2]) == {1: 2, 2: 4}
    assert list(map(len, answer.groups)) == [2, 2]


def test_who_is_cancelled_leaves_nobody_waiting():
    begun, go_on = threading.Event(), threading.Event()

    def answer(questions):
        begun.set()
        go_on.wait(30)
        return [2 * question for question in questions]

    batcher = Batcher(answer, lambda question: 0, 2)

    async def leader_gives_up():
        said = {}

        async def ask(question, scope):
            with scope:
                said[question] = await batcher(question)

        scopes = [anyio.CancelScope() for _ in range(4)]
        async with anyio.create_task_group() as group:
            for question, scope in enumerate(scopes):
                group.start_soon(ask, question, scope)
            await anyio.to_thread.run_sync(begun.wait)
            scopes[0].cancel()  # leads the group that is being answered
            scopes[3].cancel()  # waits for its turn
            await anyio.sleep(0)
            go_on.set()
        return said

    said = anyio.run(leader_gives_up)
    assert {question: said[question] for question in (1, 2)} == {1: 2, 2: 4}
    assert 3 not in said
