"""Environments: where a turn of the model is answered."""

# Name in a recipe -> import path of what makes one environment.
ENVIRONMENTS = {
    "blackjack": "llmrl.envs.cards:blackjack",
    "calculator": "llmrl.envs.calculator:Calculator",
    "critique": "llmrl.envs.critique:Critique",
    "ezpoints": "llmrl.envs.cards:ezpoints",
    "frozen_lake": "llmrl.envs.grids:frozen_lake",
    "guess": "llmrl.envs.guess:Guess",
    "gym": "llmrl.envs.gym:gym",
    "minigrid": "llmrl.envs.minigrid:minigrid",
    "miniworld": "llmrl.envs.miniworld:miniworld",
    "numberline": "llmrl.envs.numberline:number_line",
    "points24": "llmrl.envs.cards:points24",
    "sokoban": "llmrl.envs.grids:sokoban",
    "textworld": "llmrl.envs.textworld:textworld",
    "trl": "llmrl.envs.trl:TRLEnvironment",
}

# Name -> (the package it needs, how to install it).
PACKAGES = {
    "gym": ("gymnasium", "pip install 'llmrl[agents]'"),
    "minigrid": ("minigrid", "pip install 'llmrl[agents]'"),
    "miniworld": ("miniworld", "pip install 'llmrl[miniworld]'"),
    "textworld": ("textworld", "pip install 'llmrl[textworld]'"),
}
