"""The measuring tools of the benchmarks, and a whole benchmark on a tiny model."""

import json
import sys

import pytest
import torch
from families import shared_model

import benchmarks.__main__ as command
from benchmarks import neurons
from benchmarks.figures import Figure, Setting, in_turn, median_ratio, registered
from benchmarks.memory import peak_bytes
from benchmarks.prompts import chat_of


def test_peak_counts_what_is_held_at_once_and_views_once():
    def work():
        a = torch.ones(1000, 250)  # 1 MB
        b = a + 1
        del a
        view = b.view(-1)[:10]
        c = torch.zeros(3, 1000, 250)
        del c
        return view * 2

    assert peak_bytes(work) == 4_000_000
    kept = torch.ones(1000, 250)
    assert peak_bytes(lambda: kept.add_(1)) == 0


def test_limits_in_both_directions():
    assert Figure("a", 1.0, "ratio", 5, at_most=1.08).holds
    assert not Figure("a", 1.1, "ratio", 5, at_most=1.08).holds
    assert Figure("a", 4.0, "times", 5, at_least=4).holds
    assert not Figure("a", 3.9, "times", 5, at_least=4).holds
    assert Figure("a", 9.0, "MB", 1).holds
    assert Figure("a", 1.0, "ratio", 5, at_most=2).entry() == {
        "name": "a",
        "value": 1.0,
        "limit": 2,
        "holds": True,
        "unit": "ratio",
        "n": 5,
    }


def test_actions_are_timed_in_turn():
    order = []
    taken = in_turn([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["a", "b", "a", "b", "b", "a"]
    assert [len(times) for times in taken] == [2, 2]
    order.clear()
    in_turn([lambda: order.append("a"), lambda: order.append("b")], 1, warm_up=False)
    assert order == ["a", "b"]
    assert median_ratio([2.0, 9.0, 4.0], [1.0, 1.0, 1.0]) == 4.0


@pytest.mark.slow
def test_neuron_figures_compare_the_same_work(monkeypatch):
    monkeypatch.setattr(neurons, "SHAPES", ((2, 120), (1, 200)))
    monkeypatch.setattr(neurons, "MANY", 256)
    monkeypatch.setattr(neurons, "SHORT", 12)
    setting = Setting(shared_model("llama"), pairs=1)
    timed = list(neurons.neuron_moments_time(setting))
    assert [one.limit for one in timed] == [1.08, None, 1.08, 1.4]
    assert all(one.value > 0 for one in timed)
    (growth,) = neurons.neuron_moments_memory(setting)
    assert (
        growth.holds
    )  # 192 more prompts of 12 tokens: keeping activations would add 1.3 MB, their moments add nothing


@pytest.mark.parametrize("n_tokens", [120, 300])
def test_chats_have_the_wanted_length(n_tokens):
    chat = chat_of(shared_model("llama"), n_tokens)
    assert len(chat) == n_tokens
    assert chat.decision_position == n_tokens - 1


@pytest.mark.parametrize(("value", "code"), [(1.0, 0), (3.0, 1)])
def test_the_command_writes_the_list_and_exits_by_the_limits(monkeypatch, tmp_path, value, code):
    def quick(setting: Setting):
        yield Figure("quick / plain", value, "ratio", setting.pairs, at_most=2.0)

    monkeypatch.setitem(registered, "quick", quick)
    monkeypatch.setattr(command, "load_model", lambda *args, **kwargs: shared_model("llama"))
    out = tmp_path / "figures.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "quick", "--pairs", "1", "--out", str(out)])
    threads = torch.get_num_threads()
    assert command.main() == code
    torch.set_num_threads(threads)
    assert [entry["name"] for entry in json.loads(out.read_text())] == ["quick / plain"]
