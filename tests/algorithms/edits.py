"""What users do to a model of SB3 between and during rollouts: each function changes one in place, the same way each time."""

import copy
import io
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch as th
from torch import nn

Edit = Callable[[Any], None]


def noise_like(tensor: th.Tensor) -> th.Tensor:
    """The same numbers for the same shape, whatever torch's generator is at."""
    return th.randn(tensor.shape, generator=th.Generator().manual_seed(tensor.numel()))


def layers(model: Any) -> list[nn.Linear]:
    return [module for module in model.policy.modules() if type(module) is nn.Linear]


class Louder(nn.Linear):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return 2.0 * super().forward(x) + 1.0


def keep(model: Any, thing: Any) -> None:
    """Hold a reference for the rest of the test, as a user's variable would."""
    vars(model.policy).setdefault("kept_by_the_user", []).append(thing)


# ------------------------------------------------------------------ the numbers of parameters


def add_in_place(model: Any) -> None:
    with th.no_grad():
        for parameter in model.policy.parameters():
            parameter.add_(0.05 * noise_like(parameter))


def add_to_data(model: Any) -> None:
    """Unseen by torch's version counter."""
    for parameter in model.policy.parameters():
        parameter.data.add_(0.05 * noise_like(parameter))


def flip_signs(model: Any) -> None:
    """Every sum of squares stays."""
    for parameter in layers(model)[-1].parameters():
        parameter.data.neg_()


def permute_rows(model: Any) -> None:
    weight = layers(model)[0].weight
    weight.data.copy_(weight.data.flip(0))


def write_through_numpy(model: Any) -> None:
    layers(model)[0].weight.detach().numpy()[0, 0] += 0.1


def change_log_std(model: Any) -> None:
    if hasattr(model.policy, "log_std"):
        model.policy.log_std.data.sub_(0.1)


def load_other_numbers(model: Any) -> None:
    state = model.policy.state_dict()
    model.policy.load_state_dict({name: value + 0.05 * noise_like(value) for name, value in state.items()})


# ------------------------------------------------------------------ the memory of parameters


def rebind_data(model: Any) -> None:
    for parameter in model.policy.parameters():
        parameter.data = parameter.data * 0.95


def swap_data(model: Any) -> None:
    """Each of two parameters gets the other's memory."""
    one, other = (net[0].weight for net in (model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net))
    one.data, other.data = other.data, one.data


def transpose(model: Any) -> None:
    """Other numbers in the same memory: only strides change."""
    square = [layer for layer in layers(model) if layer.in_features == layer.out_features]
    for layer in square:
        layer.weight.data = layer.weight.data.t()


def rebind_one(model: Any) -> None:
    layers(model)[-1].bias.data = layers(model)[-1].bias.data + 0.1


def share_memory(model: Any) -> None:
    model.policy.share_memory()


def send_state_dict(model: Any) -> None:
    """What a pipe, a queue or a pool does with tensors: their storages move to shared memory."""
    keep(model, ForkingPickler.dumps(model.policy.state_dict()))


def send_gradients_and_moments(model: Any) -> None:
    keep(model, ForkingPickler.dumps([p.grad for p in model.policy.parameters()]))
    keep(model, ForkingPickler.dumps(model.policy.optimizer.state_dict()))


def keep_state_dict(model: Any) -> None:
    keep(model, model.policy.state_dict())


def keep_arrays(model: Any) -> None:
    keep(model, [parameter.detach().numpy() for parameter in model.policy.parameters()])


def keep_graph(model: Any) -> None:
    keep(model, sum(parameter.exp().sum() for parameter in model.policy.parameters()))


def double_and_back(model: Any) -> None:
    model.policy.double()
    model.policy.float()


def save_and_load_parameters(model: Any) -> None:
    file = io.BytesIO()
    th.save(model.get_parameters(), file)
    file.seek(0)
    model.set_parameters(th.load(file, weights_only=False))


# ------------------------------------------------------------------ modules


def renew_optimizer(model: Any, kind: type[th.optim.Optimizer] = th.optim.Adam, **options: Any) -> None:
    make: Any = kind  # Any: each optimizer has its own arguments
    model.policy.optimizer = make(model.policy.parameters(), lr=3e-4, **options)


def replace_parameters(model: Any) -> None:
    for layer in layers(model):
        layer.weight = nn.Parameter(layer.weight.detach() * 1.05)
    renew_optimizer(model)


def replace_head(model: Any) -> None:
    head = nn.Linear(model.policy.action_net.in_features, model.policy.action_net.out_features)
    for parameter in head.parameters():
        parameter.data.copy_(0.1 * noise_like(parameter))
    model.policy.action_net = head
    renew_optimizer(model)


def assign_state_dict(model: Any) -> None:
    state = {name: value.clone() * 1.05 for name, value in model.policy.state_dict().items()}
    model.policy.load_state_dict(state, assign=True)
    renew_optimizer(model)


def share_first_layer(model: Any) -> None:
    model.policy.mlp_extractor.value_net[0] = model.policy.mlp_extractor.policy_net[0]
    renew_optimizer(model)


def share_trunk(model: Any) -> None:
    model.policy.mlp_extractor.value_net = model.policy.mlp_extractor.policy_net
    renew_optimizer(model)


def replace_activation(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[1] = nn.ReLU()


def replace_forward_of_activation(model: Any) -> None:
    model.policy.mlp_extractor.value_net[1].forward = th.sin


def replace_forward_of_head(model: Any) -> None:
    head = model.policy.value_net
    head.forward = lambda x: 1.5 * type(head).forward(head, x)


def replace_method_of_policy(model: Any) -> None:
    policy = model.policy
    policy.predict_values = lambda obs: type(policy).predict_values(policy, obs)


def replace_class_of_head(model: Any) -> None:
    model.policy.value_net.__class__ = Louder


def replace_call_of_layer(model: Any) -> None:
    """What torch's ``__call__`` of every module calls."""
    layer: Any = layers(model)[0]
    layer._call_impl = lambda x: 0.5 * nn.functional.linear(x, layer.weight, layer.bias)


def replace_method_of_distribution(model: Any) -> None:
    distribution = model.policy.action_dist
    log_prob = type(distribution).log_prob
    distribution.log_prob = lambda actions: log_prob(distribution, actions) - 1.0


def replace_distribution(model: Any) -> None:
    other = copy.copy(model.policy.action_dist)
    kind: Any = type(other)

    class Shifted(kind):
        def log_prob(self, actions: th.Tensor) -> th.Tensor:
            return super().log_prob(actions) + 0.01

    other.__class__ = Shifted
    model.policy.action_dist = other


def hook(model: Any) -> None:
    model.policy.value_net.register_forward_hook(lambda module, inputs, output: output + 0.5)


def hook_parameter(model: Any) -> None:
    model.policy.value_net.bias.register_hook(lambda gradient: 0.5 * gradient)


def freeze_log_std_or_bias(model: Any) -> None:
    getattr(model.policy, "log_std", model.policy.action_net.bias).requires_grad_(False)


def freeze_first_layers(model: Any) -> None:
    model.policy.mlp_extractor.policy_net[0].requires_grad_(False)
    model.policy.mlp_extractor.value_net[0].requires_grad_(False)


def thaw(model: Any) -> None:
    model.policy.requires_grad_(True)


# ------------------------------------------------------------------ the optimizer


def clear_gradients(model: Any) -> None:
    model.policy.optimizer.zero_grad()


def zero_gradients_in_place(model: Any) -> None:
    model.policy.optimizer.zero_grad(set_to_none=False)


def take_sgd(model: Any) -> None:
    renew_optimizer(model, th.optim.SGD, momentum=0.9)


def take_adamw(model: Any) -> None:
    renew_optimizer(model, th.optim.AdamW, eps=1e-5, weight_decay=0.1)


def change_group(model: Any) -> None:
    model.policy.optimizer.param_groups[0].update(weight_decay=0.05, eps=1e-4)


def reload_optimizer(model: Any) -> None:
    model.policy.optimizer.load_state_dict(model.policy.optimizer.state_dict())


def keep_optimizer_state(model: Any) -> None:
    keep(model, model.policy.optimizer.state_dict())


def clear_optimizer_state(model: Any) -> None:
    model.policy.optimizer.state.clear()


def scale_moments(model: Any) -> None:
    for state in model.policy.optimizer.state.values():
        for name, value in state.items():
            if name in ("exp_avg", "momentum_buffer"):
                state[name] = 0.5 * value


def wrap_step(model: Any) -> None:
    optimizer = model.policy.optimizer
    step = optimizer.step

    def scaled(closure: Any = None) -> Any:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad = 0.5 * parameter.grad
        return step(closure)

    optimizer.step = scaled


def hook_step(model: Any) -> None:
    def sign_of_last_bias(optimizer: Any, *_: Any) -> None:
        parameter = optimizer.param_groups[0]["params"][-1]
        if parameter.grad is not None:
            parameter.grad.neg_()

    model.policy.optimizer.register_step_pre_hook(sign_of_last_bias)


def step_what_is_not_the_policys(model: Any) -> None:
    stranger = nn.Parameter(th.ones(2))
    stranger.grad = th.ones(2)
    model.policy.optimizer.add_param_group({"params": [stranger]})


def step_half(model: Any) -> None:
    model.policy.optimizer = th.optim.Adam(model.policy.mlp_extractor.parameters(), lr=3e-4)


DURING: list[Edit] = [
    add_in_place,
    add_to_data,
    flip_signs,
    permute_rows,
    write_through_numpy,
    change_log_std,
    load_other_numbers,
    rebind_data,
    rebind_one,
    transpose,
    swap_data,
    share_memory,
    send_state_dict,
    keep_state_dict,
    keep_arrays,
    keep_graph,
    double_and_back,
    save_and_load_parameters,
    replace_parameters,
    replace_head,
    assign_state_dict,
    share_first_layer,
    share_trunk,
    replace_activation,
    replace_forward_of_activation,
    replace_forward_of_head,
    replace_method_of_policy,
    replace_class_of_head,
    replace_call_of_layer,
    replace_method_of_distribution,
    replace_distribution,
    hook,
]
"""Also in the middle of a rollout."""

BETWEEN: list[Edit] = [
    *DURING,
    send_gradients_and_moments,
    hook_parameter,
    freeze_log_std_or_bias,
    freeze_first_layers,
    thaw,
    clear_gradients,
    zero_gradients_in_place,
    take_sgd,
    take_adamw,
    change_group,
    reload_optimizer,
    keep_optimizer_state,
    clear_optimizer_state,
    scale_moments,
    wrap_step,
    hook_step,
    step_what_is_not_the_policys,
    step_half,
]
