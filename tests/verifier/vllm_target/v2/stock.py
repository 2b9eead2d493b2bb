"""What vLLM itself says: run as a script, in a process without our plugin.

Usage: stock.py MODEL REQUESTS TEXTS. The second file is [[prompt, keywords of SamplingParams]],
the third becomes [[tokens, the log-probability of each]].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams


def main(model: str, requests: str, texts: str) -> None:
    asked = json.loads(Path(requests).read_text())
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        async_scheduling=False,  # as vLLM has it on CPUs
        max_model_len=256,
        max_num_seqs=8,
        kv_cache_memory_bytes=64 << 20,
        structured_outputs_config={"backend": "guidance"},
    )
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in asked]
    answers = llm.generate(prompts, [parameters(**each) for _, each in asked], use_tqdm=False)
    found = [(list(each.token_ids), values(each)) for (each,) in (a.outputs for a in answers)]
    Path(texts).write_text(json.dumps(found))


def parameters(**keywords: Any) -> SamplingParams:
    """Return SamplingParams from JSON, whose keys are strings."""
    if bias := keywords.get("logit_bias"):
        keywords["logit_bias"] = {int(token): value for token, value in bias.items()}
    if asked := keywords.get("structured_outputs"):
        keywords["structured_outputs"] = StructuredOutputsParams(**asked)
    return SamplingParams(**keywords)


def values(output: Any) -> list[float]:
    tokens = zip(output.token_ids, output.logprobs or [], strict=False)
    return [found[token].logprob for token, found in tokens]


if __name__ == "__main__":
    main(*sys.argv[1:])
