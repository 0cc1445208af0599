"""The plug into verl: the only room that imports it, each file through one of verl's own registries.

In come verl's config, batches and logits; out go losses, advantages, a trainer, a rollout server. ``plugin`` is what
verl loads in every process; ``checks`` refuses a config before Ray starts. ``topk/`` carries mu's top-K from the
rollout engine to the loss; ``cpu/`` lets the real stack run without a GPU.
"""
