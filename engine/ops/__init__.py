"""The ops a video transformer is made of, and the plan that chooses an implementation of each, once."""

from kinema.ops.build import build_ops
from kinema.ops.plan import OPS, plan_ops, target_for
from kinema.ops.table import Choice, Ops, Plan

__all__ = ["OPS", "Choice", "Ops", "Plan", "build_ops", "plan_ops", "target_for"]
