"""The target of GPU hosts is vLLM, with draft tokens injected into its continuous batch.

    launching      `picospec verifier --target vllm`: reads our settings, then runs `vllm serve`
    plugin         in every process of vLLM: makes a plain `vllm serve MODEL` a verifier
    installation   checks that this vLLM can serve sessions; conflicts, that its flags allow it
    serving/       in vLLM's API server: the endpoint plugin, the Target on vLLM's client of its
                   engine, and the test of itself at start
    core/          in vLLM's core process: a scheduler that begins and ends the sessions' passes
    worker/        in vLLM's worker processes: the judge, where the logits are; v1 hooks it into
                   Model Runner V1, and v2 into V2, with vLLM's own sampler; by_noise and by_p
                   judge there, also without vLLM; heads is beside V2; joined adds an
                   operator's own extension
    patches        the table of all that is replaced in vLLM's objects; patcher puts it there

Between the processes travel a runner_choice (the plugin's), ipc_messages (sessions and their
messages) and a verify_request for each session of a step. launch_variables tell the plugin of
`picospec`'s launch.

Nothing of vLLM is forked or patched on disk: it is vLLM's own server, with plugins and with the
patches of that table in its processes.
"""
