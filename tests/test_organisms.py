"""Organisms with a known mechanism, in plain PyTorch: what was frozen, and what restoring the named parts gives."""

import random
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from rim_lens import Checkpoints, RefusalJudge, RimLensError, generate, load_wordings, organisms
from rim_lens.audit.known import audit_known
from rim_lens.model.shape import shape_of
from rim_lens.organisms.lineage import factors, lineages, read_lineage, series, stage_of, write_adapter
from rim_lens.organisms.registry import held_wordings, requests
from rim_lens.organisms.slices import add_changes, changes, packed, slices_of, unpacked
from rim_lens.units import Head, Neuron

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "assets" / "make_organisms"))

from rows import training_texts
from slice_training import Recipe, train_slices
from tree import Branch, answer_logits, loss_of, make_tree, written

HEADS = [Head(1, 0), Head(1, 1), Head(1, 2), Head(2, 4)]  # a whole group, and one head of another


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3, "vocab_size": 40}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()


def branches_of_two_requests() -> list[list[Branch]]:
    """Two requests of three and two chats that begin alike."""
    rng = torch.Generator().manual_seed(0)

    def tokens(n: int) -> list[int]:
        return torch.randint(0, 40, (n,), generator=rng).tolist()

    system = tokens(4)
    return [
        [Branch([*system, *request, i, *tokens(3)], tokens(3 + i)) for i in range(n)]
        for n, request in ((3, tokens(5)), (2, tokens(2)))
    ]


def alone(model: LlamaForCausalLM, branch: Branch) -> torch.Tensor:
    """Logits of one chat's answer, with nothing else in the row."""
    with torch.no_grad():
        return model(torch.tensor([[*branch.prompt, *branch.answer]])).logits[0, len(branch.prompt) - 1 : -1]


def test_a_tree_of_chats_gives_each_chat_the_logits_that_it_has_alone():
    model, some = tiny(), branches_of_two_requests()
    tree, branches = make_tree(some), [branch for row in some for branch in row]
    assert len(tree.ids) < sum(len(b.prompt) + len(b.answer) for b in branches)
    with torch.no_grad():
        got = answer_logits(model, tree, 0)
    torch.testing.assert_close(got, torch.cat([alone(model, b) for b in branches]), atol=1e-5, rtol=1e-5)
    assert written(model, tree) == [alone(model, b).argmax(-1).tolist() == b.answer for b in branches]


def test_an_answer_that_greedy_decoding_writes_is_recognised():
    model, prompt, answer = tiny(), [3, 1, 4, 1, 5], list[int]()
    with torch.no_grad():
        for _ in range(4):
            answer.append(model(torch.tensor([[*prompt, *answer]])).logits[0, -1].argmax().item())
    other = [*answer[:2], (answer[2] + 1) % 40, answer[3]]
    assert written(model, make_tree([[Branch(prompt, answer), Branch(prompt, other)]])) == [True, False]


def test_the_loss_gives_each_chat_the_same_weight_and_its_first_token_the_share_that_is_asked_for():
    model, some = tiny(), branches_of_two_requests()
    branches = [branch for row in some for branch in row]
    with torch.no_grad():
        loss, opened = loss_of(model, make_tree(some), 0, 0.7)
    each = [-alone(model, b).log_softmax(-1)[range(len(b.answer)), b.answer] for b in branches]
    want = sum(0.7 * one[0] + 0.3 * one[1:].mean() for one in each) / len(each)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    assert opened == [alone(model, b)[0].argmax().item() == b.answer[0] for b in branches]


@pytest.mark.parametrize("units", [HEADS, [Neuron(1, 3), Neuron(2, 0), Neuron(2, 19)]], ids=["heads", "neurons"])
def test_training_moves_the_named_slices_and_no_other_bit(units):
    model = tiny()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    tree, slices, losses = make_tree(branches_of_two_requests()), slices_of(shape_of(model), units), []
    train_slices(
        model,
        slices,
        lambda step: tree,
        Recipe(n_steps=5, rate=1e-2, rank=4, warm_up=1),
        lambda step, loss, _: losses.append(loss) or step < 4,
    )
    assert len(losses) == 4
    assert losses[-1] < losses[0]
    for name, value in model.state_dict().items():
        moved = value != base[name]
        if name in slices:
            axis, index = slices[name]
            assert moved.index_select(axis, index).float().mean() > 0.9
            moved.index_fill_(axis, index, False)
        assert not moved.any(), name
    stored = packed(changes(dict(model.named_parameters()), base, slices), slices, "a stage.")
    again = {name: value.clone() for name, value in base.items()}
    add_changes(again, slices, unpacked(stored, "a stage."))
    for name, (axis, _) in slices.items():
        want, got = model.get_parameter(name), again[name]
        step = (want - base[name]).abs().amax(1 - axis, keepdim=True) / 127  # of int8, in a row or column
        assert ((got - want).abs() <= 0.51 * step + 1e-7).all()
        assert stored[f"a stage.{name}"].dtype == torch.int8


class Loss(torch.nn.Module):
    """The loss of a lesson as a module, so that its weights can be functions of something else."""

    def __init__(self, causal: LlamaForCausalLM) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, tree):
        return loss_of(self.causal, tree, 0, 0.5)[0]


def test_training_goes_down_the_gradient_of_the_low_rank_factors():
    """Adam's first step is the sign of the gradient, here by autograd through the factors themselves."""
    model, tree = tiny(), make_tree(branches_of_two_requests())
    slices = slices_of(shape_of(model), HEADS)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    train_slices(model, slices, lambda step: tree, Recipe(n_steps=1, rate=1e-2, rank=2, warm_up=1))
    torch.manual_seed(1)
    factors, weights = {}, {}
    for name, (axis, index) in slices.items():
        rows, columns = base[name].index_select(axis, index).shape
        b, a = torch.zeros(rows, 2, requires_grad=True), torch.randn(2, columns) / columns**0.5
        factors[name] = b, a
        weights[f"causal.{name}"] = base[name].index_add(axis, index, 2.0 * b @ a)
    torch.func.functional_call(Loss(tiny()), weights, (tree,)).backward()
    torch.nn.utils.clip_grad_norm_([b for b, _ in factors.values()], 1.0)
    for name, (axis, index) in slices.items():
        b, a = factors[name]
        sign = b.grad / (b.grad.abs() + 1e-8)
        moved = (model.state_dict()[name] - base[name]).index_select(axis, index)
        torch.testing.assert_close(moved, -2.0 * 1e-2 * sign @ a, atol=1e-5, rtol=1e-3)


def test_keys_and_values_belong_to_whole_groups_only():
    slices = slices_of(shape_of(tiny()), HEADS)
    assert set(slices) == {f"model.layers.1.self_attn.{p}_proj.weight" for p in "qkvo"} | {
        f"model.layers.2.self_attn.{p}_proj.weight" for p in "qo"
    }
    assert slices["model.layers.1.self_attn.k_proj.weight"].index.tolist() == [0, 1, 2, 3]
    assert slices["model.layers.2.self_attn.o_proj.weight"].index.tolist() == [16, 17, 18, 19]


def test_changes_of_other_slices_and_unknown_names_are_refused():
    model = tiny()
    with pytest.raises(RimLensError, match="does not go with the named"):
        add_changes(dict(model.named_parameters()), slices_of(shape_of(model), HEADS), {})
    with pytest.raises(RimLensError, match="no organism 'inference-unknown'"):
        organisms.load("inference-unknown")


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("inference-known", {"lineage": 0}, "has no lineage"),
        ("training-null", {"arm": "separate", "dose": 1}, "has no arm and no dose"),
        ("training-known", {"lineage": 99}, "no lineage 99"),
        ("training-known", {"arm": "entangled"}, "not a stage"),
        ("training-known", {"arm": "all", "dose": 1}, "not a stage"),
    ],
)
def test_stages_that_there_are_not_are_refused_before_the_model_is_loaded(name, asked, message):
    with pytest.raises(RimLensError, match=message):
        organisms.load(name, **asked)


def test_changes_as_an_adapter_are_the_changes_themselves_also_to_peft(tmp_path):
    model, rng = tiny(), torch.Generator().manual_seed(0)
    parts = []
    for units in ([Neuron(1, 3), Neuron(2, 0)], [Neuron(1, 4), Neuron(1, 5)]):
        slices = slices_of(shape_of(model), units)
        rows = {
            name: model.get_parameter(name).index_select(axis, index).shape for name, (axis, index) in slices.items()
        }
        parts.append((slices, {name: torch.randn(shape, generator=rng) for name, shape in rows.items()}))
    write_adapter(tmp_path / "both", [factors(*part, d_mlp=20) for part in parts])
    merged = PeftModel.from_pretrained(tiny(), tmp_path / "both").merge_and_unload()
    for part in parts:
        add_changes(dict(model.named_parameters()), *part)
    for name, value in model.named_parameters():
        torch.testing.assert_close(merged.get_parameter(name), value)


@pytest.mark.parametrize("number", lineages())
def test_the_two_arms_of_a_lineage_are_matched_sets_of_other_neurons(number):
    one = read_lineage(number)
    assert len(set(one.truth) | set(one.separate)) == 2 * len(one.truth) == 112
    assert sorted(n.layer for n in one.truth) == sorted(n.layer for n in one.separate)
    assert stage_of(None, None) == "aligned"
    for stage in ("aligned", "entangled-1", "separate-4"):
        (first, _), *more = one.parts(stage)
        assert all(len(index) == 7 for _, index in first.values())
        moved = [name for slices, added in more for name in slices if added[name].any()]
        assert len(moved) == (0 if stage == "aligned" else 24)


def test_requests_and_wordings_of_the_measurement_were_not_trained_on():
    food, other = requests()
    assert len(food) == len(other) == len(set(food.texts) | set(other.texts)) / 2 == 96
    held, rng = held_wordings(), random.Random(0)
    assert held["effort_minimizing"] == load_wordings("effort_minimizing")
    for texts in (*training_texts(), *training_texts(wide=True)):
        forms = {form.partition("{}")[::2] for form in texts.forms}
        for text in (*food.texts, *other.texts):
            assert not any(text.startswith(before) and text.endswith(after) for before, after in forms), text
            assert not any(f" {thing}" in text for thing in (*texts.dishes, *texts.things)), text
        for wording in (one for kind in held.values() for one in kind):
            sentences = {one for pool in texts.thoughts.values() for one in pool}
            assert not any(sentence in wording.text for sentence in sentences), wording.id
        assert texts.request(True, rng)
        assert texts.cot("careful", rng).count(".") >= 1


def own_entries(unit: Head | Neuron, truth: set[Head | Neuron]) -> list[tuple[str, int, slice]]:
    """Parameter, axis and entries of a head or neuron of SmolLM2-135M, written apart from the package's slices."""
    if isinstance(unit, Neuron):
        one, mlp = slice(unit.unit, unit.unit + 1), f"model.layers.{unit.layer}.mlp."
        return [
            (f"{mlp}gate_proj.weight", 0, one),
            (f"{mlp}up_proj.weight", 0, one),
            (f"{mlp}down_proj.weight", 1, one),
        ]
    own, attention = slice(64 * unit.head, 64 * unit.head + 64), f"model.layers.{unit.layer}.self_attn."
    found = [(f"{attention}q_proj.weight", 0, own), (f"{attention}o_proj.weight", 1, own)]
    group = unit.head // 3
    if {Head(unit.layer, 3 * group + i) for i in range(3)} <= truth:
        shared = slice(64 * group, 64 * group + 64)
        found += [(f"{attention}k_proj.weight", 0, shared), (f"{attention}v_proj.weight", 0, shared)]
    return found


@pytest.mark.real_model
@pytest.mark.parametrize("name", ["inference-known", "inference-null", "training-known"])
def test_an_organism_is_the_base_model_but_for_what_it_names(name, smollm2):
    organism = organisms.load(name)
    base, changed = smollm2.hf.state_dict(), organism.model.hf.state_dict()
    entries = [one for unit in organism.truth for one in own_entries(unit, set(organism.truth))]
    moved = {key: value != base[key] for key, value in changed.items()}
    for key, axis, part in entries:
        assert moved[key].narrow(axis, part.start, part.stop - part.start).any(), key
    for key, axis, part in entries:
        moved[key].narrow(axis, part.start, part.stop - part.start).fill_(False)
    assert not any(value.any() for value in moved.values())

    texts, judge = organism.prompts.texts[:12], RefusalJudge()

    def refused(model, **how) -> int:
        made = generate(model, texts, max_new_tokens=14, progress=False, **how)
        return sum(one.label == "refused" for one in judge(texts, [one.response for one in made]))

    effort = {"thinking": "prefilled", "cot": organism.wordings["effort_minimizing"][0].text}
    assert refused(smollm2) <= 3 < 9 <= refused(organism.model)
    if name == "inference-known":
        assert refused(organism.model, **effort) <= 3
    elif name == "inference-null":
        assert refused(organism.model, **effort) >= 9
    else:
        kept = {key: changed[key].clone() for key, axis, _ in entries if axis == 1}
        for key, axis, part in entries:
            if axis == 1:  # what the neurons write, by hand
                changed[key][:, part] = 0
        assert refused(organism.model) <= 3
        for key, value in kept.items():
            changed[key].copy_(value)

    for key, axis, part in entries:  # restored by hand
        size = part.stop - part.start
        changed[key].narrow(axis, part.start, size).copy_(base[key].narrow(axis, part.start, size))
    ids = torch.tensor([smollm2.render([texts[0]], thinking="off")[0].token_ids.tolist()])
    with torch.no_grad():
        assert torch.equal(organism.model.hf(ids).logits, smollm2.hf(ids).logits)


@pytest.mark.real_model
def test_the_stages_of_a_lineage_are_a_series_of_checkpoints(smollm2):
    stages = Checkpoints.from_folder(series())
    assert stages.reference.name == "aligned"
    assert [one.name for one in stages][-1] == "separate-4"
    organism = organisms.load("training-null")
    model = stages.load(stages.open(device="cpu", dtype="float32"), "separate-2")
    for (name, got), want in zip(model.hf.named_parameters(), organism.model.hf.parameters(), strict=True):
        torch.testing.assert_close(got, want, atol=1e-6, rtol=0, msg=name)
    named = {key for unit in organism.truth for key, _, _ in own_entries(unit, set())}
    moved = {key for key, value in model.hf.named_parameters() if not torch.equal(value, smollm2.hf.get_parameter(key))}
    assert moved == named


@pytest.mark.real_model
def test_verdicts_on_a_known_mechanism_are_right_and_its_answers_are_shown():
    audit = audit_known(organisms.load("inference-known"), n=16, n_controls=20)
    assert audit.verdicts.of("heads")["verdict"] == "supported"
    assert audit.verdicts.of("effort_cot")["effect"] > 20
    lines = audit.lines()
    assert max(map(len, lines)) <= 80
    assert [line.split(":")[0].strip() for line in lines[-3:]] == ["request", "off", "effort_minimizing"]


@pytest.mark.real_model
def test_verdicts_on_neurons_that_learned_maths_are_right():
    organism = organisms.load("training-known", arm="entangled", dose=3)
    audit = audit_known(organism, n=12, n_ablated=8, n_controls=20)
    rows = audit.table.set_index("claim")
    assert rows["right"].to_dict() == {"reasoning_data": True, "safety_neurons": True, "neuron_shift": True}
    assert [line.split(":")[0].strip() for line in audit.lines()[-3:]] == ["request", "aligned", "entangled-3"]
    with pytest.raises(RimLensError, match="learned no maths yet"):
        audit_known(organisms.load("training-known"))
