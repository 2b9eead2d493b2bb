"""The target that GPU hosts run: vLLM, with drafts injected into its continuous batch.

    in this process     target (the port), live (messages on their way), parameters (Open to
                        vLLM), engine (vLLM's front), compat and selftest (is this vLLM fit?)
    in vLLM's core      scheduler (steps: drafts in, verdicts out) and session_scheduler (what
                        comes between steps) over seating and seats (sessions); holding, alarm
                        (who waits); outputs (what is said); core (calls)
    in vLLM's workers   worker (the seam), judging (waves of rows), support, noise
    between them        admission (a session), requests (a step)

Only compat, engine, core, the two schedulers, holding, outputs and worker touch vllm. Nothing
of it is forked or patched on disk: a scheduler class, a worker extension and a null proposer
are named in its own settings.
"""
