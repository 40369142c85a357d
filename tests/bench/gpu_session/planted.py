"""Questions that are planted: they measure nothing, and some of them go wrong. And what their lines say."""

from kinema.bench.gpu_session.question import Question


def question(ask=lambda session: None, **given):
    return Question(**{"decides": "nothing", "serves": "tests", "value": 5, "seconds": 0.1, "ask": ask, **given})


def results(lines, name):
    return {line["case"]: line for line in lines if line["kind"] == "result" and line["question"] == name}


def ends(lines):
    return {line["question"]: line for line in lines if line["kind"] == "end"}
