"""An agent loop whose responses end with tool output that it counts as sampled. Named in the test's loops.yaml."""

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

TOOL_TOKENS = 6


class MiscountingAgentLoop(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        output = await super().run(sampling_params, **kwargs)
        output.response_ids += output.prompt_ids[:1] * TOOL_TOKENS  # a special token: the reward does not see it
        output.response_mask += [1] * TOOL_TOKENS
        output.response_logprobs += [0.0] * TOOL_TOKENS
        return output
