"""The paper's claims at pocket scale: tiny transformers, two verifiable tasks, the losses that verl has registered."""
