"""A host in a network in memory, on the virtual clock, seen from a gateway."""

from host_kit import body, open_world

from p2p.types import FinishReason


async def test_request_paid_is_answered_and_owed_to_the_micro(autojump_clock, tmp_path) -> None:
    async with open_world(tmp_path) as world:
        gateway = world.gateway
        answer = gateway.ask(body(), gateway.allow())
        await answer.over.wait()
        receipt = answer.receipt
        assert answer.error is None
        assert answer.refusal is None
        assert answer.text.startswith("watt spare grid")
        assert receipt.completion_tokens == 16
        assert receipt.cost_micros == receipt.prompt_tokens + 2 * 16
        assert receipt.finish_reason is FinishReason.STOP
        await gateway.wait(lambda: len(gateway.batches) == 1)
