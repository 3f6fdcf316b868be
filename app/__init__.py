"""The trainer and the evaluator: what a prompt that attends in both directions costs, and how far training repairs it."""
