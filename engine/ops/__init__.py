"""The ops a video transformer is made of, and the plan that chooses an implementation of each, once."""

from kinema.ops.plan import OPS, Choice, Ops, Plan, Storage, build_ops, plan_ops, target_for

__all__ = ["OPS", "Choice", "Ops", "Plan", "Storage", "build_ops", "plan_ops", "target_for"]
