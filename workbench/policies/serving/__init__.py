"""A frozen teacher in a process of its own: `workbench teacher MODEL`, and models.teacher=http://HOST:PORT.

    addresses.py     addresses of servers in a configuration
    wire.py          requests and answers as bytes, and what pins prompts and pictures
    engine.py        the interface of an engine, which computes behind a server, and transformers as one
    vllm_engines.py  vLLM as one, for a teacher and for a sampler
    worker.py        ends vLLM's worker processes with their server
    trunk.py         a model's ends, by which vLLM's server encodes and finds the head
    comparison.py    vLLM's hidden states against those of the whole model by transformers
    service.py       what a server answers, with any engine
    door.py          the server
    client.py        requests of a run, with retries
    served.py        the policy of a run whose hidden states a server computes
    sampler.py       what samples for a run's student on a server
    vllm_serve.py    the same on a plain `vllm serve`
    weight_transfer.py  its weights by vLLM's own transfer

The server returns last hidden states of answer tokens; the run applies the teacher's head itself. So every divergence
and every routing rule is that of a teacher in the run's own process.
"""
