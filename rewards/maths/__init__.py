"""The insides of the maths checker; `llmrl.rewards.math_answer` is its public face, and nothing else imports from here."""
