"""Environments: where a turn of the model is answered."""

# Name in a recipe -> import path of what makes one environment.
ENVIRONMENTS = {
    "calculator": "llmrl.envs.calculator:Calculator",
    "critique": "llmrl.envs.critique:Critique",
    "guess": "llmrl.envs.guess:Guess",
}
