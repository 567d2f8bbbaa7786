"""The batch of verl_actor.py, for it and for tests that compute its update by hand."""

import torch

PROMPTS, RESPONSES = (5, 3, 4, 2), (7, 2, 5, 6)  # lengths


def tensors(vocabulary):
    """Four sequences, padded on both sides as verl's rollouts are."""
    draw = torch.Generator().manual_seed(3)
    P, R = max(PROMPTS), max(RESPONSES)
    prompts = torch.arange(P) >= P - torch.tensor(PROMPTS)[:, None]
    responses = torch.arange(R) < torch.tensor(RESPONSES)[:, None]
    seen = torch.cat([prompts, responses], 1).long()
    tokens = torch.randint(3, vocabulary, seen.shape, generator=draw) * seen
    return dict(
        input_ids=tokens, attention_mask=seen, position_ids=(seen.cumsum(1) - 1).clamp(min=0), prompts=tokens[:, :P], responses=tokens[:, P:],
        response_mask=responses.long(), old_log_probs=-3 * torch.rand(responses.shape, generator=draw) - 1,
        advantages=torch.randn(len(seen), 1, generator=draw) * responses,
    )  # fmt: skip
