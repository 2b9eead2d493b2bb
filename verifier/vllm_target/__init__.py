"""The target of GPU hosts is vLLM, with draft tokens injected into its continuous batch.

    launching      `picospec verifier --target vllm`: reads our settings, then runs `vllm serve`
    plugin         in every process of vLLM: makes a plain `vllm serve MODEL` a verifier
    conflicts      checks that this vLLM, with these flags, can serve sessions
    serving/       in vLLM's API server: the endpoint plugin, the Target on vLLM's client of its
                   engine, and the test of itself at start
    core/          in vLLM's core process: a scheduler that begins and ends the sessions' passes
    worker/        in vLLM's worker processes: the judge, where the logits are; v1 hooks it into
                   Model Runner V1, and v2 into V2, with vLLM's own sampler; by_noise and by_p
                   judge there, also without vLLM; heads is beside V2; joined adds an
                   operator's own extension
    patches        the table of all that is replaced in vLLM's objects
    ipc_messages   what travels between them: the plugin's choice, sessions, and a step's orders

Nothing of vLLM is forked or patched on disk: it is vLLM's own server, with plugins and with the
patches of that table in its processes.
"""
