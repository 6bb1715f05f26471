"""`route` against the routers of transformers: each is given the logits themselves, through an identity matrix."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import coterie
from array_kinds import ready
from coterie.ops import RouteSpec, route_reference

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

E = 60


def torch_logits() -> Any:
    return torch.from_numpy(np.random.default_rng(5).normal(0, 2, (200, E)).astype(np.float32))


def identity_router(family: str, name: str, **config: Any) -> Any:
    from importlib import import_module

    module = import_module(f"transformers.models.{family}.modeling_{family}")
    router = getattr(module, name)(
        SimpleNamespace(hidden_size=E, num_experts=E, num_local_experts=E, rms_norm_eps=1e-6, **config)
    )
    if hasattr(router, "weight"):
        router.weight.data = torch.eye(E)
    return router


def gemma4() -> tuple[Any, RouteSpec]:
    router = identity_router("gemma4", "Gemma4TextRouter", top_k_experts=8)
    router.norm, router.scalar_root_size = torch.nn.Identity(), 1.0
    router.proj.weight.data = torch.eye(E)
    router.per_expert_scale.data = torch.linspace(0.5, 2, E)
    return router, RouteSpec(8, per_expert_scale=router.per_expert_scale.detach())


def qwen3_moe(norm: bool) -> tuple[Any, RouteSpec]:
    router = identity_router("qwen3_moe", "Qwen3MoeTopKRouter", num_experts_per_tok=8, norm_topk_prob=norm)
    return router, RouteSpec(8, renormalize=norm)


def olmoe() -> tuple[Any, RouteSpec]:
    router = identity_router("olmoe", "OlmoeTopKRouter", num_experts_per_tok=8, norm_topk_prob=False)
    return router, RouteSpec(8, renormalize=False)


def mixtral() -> tuple[Any, RouteSpec]:
    return identity_router("mixtral", "MixtralTopKRouter", num_experts_per_tok=2), RouteSpec(2)


def gpt_oss() -> tuple[Any, RouteSpec]:
    return identity_router("gpt_oss", "GptOssTopKRouter", num_experts_per_tok=4), RouteSpec(4)


def deepseek_v2(method: str) -> tuple[Any, RouteSpec]:
    router = identity_router(
        "deepseek_v2", "DeepseekV2TopkRouter", num_experts_per_tok=6, routed_scaling_factor=16.0, topk_method=method,
        n_group=6, topk_group=3,
    )  # fmt: skip
    groups = {"n_groups": 6, "top_groups": 3} if method == "group_limited_greedy" else {}
    return router, RouteSpec(6, renormalize=False, scaling_factor=16.0, **groups)


def sigmoid_router(family: str, name: str, groups: int, kept: int) -> tuple[Any, RouteSpec]:
    router = identity_router(
        family, name, num_experts_per_tok=8, routed_scaling_factor=2.5, n_group=groups, topk_group=kept,
        norm_topk_prob=True,
    )  # fmt: skip
    router.e_score_correction_bias = torch.linspace(-0.5, 0.3, E)
    return router, RouteSpec(8, "sigmoid", True, None, router.e_score_correction_bias, groups, kept, "top2", 2.5)


FAMILIES = {
    "Gemma 4": gemma4,
    "Qwen3-MoE": lambda: qwen3_moe(True),
    "Qwen3-MoE, not renormalised": lambda: qwen3_moe(False),
    "OLMoE": olmoe,
    "Mixtral": mixtral,
    "gpt-oss": gpt_oss,
    "DeepSeek-V2, greedy": lambda: deepseek_v2("greedy"),
    "DeepSeek-V2, groups": lambda: deepseek_v2("group_limited_greedy"),
    "DeepSeek-V3": lambda: sigmoid_router("deepseek_v3", "DeepseekV3TopkRouter", 6, 3),
    "DeepSeek-V3, one group": lambda: sigmoid_router("deepseek_v3", "DeepseekV3TopkRouter", 1, 1),
    "GLM-4-MoE": lambda: sigmoid_router("glm4_moe", "Glm4MoeTopkRouter", 5, 2),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_route_chooses_and_weighs_as_the_family_does(family: str) -> None:
    router, spec = FAMILIES[family]()
    logits = torch_logits()
    with torch.no_grad():
        _, weights, ids = router(logits)
    expected = np.zeros((200, E))
    np.put_along_axis(expected, ids.numpy(), weights.double().numpy(), -1)
    found = [route_reference(logits, spec)]
    ready("torch", "route")
    routing = coterie.route(logits, spec)
    found.append((routing.ids.numpy(), routing.weights.numpy()))
    for chosen, factors in found:
        dense = np.zeros((200, E))
        np.put_along_axis(dense, chosen.astype(int), factors.astype(float), -1)
        np.testing.assert_allclose(dense, expected, rtol=2e-6, atol=1e-9)
