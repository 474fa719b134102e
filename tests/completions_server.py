"""A server with the completions protocol over a model of this process, in two dialects.

"ids": as vLLM's server: prompts as token ids, token ids in the reply, stop strings, log-probabilities of chosen tokens.
"text": as `transformers serve`: text only, unknown fields refused.
"""

import json
import threading
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

TEXT_FIELDS = {"model", "prompt", "max_tokens", "temperature", "seed", "top_p"}


class CompletionsTestServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, model, dialect="ids", name="tiny", context=512):
        super().__init__(("127.0.0.1", 0), Handler)
        self.lens, self.dialect, self.model_name, self.context = model, dialect, name, context
        self.bodies, self.keys, self.failures = [], [], deque()  # statuses to answer with before anything else
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @torch.no_grad()
    def complete(self, body):
        """transformers' own generate, one request at a time."""
        lens, tokenizer = self.lens, self.lens.tokenizer
        prompt = body["prompt"]
        ids = tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
        stop = body.get("stop")
        sampled = {"do_sample": True, "temperature": body["temperature"]} if body["temperature"] > 0 else {}
        torch.manual_seed(body["seed"])
        tokens = torch.tensor([ids])
        ends = sorted({*body.get("stop_token_ids", ()), *lens.chat_format.eos_ids})
        output = lens.hf.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=body["max_tokens"],
            pad_token_id=lens.pad_id,
            eos_token_id=ends,
            **{"do_sample": False, **sampled},
            **({"stop_strings": [stop], "tokenizer": tokenizer} if stop else {}),
        )
        new = output[0, len(ids) :].tolist()
        ended = bool(new) and new[-1] in ends
        stopped = bool(stop) and stop in tokenizer.decode(new)
        choice = {
            "text": tokenizer.decode(new, skip_special_tokens=True),
            "finish_reason": "stop" if ended or stopped else "length",
        }
        if self.dialect == "ids":
            choice |= {"token_ids": new, "stop_reason": stop if stopped and not ended else None}
        if "logprob_token_ids" in body:
            logp = lens.hf(tokens).logits[0, -1].log_softmax(-1)
            top = {f"token_id:{i}": float(logp[i]) for i in body["logprob_token_ids"]}
            choice["logprobs"] = {"top_logprobs": [top]}
        return choice


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer(200, {"data": [{"id": self.server.model_name, "max_model_len": self.server.context}]})

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers.get("Authorization"))
            status = server.failures.popleft() if server.failures else 200
            unknown = set(body) - TEXT_FIELDS if server.dialect == "text" else set()
            if unknown or (server.dialect == "text" and not isinstance(body["prompt"], str)):
                status = 422
            if body["model"] != server.model_name:
                status = 404
            payload = {"choices": [server.complete(body)]} if status == 200 else {"error": "refused"}
        self.answer(status, payload)

    def answer(self, status, payload):
        data = json.dumps(payload).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
