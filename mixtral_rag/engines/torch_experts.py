"""Mixtral with every expert a linear layer of its own, so that bitsandbytes can quantise it.

Transformers 5 keeps a layer's experts in two large tensors, which bitsandbytes does not touch: of
Mixtral-8x7B it would leave 96% as it is.
"""

import functools
from typing import Any


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

    class Experts(nn.ModuleList):  # type: ignore[misc]
        def forward(self, hidden: Any, chosen: Any, weights: Any) -> Any:
            """Shapes: (tokens, width), (tokens, k) expert numbers, (tokens, k) their weights."""
            out = hidden.new_zeros(hidden.shape)
            for number in chosen.unique().tolist():
                token, place = (chosen == number).nonzero(as_tuple=True)
                part = self[number](hidden[token]) * weights[token, place, None]
                out.index_add_(0, token, part.to(out.dtype))
            return out

    class LinearMixtralModel(mixtral.MixtralModel):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            for layer in self.layers:
                experts = (Expert(config) for _ in range(config.num_local_experts))
                layer.mlp.experts = Experts(experts)

    class LinearMixtral(mixtral.MixtralForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.model = LinearMixtralModel(config)
            self.post_init()

    # By class name it comes before the mapping of Mixtral that stacks the experts.
    renaming = [WeightRenaming(".block_sparse_moe.", ".mlp.")]
    register_checkpoint_conversion_mapping("LinearMixtral", renaming, overwrite=True)
    return LinearMixtral
