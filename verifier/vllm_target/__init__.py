"""The target of GPU hosts: vLLM, with draft tokens injected into its continuous batch.

    configuring/  in every process of vLLM: makes a plain `vllm serve MODEL` a verifier
    serving/    in this process: the Target, the engine's front end, what vLLM is asked for, and
                whether this vLLM can serve sessions (compat, selftest)
    core/       in vLLM's core process: a scheduler that begins and ends the sessions' passes
    worker/     in vLLM's worker processes: the judge, where the logits are; hooked into
                Model Runner V1 by v1/

Between them travel `admission` (a session, to the core) and `verify_request` (a step, to the
worker). Nothing of vLLM is forked or patched on disk: a scheduler class, a worker extension and
a null proposer are named in its own settings.
"""
