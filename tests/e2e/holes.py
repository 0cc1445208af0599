"""An agent loop of two turns with a tool's answer between them, which the policy did not write."""

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

TOOL = 4  # tokens of the tool's answer: the end of the question once more
SECOND = 8  # most tokens of the second turn


class Holes(SingleTurnAgentLoop):
    async def run(self, sampling_params, **kwargs):
        output = await super().run({**sampling_params, "max_tokens": self.response_length - TOOL - SECOND}, **kwargs)
        tool = output.prompt_ids[-TOOL:]
        asked = [*output.prompt_ids, *output.response_ids, *tool]
        more = await self.server_manager.generate(
            request_id="second-" + str(id(output)),
            prompt_ids=asked,
            sampling_params={**sampling_params, "max_tokens": SECOND},
        )
        output.response_ids += [*tool, *more.token_ids]
        output.response_mask += [0] * TOOL + [1] * len(more.token_ids)
        output.response_logprobs += [0.0] * TOOL + list(more.log_probs)
        output.num_turns = 4
        return output
