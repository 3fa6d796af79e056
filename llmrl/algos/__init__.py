"""Algorithms, one file a method: which credit, which loss, and what it needs.

A recipe's `algo.name` is a key of ALGORITHMS or of PRESETS; its other fields are the method's dataclass fields.
"""

# Name -> where its dataclass lives. Strings, so that a listing imports no torch.
ALGORITHMS = {
    "grpo": "llmrl.algos.grpo:GRPO",
    "rloo": "llmrl.algos.rloo:RLOO",
    "reinforce_pp": "llmrl.algos.reinforce_pp:ReinforcePP",
    "gspo": "llmrl.algos.gspo:GSPO",
    "cispo": "llmrl.algos.cispo:CISPO",
    "ppo": "llmrl.algos.ppo:PPO",
    "pacs": "llmrl.algos.pacs:PACS",
    "coderl": "llmrl.algos.coderl:CodeRL",
    "sft": "llmrl.algos.sft:SFT",
    "critique_rl": "llmrl.algos.critique_rl:CritiqueRL",
    "vl_dac": "llmrl.algos.vl_dac:VLDAC",
    "rl4vlm": "llmrl.algos.rl4vlm:RL4VLM",
}

# Name -> (the method it is, the fields in which it differs from that method's defaults). A recipe may override these.
PRESETS: dict[str, tuple[str, dict[str, object]]] = {
    # Liu et al. 2025, arXiv:2503.20783: neither deviation nor length in the denominator. The recipe gives
    # constant_tokens, usually the largest completion length.
    "dr_grpo": (
        "grpo",
        {"advantage": "center", "clip_high": 0.2, "normalize": "constant", "importance_cap": None},
    ),
    # Yu et al. 2025, arXiv:2503.14476: clip-higher and the token mean. Its dynamic sampling is the trainer's, its
    # soft over-long punishment a reward.
    "dapo": (
        "grpo",
        {"advantage": "zscore", "clip_low": 0.2, "clip_high": 0.28, "normalize": "token", "importance_cap": None},
    ),
    # Hu et al. 2025, arXiv:2501.03262, section on REINFORCE++-baseline.
    "reinforce_pp_baseline": ("reinforce_pp", {"baseline": "group"}),
    # Chen et al. 2025, arXiv:2502.01600: over episodes, each judged against the others of its task; PPO's token clip.
    "loop": ("grpo", {"advantage": "leave_one_out", "clip_low": 0.2, "clip_high": 0.2, "importance_cap": None}),
}
