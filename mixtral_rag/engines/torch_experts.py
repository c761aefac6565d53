"""Mixtral with every expert a linear layer of its own, so that bitsandbytes can quantise it.

Transformers 5 keeps a layer's experts in two large tensors, which bitsandbytes does not touch: of
Mixtral-8x7B it would leave 96% as it is.
"""

import functools
from typing import Any

LINEAR_MIXTRAL = "LinearMixtral"
"""Name of the class below, by which transformers and peft are told what to expect of it."""


@functools.cache
def mixtral_of_linear_layers() -> Any:
    """A class like `MixtralForCausalLM`, with the layout in which checkpoints keep the experts."""
    from torch import nn
    from transformers.models.mixtral import modeling_mixtral as mixtral

    if not hasattr(mixtral, "MixtralExperts"):  # Transformers 4 has linear layers already
        return mixtral.MixtralForCausalLM
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    class Expert(nn.Module):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
            self.w2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
            self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
            self.act = mixtral.ACT2FN[config.hidden_act]

        def forward(self, hidden: Any) -> Any:
            return self.w2(self.act(self.w1(hidden)) * self.w3(hidden))

    class Block(nn.Module):  # type: ignore[misc]
        """A router and its experts, `gate` and `experts` as checkpoints call them."""

        def __init__(self, config: Any) -> None:
            super().__init__()
            self.n_used = config.num_experts_per_tok
            self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
            experts = (Expert(config) for _ in range(config.num_local_experts))
            self.experts = nn.ModuleList(experts)

        def forward(self, states: Any) -> Any:
            hidden = states.reshape(-1, states.shape[-1])
            weights, chosen = self.gate(hidden).float().softmax(-1).topk(self.n_used)
            weights = weights / weights.sum(-1, keepdim=True)
            out = hidden.new_zeros(hidden.shape)
            for number in chosen.unique().tolist():
                token, place = (chosen == number).nonzero(as_tuple=True)
                part = self.experts[number](hidden[token]) * weights[token, place, None]
                out.index_add_(0, token, part.to(out.dtype))
            return out.reshape(states.shape)

    class LinearMixtralModel(mixtral.MixtralModel):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.layers:
                layer.mlp = Block(config)

    class LinearMixtral(mixtral.MixtralForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = LinearMixtralModel(config)
            self.post_init()

    # By class name it comes before the mapping of Mixtral that stacks the experts.
    renaming = [WeightRenaming(".block_sparse_moe.", ".mlp.")]
    register_checkpoint_conversion_mapping(LINEAR_MIXTRAL, renaming, overwrite=True)
    return LinearMixtral
