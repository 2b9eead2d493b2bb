"""The target that GPU hosts run: vLLM, with drafts injected into its continuous batch.

    in this process        target (the port), serving (one session), parameters (Open -> vLLM)
    in vLLM's core         scheduler (drafts in, verdicts out), seats (sessions), budget (rows)
    in vLLM's workers      worker (the seam), judging (waves of rows), support, noise
    between them           orders (what a step is asked, and what it answers)

Only engine, scheduler, worker and compat import vllm. Nothing of vLLM is forked or patched on
disk: a scheduler class, a worker extension and a null proposer are named in its own settings.
"""
