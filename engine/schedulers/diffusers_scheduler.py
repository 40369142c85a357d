"""The diffusers-shaped scheduler object: a core, and one run of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch

from kinema.errors import RequestError, shown
from kinema.fields.values import dense, generators, kind, number, whole
from kinema.ops.scheduler_step import reference
from kinema.schedulers.core import Grid, Numbers, SchedulerCore
from kinema.schedulers.noise import Generators
from kinema.schedulers.state import SchedulerState, start
from kinema.schedulers.step import add_noise, step


@dataclass(frozen=True)
class SchedulerOutput:
    """prev_sample: the next, less noisy sample [B, ...]."""

    prev_sample: torch.Tensor

    def __getitem__(self, index: int) -> torch.Tensor:
        return (self.prev_sample,)[index]


class SchedulerConfig(dict[str, Any]):
    """A configuration with items and attributes, which cannot be changed; `from_config` takes it back.

    A dict, since diffusers' `from_config` takes anything else for the name of a repository.
    """

    def __init__(self, core: SchedulerCore) -> None:
        super().__init__({"_class_name": core.class_name, **asdict(core.config)})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the scheduler's configuration has no {name!r}") from None

    def _refuse(self, *given: Any, **named: Any) -> NoReturn:
        raise RequestError(
            "a scheduler's configuration cannot be changed: make another scheduler, "
            "kinema.schedulers.from_config({**scheduler.config, 'flow_shift': 5.0})"
        )

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return dict, (dict(self),)  # copies and pickles are plain

    def __repr__(self) -> str:
        return f"SchedulerConfig({super().__repr__()})"


class Scheduler:
    """Behaves as a diffusers scheduler object, on the reference op and with its own state.

    Differences: the history is kept in fp32 whatever the sample's dtype; a step that would not be finite is
    refused by the first `step`; and where truncation has made timesteps equal, a run that starts at one of them,
    but not at the first of the grid, needs `set_begin_index` (diffusers guesses).
    """

    def __init__(self, core: SchedulerCore) -> None:
        self.core = core
        self.config = SchedulerConfig(core)
        self.order = core.order
        self.init_noise_sigma = core.init_noise_sigma
        self._grid: Grid | None = None
        self._timesteps: torch.Tensor | None = None
        self._state: SchedulerState | None = None
        self._begin_index: int | None = None

    def __len__(self) -> int:
        return int(self.core.config.num_train_timesteps)

    def __repr__(self) -> str:
        return f"Scheduler({self.core.config})"

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        sigmas: Numbers | None = None,
        mu: float | None = None,
        timesteps: Numbers | None = None,
    ) -> None:
        """A new run. `timesteps` go to `device`; sigmas stay on the CPU."""
        mu = None if mu is None else number("mu", mu)
        self._grid = self.core.grid(num_inference_steps, sigmas=sigmas, timesteps=timesteps, mu=mu)
        try:
            self._timesteps = self._grid.timesteps.to(device) if device is not None else self._grid.timesteps
        except (RuntimeError, TypeError, AssertionError) as error:
            raise RequestError(f"device is {shown(device)}: wanted one that torch has here ({error})") from error
        self._state = self._begin_index = None

    @property
    def grid(self) -> Grid:
        if self._grid is None:
            raise RequestError("this scheduler has no timesteps yet; call set_timesteps(num_inference_steps) first")
        return self._grid

    @property
    def timesteps(self) -> torch.Tensor:
        """[n], int64 or fp32 as in the diffusers class."""
        assert self.grid is not None
        assert self._timesteps is not None
        return self._timesteps

    @property
    def sigmas(self) -> torch.Tensor:
        """fp32 [n + 1]."""
        return self.grid.sigmas

    @property
    def num_inference_steps(self) -> int:
        return self.grid.num_inference_steps

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        """The step that comes next; None before the first."""
        return None if self._state is None else self._state.index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Which step of the grid the first `step` takes (video-to-video)."""
        self._begin_index = whole("begin_index", begin_index, 0)

    def scale_model_input(self, sample: torch.Tensor, timestep: object = None) -> torch.Tensor:
        """`sample`: none of these samplers scales it."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        *,
        generator: Generators | None = None,
        eta: float = 0.0,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """The next sample, in the dtype that the diffusers class returns.

        generator, variance_noise: the source of fresh noise, or the noise itself, for stochastic samplers.
        eta: DDIM's share of noise. timestep finds the step when a run starts (in DDIM: always).
        """
        shape, terms = dense("sample", sample).shape, {"model_output": model_output}
        if variance_noise is not None:
            terms["variance_noise"] = variance_noise
        for name, term in terms.items():
            if dense(name, term).shape != shape:
                raise RequestError(f"{name} is {kind(term)}, sample {kind(sample)}: wanted the same shape")
        generator = generator if generator is None else generators("generator", generator)
        state = self._run(timestep, number("eta", eta))
        state.generator = generator
        following = step(reference, state, sample, model_output, noise=variance_noise)
        following = following.to(self.core.result_dtype(sample.dtype, model_output.dtype))
        return SchedulerOutput(following) if return_dict else (following,)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Clean samples [B, ...] at the levels of `timesteps` [B] or [1], in their dtype.

        With a begin index set, that step's level is taken instead, or the current step's once the run has started.
        """
        for name, term in {"original_samples": original_samples, "noise": noise}.items():
            if dense(name, term).shape != original_samples.shape:
                raise RequestError(f"{name} is {kind(term)}: wanted {kind(original_samples)}, as the samples")
        dense("timesteps", timesteps, floating=False)
        if self.step_index is not None and self._begin_index is not None:
            indices = [self.step_index]
        elif self._begin_index is not None:
            indices = [self._begin_index]
        else:
            indices = [self._index_of(t) for t in timesteps.reshape(-1)]
        if len(indices) == 1:
            indices *= len(original_samples)
        noisy = add_noise(reference, self.core, self.grid, indices, original_samples, noise)
        return noisy.to(original_samples.dtype)

    def scale_noise(self, sample: torch.Tensor, timestep: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """`add_noise` under the name and with the argument order of the flow-matching schedulers."""
        return self.add_noise(sample, noise, timestep)

    def _run(self, timestep: float | torch.Tensor, eta: float) -> SchedulerState:
        if self._state is None or self._state.eta != eta:
            # only a class that follows the timestep knows eta, and it has no history to lose
            if self.core.follows_timestep:
                begin = 0
            else:
                begin = self._begin_index if self._begin_index is not None else self._index_of(timestep)
            self._state = start(self.core, self.grid, begin=begin, eta=eta)
        if self.core.follows_timestep:
            self._state.index = self._index_of(timestep)
        return self._state

    def _index_of(self, timestep: float | torch.Tensor) -> int:
        if isinstance(timestep, torch.Tensor) and timestep.numel() == 1:
            timestep = timestep.reshape(())
        timestep = number("timestep", timestep)
        matches = (self.grid.timesteps == timestep).nonzero().flatten().tolist()
        if not matches:
            raise RequestError(f"timestep {timestep} is not on this scheduler's grid; pass one of `.timesteps`")
        if len(matches) > 1 and matches[0] != 0:
            raise RequestError(f"timestep {timestep} is at steps {matches} of the grid; say which with set_begin_index")
        return int(matches[0])
