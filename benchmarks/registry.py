"""The verbs of `kinema bench`. A new one is a file here with `add_arguments(parser)` and `run(arguments) -> int`."""

from __future__ import annotations

from kinema.cli.parser import Verbs

# verb: (module, one line of help); a module is imported when its verb is used
VERBS: Verbs = {
    "generate": ("kinema.bench.generate", "a whole generation, stage by stage"),
    "ops": ("kinema.bench.ops", "each op at production sizes, beside the machine's peak"),
    "calls": ("kinema.bench.calls", "what an eager call of each native op costs beyond its kernel"),
    "model": ("kinema.bench.model", "each part's forward, a generation by stage, memory and cold start"),
    "peers": ("kinema.bench.peers.command", "kinema beside diffusers, torch.compile, OpenVINO and others"),
    "fidelity": ("kinema.bench.fidelity", "what each lossy option gains and costs, beside fewer steps"),
    "gpu-session": ("kinema.bench.gpu_session.command", "questions that only a GPU can answer, asked within minutes"),
    "memory": ("kinema.bench.memory", "predicted peaks of memory beside measured ones"),
    "estimate": ("kinema.bench.estimate", "the seconds that generate foresees beside those that it takes"),
    "interrupt": ("kinema.bench.interrupt", "how long ctrl-C and a flag take to end native work"),
    "replay": (
        "kinema.bench.replay",
        "what recorded steps gain, what they cost beside their kernels, whether they last",
    ),
    "neighbours": ("kinema.bench.neighbours", "a generation while other programs keep the same cores busy"),
    "start": ("kinema.bench.start", "where a process's time goes beside what importing torch takes"),
    "compare": ("kinema.bench.compare", "two reports: what became slower, beyond the noise"),
    "report": ("kinema.bench.markdown", "Markdown tables and plots of what the other verbs wrote"),
    "adherence": ("kinema.bench.adherence", "whether the sample model does what its prompts say"),
    "samplers": ("kinema.bench.samplers", "adherence of the same clips by several samplers, at few and many steps"),
    "steps": ("kinema.bench.steps", "adherence and distance to real clips over the number of steps"),
    "contact-sheet": ("kinema.bench.contact_sheet", "prompts and their clips as one picture"),
}
