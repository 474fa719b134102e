"""An engine of plain transformers passes: it computes every token's pass anew, with each edit where it stands."""

from contextlib import ExitStack

import torch

from rim_lens.engine.dialogue import Reply
from rim_lens.model.engine_model import EngineModel


class PlainEngine:
    name, inside = "plain", True

    def __init__(self, model):
        self.model = model

    def describe(self):
        return {"engine": "plain", "version": "1", "dtype": "float32", "tensor_parallel": 1}

    def run(self, dialogues):
        for number, dialogue in enumerate(dialogues):
            ask = next(dialogue)
            while True:
                try:
                    ask = dialogue.send(self.reply(ask))
                except StopIteration as end:
                    yield number, end.value
                    break

    def reply(self, ask):
        ids = list(ask.ids)
        while len(ids) < len(ask.ids) + ask.max_tokens:
            token = self.next_token(ids, ask.edits)
            if token in ask.ends:
                return Reply(tuple(ids[len(ask.ids) :]), True)
            ids.append(token)
            if ask.stop and ask.stop in self.model.chat_format.decode(ids[len(ask.ids) :]):
                break
        return Reply(tuple(ids[len(ask.ids) :]), False)

    @torch.no_grad()
    def next_token(self, ids, edits):
        with ExitStack() as stack:
            for edit, first, until in edits:
                for layer, factor in edit.factor.items():
                    block = self.model.hf.model.layers[layer]
                    module = block.self_attn.o_proj if edit.site == "heads" else block.mlp.down_proj
                    shift = edit.shift.get(layer, torch.zeros(len(factor), 1))

                    def change(_, args, factor=factor, shift=shift, at=slice(first, None if until < 0 else until)):
                        x = args[0].clone()
                        units = x[:, at].unflatten(-1, (len(factor), -1))
                        x[:, at] = (units * factor[:, None] + shift).flatten(-2)
                        return (x,)

                    stack.callback(module.register_forward_pre_hook(change).remove)
            return int(self.model.hf(torch.tensor([ids])).logits[0, -1].argmax())


class PlainModel(EngineModel):
    """What has an engine and the shape of a transformers model."""

    max_length = 512

    def __init__(self, model):
        super().__init__("plain", model.tokenizer)
        self.engine, self.shape = PlainEngine(model), model.shape

    def tap(self, *taps, backend="auto"):
        stack = ExitStack()
        stack.callback(setattr, self, "active_taps", self.active_taps)
        self.active_taps = [*self.active_taps, *taps]
        return stack

    def raw_logits(self, batch, kept=None):
        with self.engine.model.tap(*self.active_taps):
            return self.engine.model.raw_logits(batch, kept)

    @property
    def dtype(self):
        return torch.float32

    @property
    def fingerprint(self):
        return self.engine.model.fingerprint

    @property
    def n_embedded(self):
        return self.engine.model.n_embedded
